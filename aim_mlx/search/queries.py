"""The photos of a store that are like images and words, or unlike them."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aim_mlx.errors import AimError, UsageError
from aim_mlx.search.nearest import combine, top_k
from aim_mlx.store.reader import EmbeddingStore, Photos, file_of

if TYPE_CHECKING:
    from aim_mlx.encoder.encoder import Encoder


@dataclass(frozen=True)
class Query:
    """Image files and texts that photos are to be like, or unlike."""

    images: Sequence[str] = ()
    texts: Sequence[str] = ()


def search(
    store: EmbeddingStore,
    like: Query,
    unlike: Query,
    k: int,
    photos: Photos,
    load: "Callable[[], Encoder]",
    weights: Sequence[float] | None,
) -> list[tuple[int, float]]:
    """The `k` photos most like one query and unlike another: row and cosine, best first.

    Each file is there once; the photos searched for are not, nor those that are gone. `load` gives
    the store's own encoder, and is called only for a query that is not among the store's photos.
    `weights` are one for each image and text to be like, then one for each to be unlike. Raises
    UsageError for an image that cannot be embedded, an empty text, and a store that words cannot be
    compared with, AimError for a store without rows.
    """
    if not len(store):
        raise AimError(f"{str(store.folder)!r} holds no rows: embed photos into it first")
    load = functools.cache(load)
    # Texts can be refused before a photo is embedded.
    texts = _text_vectors(store, [*like.texts, *unlike.texts], load)
    images = _image_vectors(store, [*like.images, *unlike.images], load)
    wanted = [*images[: len(like.images)], *texts[: len(like.texts)]]
    unwanted = [*images[len(like.images) :], *texts[len(like.texts) :]]
    query = combine(wanted, unwanted, weights)
    asked = {file_of(path) for path in (*like.images, *unlike.images) if os.path.exists(path)}
    count = k + len(asked)
    while True:
        rows, scores = top_k(store.vectors, query, count, normalized=store.options.normalize)
        score_of = dict(zip(rows[0].tolist(), scores[0].tolist(), strict=True))
        nearest = photos.each_once(score_of, without=asked)[:k]
        if len(nearest) == k or count >= len(store):
            return [(row, score_of[row]) for row in nearest]
        count *= 4  # only rows that are near enough are looked for on the disk


def _text_vectors(
    store: EmbeddingStore, texts: list[str], load: "Callable[[], Encoder]"
) -> list[np.ndarray]:
    if not texts:
        return []
    # What only words need would take a third of a search by a photo of the store.
    from aim_mlx.words.classify import check_words
    from aim_mlx.words.lit import as_lit

    check_words(store)
    if not all(text.strip() for text in texts):
        raise UsageError("expected words to search for, got an empty text")
    return list(np.array(as_lit(load()).encode_text(texts)))


def _image_vectors(
    store: EmbeddingStore, paths: list[str], load: "Callable[[], Encoder]"
) -> list[np.ndarray]:
    """A vector (D,) for each image file: its row's, where the store has the same content."""
    digests = store.table(["digest"])["digest"].to_pylist() if paths else []
    row_of = {digest: row for row, digest in enumerate(digests)}
    rows = {path: row_of.get(_digest(path)) for path in dict.fromkeys(paths)}
    vectors = {path: store.vectors[row] for path, row in rows.items() if row is not None}
    new = [path for path in rows if path not in vectors]
    if new:
        with closing(load().embed_stream(new, store.options)) as stream:
            for row in stream:
                path = new[row.index]
                if row.failure is not None:
                    raise UsageError(f"cannot search for {path!r}: {row.failure}")
                vectors[path] = row.vector
    return [vectors[path] for path in paths]


def _digest(path: str) -> str | None:
    """The SHA-256 of a file; None for what cannot be read, of which embedding it says why."""
    if not Path(path).is_file():
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
