"""`aim-mlx download`: a model's files into the Hub's cache on this disk."""

import json
from typing import Annotated

import typer


def download(
    model: Annotated[
        str, typer.Argument(metavar="NAME|REPO", help="A model name or a Hub repo, owner/name.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="A commit, branch or tag; for a name, the pinned commit.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only find what is here.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Download a published model, and print its folder."""
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.errors import Interrupted
    from aim_mlx.weights.hub import fetch_model

    try:
        folder = fetch_model(model, revision, offline=offline, progress=tqdm)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: finished files are kept, run again for the rest") from None
    if as_json:
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("[!.]*"))}
        values = {"model": model, "path": str(folder), "commit": folder.name, "files": files}
        print(json.dumps(values))
    else:
        print(folder)
