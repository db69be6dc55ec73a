"""`aim-mlx search`: the photos of a store that are most like others."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aim_mlx.cli.options import Gone, Offline, Store

if TYPE_CHECKING:
    from aim_mlx.store.reader import EmbeddingStore


def search(
    store: Store,
    image: Annotated[
        list[str] | None, typer.Option(metavar="IMG", help="Find photos like this; repeatable.")
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option(metavar="IMG", help="And unlike this; repeatable.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="Find what these words say; repeatable. LiT models."),
    ] = None,
    minus_text: Annotated[
        list[str] | None, typer.Option(metavar="WORDS", help="And not what these say; repeatable.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="One for each --image, --text, --minus, --minus-text in turn: 1,0.5,2"),
    ] = "",
    k: Annotated[int, typer.Option("-k", help="How many photos to find.")] = 10,
    html: Annotated[
        Path | None, typer.Option(help="Also write the photos found as a web page.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace any file, not only a page of ours.")
    ] = False,
    gone: Gone = False,
    offline: Offline = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results and a summary as JSON lines.")
    ] = False,
) -> None:
    """Print the photos most like images or words.

    A line has the cosine similarity and the path, with a tab between. The photos searched for are
    not among those found.
    """
    from huggingface_hub.utils import tqdm

    from aim_mlx.cli.reports import note_missing, with_rows
    from aim_mlx.cli.targets import PAGES, check_target
    from aim_mlx.errors import UsageError
    from aim_mlx.loading import load_encoder
    from aim_mlx.search.nearest import combine
    from aim_mlx.search.queries import Queries, nearest
    from aim_mlx.store.reader import Photos, file_of

    images, texts = [image or [], minus or []], [text or [], minus_text or []]
    if not any([*images, *texts]):
        raise UsageError("expected something to search for: --image PHOTO, or --text WORDS")
    if k < 1:
        raise UsageError(f"-k must be at least 1, got {k}")
    factors = parse_weights(weights)
    check_target(html, PAGES, overwrite)

    def show(rows: "EmbeddingStore") -> None:
        queries = Queries(rows, lambda: load_encoder(rows, offline=offline, progress=tqdm))
        spoken = [queries.texts(words) for words in texts]  # what can be refused before any photo
        seen = queries.images([*images[0], *images[1]])
        wanted = [*seen[: len(images[0])], *spoken[0]]
        query = combine(wanted, [*seen[len(images[0]) :], *spoken[1]], factors)
        photos = Photos(rows, gone)
        asked = {file_of(path) for path in [*images[0], *images[1]] if os.path.exists(path)}
        found = nearest(rows, query, k, photos, asked)
        results = [
            {"rank": rank, "score": score, "row": row, "path": rows.paths[row]}
            for rank, (row, score) in enumerate(found, 1)
        ]
        if html is not None:
            _write_page(html, rows, images, texts, results)
        _print(results, as_json, html)
        note_missing(photos, [row for row, _ in found])

    with_rows(store, show)


def parse_weights(text: str) -> list[float] | None:
    """ "1,0.5" -> [1.0, 0.5]; "" -> None. Raises UsageError for anything else."""
    from aim_mlx.errors import UsageError

    try:
        return [float(part) for part in text.split(",")] if text.strip() else None
    except ValueError:
        raise UsageError(f"weights must be numbers such as 1,0.5, got {text!r}") from None


def _print(results: list[dict[str, Any]], as_json: bool, html: Path | None) -> None:
    from aim_mlx.cli.terminal import escaped

    if not as_json:
        for each in results:
            print(f"{each['score']:.4f}\t{escaped(each['path'])}")
        return
    for each in results:
        print(json.dumps({"event": "result", **each}))
    page = None if html is None else str(html)
    print(json.dumps({"event": "summary", "results": len(results), "html": page, "exit_code": 0}))


def _write_page(
    target: Path,
    store: "EmbeddingStore",
    images: list[list[str]],
    texts: list[list[str]],
    results: list[dict[str, Any]],
) -> None:
    from aim_mlx.report.contact_sheet import Origin, Picture, Section, write_contact_sheet

    sections = [
        Section(title, [Picture(path, [path]) for path in paths], ", ".join(words))
        for title, paths, words in zip(("Like", "Unlike"), images, texts, strict=True)
        if paths or words
    ]
    found = [
        Picture(store.locate(each["row"]), [f"{each['score']:.4f}", each["path"]])
        for each in results
    ]
    note = f"{len(results)} of {len(store):,} rows, by cosine similarity"
    sections.append(Section("Found", found))
    origin = Origin(store.manifest["model"], store.folder)
    write_contact_sheet(target, "Similar photos", sections, origin, note)
