"""k nearest neighbours on a data set: k is chosen on val, the figures are of test."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from aim_mlx.data.parts import Part
from aim_mlx.data.splits import Data, DataSet
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.errors import Interrupted
from aim_mlx.images import Skip
from aim_mlx.probe.knn import KS, TEMPERATURE, check_neighbours, knn_scores
from aim_mlx.report.figures import figures_of, measured

Advanced = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Neighbours:
    """The score of each k on val (accuracy, or mAP for several labels), the best k, and figures.

    The figures are those of `measured_on`, "test" where there is one.
    """

    scores: dict[int, float]
    k: int
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
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    advanced: Advanced = lambda what, done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Neighbours:
    """Classifies val and test by the images of train that are nearest to them.

    Nothing is trained; vectors are held in memory, float32 (n, D). Raises UsageError for bad data
    or options, Interrupted once `stop` returns True.
    """

    def told(what: str, done: int, total: int) -> None:
        advanced(what, done, total)
        if stop():
            raise Interrupted("interrupted: nothing is kept")

    check_neighbours(ks, temperature)
    found = data.divided(seed, partial(told, "reading images"))
    encoder = load()
    encoder.check(options)
    vectors: dict[str, np.ndarray] = {}
    skips: list[Skip] = []
    for name, part in found.parts.items():
        vectors[name], failed = _vectors(encoder, part, options, partial(told, f"embedding {name}"))
        skips += failed
    rest = found.without(skips)

    def scores(name: str, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        train = rest.parts["train"].labels
        count = len(rest.classes)
        return knn_scores(vectors["train"], train, vectors[name], count, wanted, temperature)

    on_val = scores("val", ks)
    chosen = {k: measured(each, rest.parts["val"].labels) for k, each in on_val.items()}
    best = max(chosen, key=lambda k: (chosen[k], -k))
    name = "test" if "test" in rest.parts else "val"
    votes = scores(name, [best])[best]
    figures = figures_of(votes, rest.parts[name].labels, rest.classes)
    return Neighbours(chosen, best, name, figures, rest)


def _vectors(
    encoder: Encoder, part: Part, options: EmbedOptions, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, list[Skip]]:
    """The vectors of the images that can be decoded, in order, and the others."""
    vectors, skips = [], []
    with closing(encoder.embed_stream(part.paths, options)) as rows:
        for row in rows:
            if row.failure is not None:
                path = part.paths[row.index]
                skips.append(Skip(path, row.failure.reason, row.failure.detail))
            else:
                vectors.append(row.vector)
            progress(row.index + 1, len(part))
    return np.array(vectors, np.float32).reshape(len(vectors), encoder.dim(options)), skips
