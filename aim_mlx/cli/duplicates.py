"""`aim-mlx duplicates`: photos of a store that are nearly the same."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aim_mlx.cli.options import Store

if TYPE_CHECKING:
    from aim_mlx.duplicates import Group
    from aim_mlx.store.reading import EmbeddingStore


def duplicates(
    store: Store,
    threshold: Annotated[
        float, typer.Option(help="Cosine from which two photos belong together.")
    ] = 0.95,
    html: Annotated[Path | None, typer.Option(help="Also write the groups as a web page.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that page.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print groups and a summary as JSON lines.")
    ] = False,
) -> None:
    """Print groups of near-duplicates.

    A line has the group, the lowest and highest similarity in it, and the path.
    """
    from aim_mlx.cli.reports import open_rows
    from aim_mlx.cli.targets import PAGES, check_target
    from aim_mlx.duplicates import duplicates as find

    check_target(html, PAGES, overwrite)
    rows = open_rows(store)
    groups = find(rows.vectors, threshold, normalized=rows.options.normalize)
    if html is not None:
        _write_page(html, rows, groups, threshold)
    (_print_json if as_json else _print_lines)(rows, groups)
    among = sum(len(group.rows) for group in groups)
    print(f"{len(groups)} groups, {among} of {len(rows)} photos", file=sys.stderr)


def _print_lines(store: "EmbeddingStore", groups: list["Group"]) -> None:
    from aim_mlx.cli.terminal import escaped

    for number, group in enumerate(groups, 1):
        for row in group.rows:
            path = escaped(store.paths[row])
            print(f"{number}\t{group.lowest:.4f}\t{group.highest:.4f}\t{path}")


def _print_json(store: "EmbeddingStore", groups: list["Group"]) -> None:
    for number, group in enumerate(groups, 1):
        record = {
            "event": "group",
            "group": number,
            "lowest": group.lowest,
            "highest": group.highest,
            "rows": group.rows.tolist(),
            "paths": [store.paths[row] for row in group.rows],
        }
        print(json.dumps(record))
    among = sum(len(group.rows) for group in groups)
    summary = {"groups": len(groups), "photos": among, "rows": len(store), "exit_code": 0}
    print(json.dumps({"event": "summary", **summary}))


def _write_page(
    target: Path, store: "EmbeddingStore", groups: list["Group"], threshold: float
) -> None:
    from aim_mlx.contact_sheet import Picture, Section, write_contact_sheet

    sections = [
        Section(
            f"Group {number}",
            [
                Picture(store.locate(row), [Path(store.paths[row]).name, store.paths[row]])
                for row in group.rows
            ],
            f"{len(group.rows)} photos, similarity {group.lowest:.4f} to {group.highest:.4f}",
        )
        for number, group in enumerate(groups, 1)
    ]
    note = (
        f"{len(groups)} groups among {len(store):,} photos in {store.folder}, "
        f"joined from a cosine similarity of {threshold}"
    )
    write_contact_sheet(target, "Near-duplicates", sections, note)
