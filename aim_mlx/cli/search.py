"""`aim-mlx search`: the photos of a store that are most like others."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aim_mlx.cli.options import AsJson, Gone, Html, Offline, Overwrite, Store, numbers

if TYPE_CHECKING:
    from aim_mlx.encoder.encoder import Encoder
    from aim_mlx.store.reader import EmbeddingStore


def search(
    store: Store,
    image: Annotated[
        list[str] | None, typer.Option(metavar="IMG", help="Find photos like this one; repeatable.")
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option(metavar="IMG", help="Find photos unlike this one; repeatable."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORDS", help="Find what these words say; repeatable. For LiT models."
        ),
    ] = None,
    minus_text: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="Find photos unlike these words; repeatable."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="One for each --image, --text, --minus, --minus-text, such as 1,0.5"),
    ] = "",
    k: Annotated[int, typer.Option("-k", help="How many photos to find.")] = 10,
    html: Html = None,
    overwrite: Overwrite = False,
    gone: Gone = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Print the photos most like images or words.

    A line has the cosine similarity and the path, with a tab between. The photos that you search
    with are left out.
    """
    from aim_mlx.cli.targets import PAGES, check_target
    from aim_mlx.errors import UsageError
    from aim_mlx.search import queries
    from aim_mlx.store.reader import Photos, reading

    like = queries.Query(image or [], text or [])
    unlike = queries.Query(minus or [], minus_text or [])
    if not any([image, minus, text, minus_text]):
        raise UsageError("expected something to search for: --image PHOTO, or --text WORDS")
    if k < 1:
        raise UsageError(f"-k must be at least 1, got {k}")
    factors = numbers("--weights", weights) if weights else None
    check_target(html, PAGES, overwrite)

    def show(rows: "EmbeddingStore") -> None:
        photos = Photos(rows, gone)

        def load() -> "Encoder":
            from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

            from aim_mlx.loading import load_encoder

            return load_encoder(rows, offline=offline, progress=tqdm)

        hits = queries.search(rows, like, unlike, k, photos, load, factors)
        if html is not None:
            from aim_mlx.search.pages import write_search_page

            write_search_page(html, rows, like, unlike, hits)
        _print(rows, hits, as_json, html)
        for note in photos.notes([row for row, _ in hits]):
            print(f"note: {note}", file=sys.stderr)

    reading(store, show)


def _print(
    store: "EmbeddingStore", hits: list[tuple[int, float]], as_json: bool, html: Path | None
) -> None:
    from aim_mlx.wording import escaped

    for rank, (row, score) in enumerate(hits, 1):
        path = store.paths[row]
        hit = {"event": "result", "rank": rank, "score": score, "row": row, "path": path}
        print(json.dumps(hit) if as_json else f"{score:.4f}\t{escaped(path)}")
    if as_json:
        page = None if html is None else str(html)
        summary = {"event": "summary", "results": len(hits), "html": page, "exit_code": 0}
        print(json.dumps(summary))
