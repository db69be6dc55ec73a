"""`aim-mlx duplicates`: photos of a store that are the same, or nearly."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aim_mlx.cli.options import Gone, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from aim_mlx.search.duplicates import Group
    from aim_mlx.store.reader import EmbeddingStore, Photos


def duplicates(
    store: Store,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least cosine to the reference of a group: 0.95 where not given."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Only files with the same content, byte for byte.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the groups as a web page.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace any file, not only a page of ours.")
    ] = False,
    gone: Gone = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print groups and a summary as JSON lines.")
    ] = False,
) -> None:
    """Print groups of copies and near-duplicates.

    Copies come first, then near-duplicates, those most alike first. A line a photo: the group,
    "reference" or how like the reference it is, pixels, bytes, the date of its file, path. Of
    copies the first stands for all among the near-duplicates, where each photo is in one group.
    """
    from aim_mlx.cli.reports import note_missing, with_rows
    from aim_mlx.cli.targets import PAGES, check_target
    from aim_mlx.errors import UsageError
    from aim_mlx.search.duplicates import THRESHOLD, photo_groups
    from aim_mlx.store.reader import Photos

    if exact and threshold is not None:
        raise UsageError("--exact compares bytes: leave out --threshold")
    check_target(html, PAGES, overwrite)

    def show(rows: "EmbeddingStore") -> None:
        photos = Photos(rows, gone)
        cosine = None if exact else THRESHOLD if threshold is None else threshold
        groups = photo_groups(rows, photos, cosine)
        facts = rows.table(["width", "height", "size", "mtime_ns"])
        listed = [list(_members(rows, photos, group, facts)) for group in groups]
        if html is not None:
            _write_page(html, rows, groups, listed, cosine)
        (_print_json if as_json else _print_lines)(rows, groups, listed)
        print(_account(groups, len(rows)), file=sys.stderr)
        note_missing(photos, [member.row for members in listed for member in members])

    with_rows(store, show)


@dataclass(frozen=True)
class _Member:
    """A photo of a group; `likeness` is "reference", "copy", "hard link" or its cosine."""

    row: int
    path: str
    likeness: str
    similarity: float
    width: int
    height: int
    bytes: int
    modified: str

    @property
    def facts(self) -> list[str]:
        return [f"{self.width}x{self.height}", f"{self.bytes:,} bytes", self.modified]


def _members(
    store: "EmbeddingStore", photos: "Photos", group: "Group", facts: "pa.Table"
) -> Iterator[_Member]:
    import pyarrow as pa

    each = facts.take(pa.array(group.rows)).to_pylist()
    seen: set[tuple[int, int] | None] = set()
    for place, (row, fact) in enumerate(zip(group.rows.tolist(), each, strict=True)):
        likeness, inode = f"{group.similarities[place]:.4f}", photos.inode(row)
        if not place:
            likeness = "reference"
        elif group.exact:
            likeness = "hard link" if inode is not None and inode in seen else "copy"
        seen.add(inode)
        yield _Member(
            row,
            store.paths[row],
            likeness,
            float(group.similarities[place]),
            fact["width"],
            fact["height"],
            fact["size"],
            _date(fact["mtime_ns"]),
        )


def _date(mtime_ns: int) -> str:
    return datetime.fromtimestamp(mtime_ns / 1e9).isoformat(" ", "minutes")


def _account(groups: list["Group"], rows: int) -> str:
    from aim_mlx.wording import counted

    copies = counted(sum(group.exact for group in groups), "group", "groups")
    near = counted(sum(not group.exact for group in groups), "group", "groups")
    among = counted(_among(groups), "photo", "photos")
    return (
        f"{copies} of copies, {near} of near-duplicates: {among} of {counted(rows, 'row', 'rows')}"
    )


def _among(groups: list["Group"]) -> int:
    """How many rows are in groups; one that stands for its copies may be in two."""
    return len({row for group in groups for row in group.rows.tolist()})


def _print_lines(
    store: "EmbeddingStore", groups: list["Group"], listed: list[list[_Member]]
) -> None:
    from aim_mlx.cli.terminal import escaped

    for number, members in enumerate(listed, 1):
        for each in members:
            facts = [each.likeness, f"{each.width}x{each.height}", str(each.bytes), each.modified]
            print("\t".join([str(number), *facts, escaped(each.path)]))


def _print_json(
    store: "EmbeddingStore", groups: list["Group"], listed: list[list[_Member]]
) -> None:
    for number, (group, members) in enumerate(zip(groups, listed, strict=True), 1):
        record: dict[str, Any] = {"event": "group", "group": number, "exact": group.exact}
        record |= {"lowest": group.lowest, "photos": [asdict(member) for member in members]}
        print(json.dumps(record))
    summary = {"groups": len(groups), "photos": _among(groups), "rows": len(store), "exit_code": 0}
    print(json.dumps({"event": "summary", **summary}))


def _write_page(
    target: Path,
    store: "EmbeddingStore",
    groups: list["Group"],
    listed: list[list[_Member]],
    threshold: float | None,
) -> None:
    from aim_mlx.report.contact_sheet import Origin, Picture, Section, write_contact_sheet
    from aim_mlx.wording import counted

    sections = []
    for number, (group, members) in enumerate(zip(groups, listed, strict=True), 1):
        kind = "the same content" if group.exact else f"at least {group.lowest:.4f} like the first"
        pictures = [
            Picture(store.locate(each.row), [each.likeness, *each.facts, each.path])
            for each in members
        ]
        count = counted(len(members), "photo", "photos")
        sections.append(Section(f"Group {number}", pictures, f"{count}, {kind}"))
    note = _account(groups, len(store))
    if threshold is not None:
        note += f"; from a cosine similarity of {threshold:g} to the first of a group"
    origin = Origin(store.manifest["model"], store.folder)
    write_contact_sheet(target, "Duplicates", sections, origin, note)
