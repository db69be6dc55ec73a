"""`aim-mlx merge`: the stores of several machines become one."""

from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.cli.options import AsJson
from aim_mlx.wording import counted, escaped


def merge(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE...", help="The stores of all shares.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder.")],
    as_json: AsJson = False,
) -> int:
    """Join the stores that several machines made.

    Give the stores of `embed --shard 1/n` to `embed --shard n/n`, in any order.

    Everything is checked first: each share must be there once, finished and sound, and made with
    the same model, options and list of files. The rows come out as one machine would have written
    them. Ends with 3 if the shares skipped files.
    """
    from aim_mlx.cli.reporter import Reporter
    from aim_mlx.store.merge import merge as merge_stores

    merged = merge_stores(stores, output)
    line = (
        f"{counted(merged.stores, 'store')} merged: {merged.embedded:,} embedded, "
        f"{merged.skipped:,} skipped, {merged.ignored:,} ignored: {escaped(merged.output)}"
    )
    Reporter(as_json).finished(line, merged)
    return merged.exit_code
