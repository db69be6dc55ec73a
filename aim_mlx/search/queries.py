"""What is searched for, as vectors of a store: embedded as its rows were, or found among them."""

import hashlib
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aim_mlx.errors import UsageError
from aim_mlx.search.nearest import top_k
from aim_mlx.words.classify import check_words
from aim_mlx.words.lit import as_lit

if TYPE_CHECKING:
    from aim_mlx.encoder.encoder import Embedded, Encoder
    from aim_mlx.store.reader import EmbeddingStore, Photos


class Queries:
    """Turns queries into vectors (D,) of a store; `load` gives the store's own encoder.

    It is called once, and only for a query that is not among the store's photos.
    """

    def __init__(self, store: "EmbeddingStore", load: Callable[[], "Encoder"]):
        self._store, self._load = store, load

    def images(self, paths: Sequence[str]) -> list[np.ndarray]:
        """A vector for each image file. Raises UsageError for one that cannot be embedded."""
        known = {path: self._stored(path) for path in dict.fromkeys(paths)}
        new = [path for path, vector in known.items() if vector is None]
        if new:
            known.update(zip(new, self._embedded(new), strict=True))
        return [vector for path in paths if (vector := known[path]) is not None]

    def texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """A vector for each text.

        Raises UsageError for an empty one, and for a store that words cannot be compared with.
        """
        if not texts:
            return []
        check_words(self._store)
        if not all(text.strip() for text in texts):
            raise UsageError("expected words to search for, got an empty text")
        return list(np.array(as_lit(self._encoder).encode_text(texts)))

    def _stored(self, path: str) -> np.ndarray | None:
        """The vector of a row whose photo has the same content."""
        if not Path(path).is_file():
            return None
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None  # embedding it will say why
        row = self._rows.get(digest)
        return None if row is None else self._store.vectors[row]

    @cached_property
    def _rows(self) -> dict[str, int]:
        digests = self._store.table(["digest"])["digest"].to_pylist()
        return {digest: row for row, digest in enumerate(digests)}

    def _embedded(self, paths: list[str]) -> list[np.ndarray]:
        with closing(self._encoder.embed_stream(paths, self._store.options)) as rows:
            return [_vector(row, paths[row.index]) for row in rows]

    @cached_property
    def _encoder(self) -> "Encoder":
        return self._load()


def nearest(
    store: "EmbeddingStore",
    query: np.ndarray,
    k: int,
    photos: "Photos",
    without: Collection[Hashable] = (),
) -> list[tuple[int, float]]:
    """The `k` photos nearest to a query (D,): row and cosine, best first, each file once.

    Photos that are gone are left out, and the files `without`. Only rows that are near enough are
    looked for on the disk: more are asked for until there are enough.
    """
    count = k + len(without)
    while True:
        rows, scores = top_k(store.vectors, query, count, normalized=store.options.normalize)
        score_of = dict(zip(rows[0].tolist(), scores[0].tolist(), strict=True))
        found = photos.each_once(score_of, without)[:k]
        if len(found) == k or count >= len(store):
            return [(row, score_of[row]) for row in found]
        count *= 4


def _vector(row: "Embedded", path: str) -> np.ndarray:
    if row.failure is not None:
        raise UsageError(f"cannot search for {path!r}: {row.failure}")
    return row.vector
