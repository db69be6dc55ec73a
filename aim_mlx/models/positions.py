"""Where a patch sits: sin-cos positions for native resolution, bicubic resizing of learned ones."""

from functools import lru_cache

import numpy as np

from aim_mlx.backend import mx

_TEMPERATURE = 10_000.0
_CUBIC = -0.75  # the kernel constant of PyTorch's bicubic interpolation


@lru_cache(maxsize=16)
def sincos_positions(h: int, w: int, D: int) -> np.ndarray:
    """2-D sin-cos positions (h*w, D) float32 in raster order, D a multiple of 4.

    The first half of the channels encodes the column, the second the row; within a half sin,
    then cos. Source: apple/ml-aim, `get_sincos_pos_embed`.
    """
    omega = _TEMPERATURE ** -(np.arange(D // 4, dtype=np.float64) / (D / 4))

    def encode(coordinate: np.ndarray) -> np.ndarray:
        angle = coordinate.reshape(-1, 1) * omega
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    rows, columns = np.mgrid[:h, :w]
    return np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)


def resize_positions(positions: mx.array, h: int, w: int) -> mx.array:
    """Learned positions (1, n*n, D) of a square grid resized to (1, h*w, D), bicubic.

    Same kernel and alignment as PyTorch's `interpolate(mode="bicubic", align_corners=False)`.
    """
    n, D = round(positions.shape[1] ** 0.5), positions.shape[2]
    grid = positions.astype(mx.float32).reshape(n, n * D)
    grid = mx.array(_bicubic_weights(n, h)) @ grid
    grid = grid.reshape(h, n, D).transpose(1, 0, 2).reshape(n, h * D)
    grid = mx.array(_bicubic_weights(n, w)) @ grid
    grid = grid.reshape(w, h, D).transpose(1, 0, 2).reshape(1, h * w, D)
    return grid.astype(positions.dtype)


@lru_cache(maxsize=64)
def _bicubic_weights(source: int, target: int) -> np.ndarray:
    """The (target, source) float32 matrix that resamples one axis; the border value is repeated."""
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((target, source))
    for offset in (-1, 0, 1, 2):
        index = np.clip(first + offset, 0, source - 1)
        np.add.at(weights, (np.arange(target), index), _cubic(centre - (first + offset)))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel at |distance| <= 2."""
    x, a = np.abs(distance), _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
