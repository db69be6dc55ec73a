"""Mean and variance of each channel over a batch, for batch normalisation without gains."""

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


def measure(vectors: mx.array) -> Moments:
    """The moments of vectors (..., D)."""
    vectors = vectors.reshape(-1, vectors.shape[-1])
    mean = vectors.mean(axis=0)
    apart = vectors - mean
    return Moments(len(vectors), mean, (apart * apart).mean(axis=0))
