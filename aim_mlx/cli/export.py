"""`aim-mlx export`: a store as one file."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.cli.options import Overwrite, Store
from aim_mlx.wording import counted, escaped


def export(
    store: Store,
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE", help=".npz, .npy, .safetensors, .parquet or .jsonl."),
    ],
    thumbnails: Annotated[
        bool,
        typer.Option("--thumbnails", help="Add small pictures, for embedding-atlas (.parquet)."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the rows of a store to one file."""
    from aim_mlx.errors import UsageError
    from aim_mlx.store.export import IllustratedRows, Rows, write_file
    from aim_mlx.store.reader import EmbeddingStore, reading

    if thumbnails and target.suffix != ".parquet":
        raise UsageError(f"--thumbnails needs a .parquet file, got {target.name!r}")

    def written(opened: EmbeddingStore) -> list[str]:
        rows = IllustratedRows(opened) if thumbnails else Rows(opened)
        write_file(rows, target, overwrite)
        notes = [f"{counted(rows.shape[0], 'row')} of {rows.shape[1]:,} numbers: {target}"]
        if not opened.finished:
            note = "note: the last run into this store was not finished; these are the rows so far"
            notes.insert(0, note)
        if isinstance(rows, IllustratedRows):
            if rows.missing:
                gone = counted(rows.missing, "photo is", "photos are")
                notes.append(f"{gone} gone or changed, so the image is null")
            file = shlex.quote(str(target))
            notes.append(
                f"look at them with: embedding-atlas {file} --vector embedding --image image"
            )
        return notes

    for note in reading(store, written):
        print(escaped(note), file=sys.stderr)
