"""k nearest neighbours: how well vectors part the classes, with nothing trained.

The convention of arXiv 1805.01978, section 3.4: cosines, each of the k neighbours votes for its
class with exp(cosine / temperature).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from aim_mlx.data.labelled import Data
from aim_mlx.data.parts import Part
from aim_mlx.data.splits import DataSet, divided
from aim_mlx.encoder.encoder import EmbedOptions, Encoder, vectors_and_skips
from aim_mlx.errors import UsageError
from aim_mlx.images import Skip
from aim_mlx.probe.losses import check_labels
from aim_mlx.report.figures import figures_of, measured
from aim_mlx.search.nearest import top_k
from aim_mlx.training.report import Report, Silent, advancing, never

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
TEMPERATURES = (TEMPERATURE, 0.2)
Point = tuple[int, float]  # how many neighbours vote, and with which temperature
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

    Takes and raises what voted() does.
    """
    votes = voted(vectors, labels, queries, classes, [(k, temperature) for k in ks])
    return {k: scores for (k, _), scores in votes.items()}


def voted(
    vectors: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    classes: int,
    points: Sequence[Point],
) -> dict[Point, np.ndarray]:
    """The votes, float32 (q, C) that sum to one, for each k and temperature of `points`.

    `vectors` (n, D) of any length have `labels` int (n,); a k above n takes all n. With several
    labels, bool (n, C), a neighbour votes for each of its own, and a score is the share of votes.
    Raises UsageError for what does not fit.
    """
    labels = check_labels(labels, classes)
    if len(labels) != len(vectors) or not len(labels):
        raise UsageError(
            f"expected a label for each of {len(vectors)} vectors, at least one, got {len(labels)}"
        )
    _check(points)
    scores = {point: np.empty((len(queries), classes), np.float32) for point in points}
    for start in range(0, len(queries), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        near, cosines = top_k(vectors, queries[rows], max(k for k, _ in points))
        # The best cosine is taken off: the shares stay, and no exponential is out of range.
        cosines -= cosines[:, :1]
        for k, temperature in points:
            votes = np.exp(cosines[:, :k] / temperature)
            scores[k, temperature][rows] = _shares(votes, labels[near[:, :k]], classes)
    return scores


def _check(points: Sequence[Point]) -> None:
    if not points or not all(k >= 1 and temperature > 0 for k, temperature in points):
        raise UsageError(
            f"k must be from 1 and the temperature above 0, got {str(list(points))[1:-1]:.200}"
        )


def _shares(votes: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Votes (q, k) and the labels of those who give them, (q, k) or (q, k, C) -> (q, C)."""
    total = votes.sum(axis=1, keepdims=True)
    if labels.ndim == 3:
        return np.einsum("qk,qkc->qc", votes, labels) / total
    places = np.arange(len(votes))[:, None] * classes + labels
    summed = np.bincount(places.ravel(), votes.ravel(), len(votes) * classes)
    return summed.reshape(len(votes), classes) / total


@dataclass(frozen=True)
class Neighbours:
    """The score of each k and temperature on val, the best of them, and figures.

    A score is the accuracy, or mAP for several labels. The figures are those of `measured_on`,
    "test" where there is one.
    """

    scores: dict[Point, float]
    best: Point
    measured_on: str
    figures: dict[str, Any]
    data: DataSet

    @property
    def exit_code(self) -> int:
        return 3 if self.data.skips else 0


def nearest_neighbours(
    data: Data,
    load: Callable[[], Encoder],
    options: EmbedOptions,
    report: Report | None = None,
    *,
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    stop: Callable[[], bool] = never,
) -> Neighbours:
    """Classifies val and test by the images of train that are nearest to them.

    k and temperature are chosen on val. Vectors are held in memory, float32 (n, D). Raises
    UsageError for bad data or options, Interrupted once `stop` returns True.
    """
    points = [(k, temperature) for k in ks for temperature in temperatures]
    _check(points)
    advanced = advancing(report or Silent(), stop, "interrupted: nothing is kept")
    parts = divided(data, seed, partial(advanced, "reading images"))
    encoder = load()
    encoder.check(options)
    vectors: dict[str, np.ndarray] = {}
    skips: list[Skip] = []
    for name, part in parts.parts.items():
        progress = partial(advanced, f"embedding {name}")
        vectors[name], failed = _vectors(encoder, part, options, progress)
        skips += failed
    parts = parts.without(skips)
    labels = {name: part.labels for name, part in parts.parts.items()}

    def scores(name: str, points: Sequence[Point]) -> dict[Point, np.ndarray]:
        return voted(vectors["train"], labels["train"], vectors[name], len(parts.classes), points)

    on_val = {point: measured(each, labels["val"]) for point, each in scores("val", points).items()}
    best = max(on_val, key=lambda point: (on_val[point], -point[0], -point[1]))
    name = "test" if "test" in labels else "val"
    figures = figures_of(scores(name, [best])[best], labels[name], parts.classes)
    return Neighbours(on_val, best, name, figures, parts)


def _vectors(
    encoder: Encoder, part: Part, options: EmbedOptions, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, list[Skip]]:
    """The vectors of the images that can be decoded, in order, and the others."""
    rows = encoder.embed_stream(part.paths, options)
    vectors, skips = vectors_and_skips(rows, part.paths, progress)
    return np.array(vectors, np.float32).reshape(len(vectors), encoder.dim(options)), skips
