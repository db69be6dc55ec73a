"""Mean and variance of each channel over a batch, for batch normalisation without gains."""

from collections.abc import Iterable
from dataclasses import dataclass

from aim_mlx.backend import mx

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

    def merged(self, other: "Moments") -> "Moments":
        """Of both together (Chan et al. 1979), without the cancellation of sums of squares."""
        count = self.count + other.count
        share, apart = other.count / count, other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance
        return Moments(
            count,
            self.mean + share * apart,
            variance + share * (1 - share) * apart * apart,
        )


def measure(parts: Iterable[mx.array]) -> Moments:
    """The moments of vectors (..., D) that come in parts."""
    total: Moments | None = None
    for part in parts:
        part = part.reshape(-1, part.shape[-1])
        mean = part.mean(axis=0)
        apart = part - mean
        found = Moments(part.shape[0], mean, (apart * apart).mean(axis=0))
        total = found if total is None else total.merged(found)
    if total is None:
        raise ValueError("no parts to measure")
    return total
