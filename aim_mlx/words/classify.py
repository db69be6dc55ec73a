"""Images, or the rows of a store, to the labels of a zero-shot head."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aim_mlx.encoder.encoder import Embedded, EmbedOptions
from aim_mlx.errors import UsageError
from aim_mlx.images import Skip
from aim_mlx.words.lit import LiT
from aim_mlx.words.zeroshot import ZeroShotHead

if TYPE_CHECKING:
    from aim_mlx.store.reader import EmbeddingStore

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Choice:
    """Which labels an image gets: the `top` best of those with at least `threshold`.

    `top` None is the best one, or with `multi_label` all. Scores are probabilities over the labels,
    or with `multi_label` the cosine with each.
    """

    top: int | None = None
    threshold: float | None = None
    multi_label: bool = False

    def __post_init__(self):
        if self.top is not None and (type(self.top) is not int or self.top < 1):
            raise UsageError(f"top must be a whole number from 1, got {self.top!r}")
        low = -1.0 if self.multi_label else 0.0
        if self.threshold is not None and not low <= self.threshold <= 1:
            what = "a cosine" if self.multi_label else "a probability"
            raise UsageError(
                f"the threshold is {what}, from {low:g} to 1, got {self.threshold!r:.40}"
            )

    def of(self, labels: tuple[str, ...], scores: np.ndarray) -> tuple[tuple[str, float], ...]:
        """Labels and scores (C,) -> pairs, best first, equal ones in the order of the labels."""
        top = self.top or (len(labels) if self.multi_label else 1)
        best = np.argsort(-scores, kind="stable")[:top]
        low = -np.inf if self.threshold is None else self.threshold
        return tuple((labels[i], float(scores[i])) for i in best if scores[i] >= low)


@dataclass(frozen=True)
class Classified:
    """One image with its labels and their scores, best first; none where none is good enough.

    `row` counts the images, or is the row of the store; `multi_frame` is True where only the first
    of several frames was read.
    """

    path: str
    labels: tuple[tuple[str, float], ...]
    row: int
    multi_frame: bool = False


def label_images(
    rows: Generator[Embedded, None, None],
    classes: tuple[str, ...],
    scores: Callable[[np.ndarray], np.ndarray],
    choice: Choice,
    skipped: Callable[[Skip], None],
) -> Generator[Classified, None, None]:
    """The labels of each file of a stream, in order, by the scores of its vector.

    What could not be embedded goes to `skipped`.
    """
    with closing(rows):
        for row in rows:
            if row.failure is not None:
                skipped(Skip.of(row.path, row.failure))
            else:
                labels = choice.of(classes, scores(row.vector))
                yield Classified(row.path, labels, row.index, row.multi_frame)


def label_photos(
    lit: LiT,
    head: ZeroShotHead,
    paths: Sequence[str],
    options: EmbedOptions,
    choice: Choice,
    skipped: Callable[[Skip], None],
) -> Generator[Classified, None, None]:
    """The labels of image files, as `label_images` gives them.

    Raises CheckpointError for a head of another model.
    """
    head.check(lit.weights_digest, str(lit.identity.get("model")))

    def scores(vector: np.ndarray) -> np.ndarray:
        return head.scores(vector[None], choice.multi_label)[0]

    return label_images(lit.embed_stream(paths, options), head.labels, scores, choice, skipped)


def label_rows(
    store: "EmbeddingStore", head: ZeroShotHead, rows: Sequence[int], choice: Choice
) -> Iterator[Classified]:
    """The labels of rows of a store, by their numbers; nothing is embedded again.

    Raises CheckpointError for a head of another model.
    """
    head.check(store.manifest["weights"], f"the store {str(store.folder)!r}")
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        scored = head.scores(store.vectors[part], choice.multi_label)
        for row, scores in zip(part, scored, strict=True):
            yield Classified(store.paths[row], choice.of(head.labels, scores), row)


def check_words(store: "EmbeddingStore") -> None:
    """Raises UsageError for a store whose vectors are not those that words are compared with."""
    pooling = store.manifest["pooling"]
    if pooling != "attention":
        raise UsageError(
            f"words can be compared with vectors of a LiT model's attention pooling, those of "
            f"{str(store.folder)!r} are of {pooling!r:.20} pooling: embed with a LiT model"
        )


def find_store(sources: Sequence[str]) -> "EmbeddingStore | None":
    """The store of a LiT model's vectors among the sources, which then must be alone.

    Raises UsageError for other sources beside it, and for other vectors.
    """
    stores = [source for source in sources if (Path(source) / "journal.jsonl").is_file()]
    if not stores:
        return None
    if len(sources) > 1:
        raise UsageError(f"{stores[0]!r} is a store of embeddings: give it alone")
    from aim_mlx.store.reader import EmbeddingStore

    store = EmbeddingStore(stores[0])
    check_words(store)
    return store
