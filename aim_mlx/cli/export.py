"""`aim-mlx export`: a store as one file."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def export(
    store: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a store.")],
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE", help=".npz, .npy, .safetensors, .parquet or .jsonl."),
    ],
    thumbnails: Annotated[
        bool,
        typer.Option("--thumbnails", help="With small pictures, for embedding-atlas (.parquet)."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it is there.")
    ] = False,
) -> None:
    """Write the rows of a store to one file."""
    from aim_mlx.cli.terminal import escaped
    from aim_mlx.errors import UsageError
    from aim_mlx.store.export import IllustratedRows, Rows, write_file
    from aim_mlx.store.reader import EmbeddingStore, reading
    from aim_mlx.wording import counted

    if thumbnails and target.suffix != ".parquet":
        raise UsageError(f"--thumbnails needs a .parquet file, got {target.name!r}")

    def written(opened: EmbeddingStore) -> tuple[EmbeddingStore, Rows]:
        rows = IllustratedRows(opened) if thumbnails else Rows(opened)
        write_file(rows, target, overwrite)
        return opened, rows

    opened, rows = reading(store, written)
    if not opened.finished:
        _say("note: the last run into this store was not finished; these are the rows so far")
    _say(f"{counted(rows.shape[0], 'row')} of {rows.shape[1]:,} numbers: {escaped(str(target))}")
    if isinstance(rows, IllustratedRows):
        if rows.missing:
            gone = counted(rows.missing, "photo is", "photos are")
            _say(f"{gone} gone or changed, with null as the image")
        shown = escaped(shlex.quote(str(target)))
        _say(f"to look at them: embedding-atlas {shown} --vector embedding --image image")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
