"""`aim-mlx merge`: the stores of several machines become one."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def merge(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE...", help="The stores of all shares.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as a JSON line on stdout.")
    ] = False,
) -> int:
    """Join the stores that several machines made.

    They are those of `embed --shard 1/n` to `embed --shard n/n`.

    All is checked first: that every share is there once, finished and sound, of the same model,
    options and list of files. The rows are those of a run on one machine, in the same order. Ends
    with 3 if the shares skipped files, as that run would.
    """
    from aim_mlx.cli.terminal import escaped
    from aim_mlx.store.merge import merge as merge_stores
    from aim_mlx.wording import counted

    merged = merge_stores(stores, output)
    if as_json:
        summary = {"event": "summary", **asdict(merged), "exit_code": merged.exit_code}
        print(json.dumps(summary), flush=True)
    line = (
        f"{counted(merged.stores, 'store')} merged: {merged.embedded:,} embedded, "
        f"{merged.skipped:,} skipped, "
        f"{merged.ignored:,} ignored: {escaped(merged.output)}"
    )
    print(line, file=sys.stderr)
    return merged.exit_code
