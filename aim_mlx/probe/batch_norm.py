"""Mean and variance of each channel over a batch, for batch normalisation without gains.

Those of an image's frozen tokens stay, so they are measured once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.probe.chunks import Part, over_chunks, rounds

EPSILON = 1e-6
MOMENTUM = 0.1  # the share of a new batch in the running moments, PyTorch's default


@dataclass(frozen=True)
class Normalisation:
    """Subtract `mean` (D,), multiply by `inverse` (D,)."""

    mean: mx.array
    inverse: mx.array

    @classmethod
    def by(cls, mean: mx.array, variance: mx.array) -> "Normalisation":
        return cls(mean, mx.rsqrt(variance + EPSILON))

    def __call__(self, values: mx.array) -> mx.array:
        return (values - self.mean) * self.inverse


@dataclass(frozen=True)
class Moments:
    """Of `count` vectors: `mean` (D,) and biased `variance` (D,)."""

    count: int
    mean: mx.array
    variance: mx.array

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation.by(self.mean, self.variance)


def measure(vectors: mx.array) -> Moments:
    """The moments of vectors (..., D)."""
    vectors = vectors.reshape(-1, vectors.shape[-1])
    mean = vectors.mean(axis=0)
    apart = vectors - mean
    return Moments(len(vectors), mean, (apart * apart).mean(axis=0))


class ImageMoments:
    """Those of `count` images with tokens (N, D), each measured when it is first asked for.

    They take 8 bytes x D an image.
    """

    def __init__(self, count: int, shape: tuple[int, int]):
        self._tokens, D = shape
        self._measured = np.zeros(count, bool)
        self._values = np.empty((2, count, D), np.float32)

    def of(self, rows: np.ndarray, tokens: Sequence[np.ndarray]) -> Moments:
        """The moments of a batch: images `rows`, whose tokens are (N, D) each."""
        new = np.flatnonzero(~self._measured[rows])
        if len(new):
            self._values[:, rows[new]] = measured([tokens[int(place)] for place in new])
            self._measured[rows] = True
        means, variances = (mx.array(each) for each in self._values[:, rows])
        mean = means.mean(axis=0)
        apart = means - mean
        # Those of equally many tokens each (Chan et al. 1979), without sums of squares that cancel.
        moments = Moments(len(rows) * self._tokens, mean, (variances + apart * apart).mean(axis=0))
        mx.eval(moments.mean, moments.variance)
        return moments


def measured(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Means and biased variances, float32 (2, B, D), of images with tokens (N, D) each."""
    values = np.empty((2, len(tokens), tokens[0].shape[1]), np.float32)
    with rounds(tokens) as work:
        for together in work:
            for part, places, found in over_chunks(together, _of_chunk):
                values[:, part.rows[places]] = np.array(found)
    return values


def _of_chunk(part: Part, places: slice, tokens: mx.array) -> mx.array:
    mean = tokens.mean(axis=1, keepdims=True)
    apart = tokens - mean
    return mx.stack([mean[:, 0], (apart * apart).mean(axis=1)])
