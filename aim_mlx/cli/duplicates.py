"""`aim-mlx duplicates`: photos of a store that are the same, or nearly."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aim_mlx.cli.options import AsJson, Gone, Html, Overwrite, Store

if TYPE_CHECKING:
    from aim_mlx.search.duplicates import Group
    from aim_mlx.store.reader import EmbeddingStore


def duplicates(
    store: Store,
    threshold: Annotated[
        float | None,
        typer.Option(help="Lowest cosine similarity to a group's reference.  [default: 0.95]"),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Only files with the same content, byte for byte.")
    ] = False,
    html: Html = None,
    overwrite: Overwrite = False,
    gone: Gone = False,
    as_json: AsJson = False,
) -> None:
    """Print groups of copies and near-duplicates.

    Copies come first, then near-duplicates, the most similar first. Each line is a photo: its
    group, "reference" or its similarity to the reference, pixels, bytes, the date of its file, and
    its path. The first of a group of copies stands for them all among the near-duplicates.
    """
    from aim_mlx.cli.targets import PAGES, check_target
    from aim_mlx.errors import UsageError
    from aim_mlx.search.duplicates import THRESHOLD, account, photo_groups
    from aim_mlx.search.pages import write_duplicates_page
    from aim_mlx.store.reader import Photos, reading

    if exact and threshold is not None:
        raise UsageError("--exact compares bytes: leave out --threshold")
    check_target(html, PAGES, overwrite)

    def show(rows: "EmbeddingStore") -> None:
        photos = Photos(rows, gone)
        cosine = None if exact else THRESHOLD if threshold is None else threshold
        groups = photo_groups(rows, photos, cosine)
        if html is not None:
            write_duplicates_page(html, rows, groups, cosine)
        (_print_json if as_json else _print_lines)(groups, len(rows))
        print(account(groups, len(rows)), file=sys.stderr)
        for note in photos.notes([photo.row for group in groups for photo in group.photos]):
            print(f"note: {note}", file=sys.stderr)

    reading(store, show)


def _print_lines(groups: list["Group"], rows: int) -> None:
    from aim_mlx.wording import escaped

    for number, group in enumerate(groups, 1):
        for each in group.photos:
            size = f"{each.width}x{each.height}"
            values = [number, each.likeness, size, each.bytes, each.modified, escaped(each.path)]
            print(*values, sep="\t")


def _print_json(groups: list["Group"], rows: int) -> None:
    from aim_mlx.search.duplicates import photo_count

    for number, group in enumerate(groups, 1):
        record = {"event": "group", "group": number, "exact": group.exact, "lowest": group.lowest}
        print(json.dumps(record | {"photos": [asdict(photo) for photo in group.photos]}))
    summary = {"groups": len(groups), "photos": photo_count(groups), "rows": rows, "exit_code": 0}
    print(json.dumps({"event": "summary", **summary}))
