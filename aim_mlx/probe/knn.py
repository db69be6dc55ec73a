"""k nearest neighbours: how well vectors part the classes, with nothing trained.

The convention of arXiv 1805.01978, section 3.4: cosines, each of the k neighbours votes for its
class with exp(cosine / temperature).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from aim_mlx.errors import UsageError
from aim_mlx.probe.losses import check_labels
from aim_mlx.search.nearest import top_k

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_AT_ONCE = 4096  # queries, whose votes are held


def knn_scores(
    vectors: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """The votes of the neighbours of each query, float32 (q, C) that sum to one, for each k.

    `vectors` (n, D) of any length have `labels` int (n,); a k above n takes all n. With several
    labels, bool (n, C), a neighbour votes for each of its own, and a score is the share of votes.
    Raises UsageError for what does not fit.
    """
    labels = check_labels(labels, classes)
    if len(labels) != len(vectors) or not len(labels):
        raise UsageError(
            f"expected a label for each of {len(vectors)} vectors, at least one, got {len(labels)}"
        )
    check_neighbours(ks, temperature)
    found = {k: np.empty((len(queries), classes), np.float32) for k in ks}
    for rows, near, cosines in _neighbours(vectors, queries, max(ks)):
        # The best cosine is taken off: the shares stay, and no exponential is out of range.
        votes = np.exp((cosines - cosines[:, :1]) / temperature)
        for k in ks:
            found[k][rows] = _shares(votes[:, :k], labels[near[:, :k]], classes)
    return found


def check_neighbours(ks: Sequence[int], temperature: float) -> None:
    """Raises UsageError for a k or a temperature that cannot be."""
    if not ks or min(ks) < 1 or not temperature > 0:
        raise UsageError(f"k must be from 1 and the temperature above 0, got {ks}, {temperature}")


def knn_predict(
    vectors: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """The class of each query, int64 (q,), for each k; of equal scores the first class."""
    scores = knn_scores(vectors, labels, queries, classes, ks, temperature)
    return {k: each.argmax(axis=1) for k, each in scores.items()}


def _neighbours(
    vectors: np.ndarray, queries: np.ndarray, k: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    for start in range(0, len(queries), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        near, cosines = top_k(vectors, queries[rows], k)
        yield rows, near, cosines


def _shares(votes: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Votes (q, k) and the labels of those who give them, (q, k) or (q, k, C) -> (q, C)."""
    total = votes.sum(axis=1, keepdims=True)
    if labels.ndim == 3:
        return np.einsum("qk,qkc->qc", votes, labels) / total
    places = np.arange(len(votes))[:, None] * classes + labels
    summed = np.bincount(places.ravel(), votes.ravel(), len(votes) * classes)
    return summed.reshape(len(votes), classes) / total
