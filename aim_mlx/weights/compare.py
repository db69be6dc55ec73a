"""How far two checkpoints of one model agree: the cosine of their embeddings of a few pictures.

Each checkpoint runs block by block and holds the weights of one block at a time, in float32, so
that the largest model needs half a gigabyte. What shows is the cost of rounding the weights.
"""

from collections.abc import Iterator

import numpy as np

from aim_mlx.backend import mx, nn
from aim_mlx.config import PreprocessConfig, VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.models.layers import Block
from aim_mlx.models.vision import Preprocessor
from aim_mlx.weights.checkpoint import Checkpoint
from aim_mlx.weights.load import iter_weights
from aim_mlx.weights.sizes import IMAGE

_NATIVE_PATCHES = 16  # a side, where a model has no size of its own


def similarity(before: Checkpoint, after: Checkpoint) -> list[float]:
    """The cosine of the two image vectors (mean of the final tokens) of each probe picture.

    Of a LiT model the image tower is compared. Raises UsageError for checkpoints of other sizes.
    """
    if before.vision != after.vision:
        raise UsageError("only two checkpoints of the same sizes can be compared")
    pixels = _pixels(before.vision, before.preprocess)
    a, b = (_vectors(checkpoint, pixels) for checkpoint in (before, after))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return [min(1.0, float(cosine)) for cosine in (a * b).sum(axis=1) / lengths]


def probe_pictures(size: int) -> np.ndarray:
    """Four seeded pictures, uint8 (4, size, size, 3): a gradient, shapes, clouds and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    gradient = np.stack([x, y, 1 - (x + y) / 2], axis=-1)
    shapes = np.ones((size, size, 3)) * [0.2, 0.3, 0.5]
    shapes[(x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.08] = [0.9, 0.6, 0.1]
    shapes[(abs(x - 0.75) < 0.15) & (abs(y - 0.3) < 0.2)] = [0.1, 0.7, 0.3]
    clouds = np.zeros((size, size, 3))
    for frequency in (1, 2, 3, 5, 8):
        phase = rng.uniform(0, 2 * np.pi, (2, 3))
        wave = np.sin(2 * np.pi * frequency * x[..., None] + phase[0])
        clouds += wave * np.cos(2 * np.pi * frequency * y[..., None] + phase[1]) / frequency
    clouds = (clouds - clouds.min()) / (clouds.max() - clouds.min())
    noise = rng.random((size, size, 3))
    return (np.stack([gradient, shapes, clouds, noise]) * 255).astype(np.uint8)


def _pixels(config: VisionConfig, preprocess: PreprocessConfig) -> mx.array:
    """The pictures at the model's own size, normalised: float32 (4, S, S, 3)."""
    pictures = probe_pictures(config.image_size or _NATIVE_PATCHES * config.patch_size)
    scaled = (pictures / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    return mx.array(scaled.astype(np.float32))


def _vectors(checkpoint: Checkpoint, pixels: mx.array) -> np.ndarray:
    """Pixels (B, S, S, 3) -> float64 (B, D), the mean of the final tokens."""
    x = pixels
    for stage in _stages(checkpoint):
        x = stage(x)
        mx.eval(x)
    return np.array(x.mean(axis=1)).astype(np.float64)


def _stages(checkpoint: Checkpoint) -> Iterator[nn.Module]:
    """The encoder in pieces, each with its weights; one is made when the last is done."""
    config, start = checkpoint.vision, IMAGE if checkpoint.kind == "lit" else ""
    yield _filled(_Patches(config), checkpoint, f"{start}preprocessor.")
    for i in range(config.num_blocks):
        yield _filled(Block(config), checkpoint, f"{start}trunk.blocks.{i}.")
    norm = nn.RMSNorm(config.embed_dim, config.rms_norm_eps)
    yield _filled(norm, checkpoint, f"{start}trunk.post_trunk_norm.")


class _Patches(Preprocessor):
    """The preprocessor with a grid of its own: pixels (B, S, S, 3) -> tokens (B, N, D)."""

    def __call__(self, pixels: mx.array) -> mx.array:  # type: ignore[override]
        side = pixels.shape[1] // self._config.patch_size
        return super().__call__(pixels, (side, side))


def _filled(module: nn.Module, checkpoint: Checkpoint, prefix: str) -> nn.Module:
    weights = iter_weights(checkpoint, mx.float32, prefix)
    module.load_weights([(name.removeprefix(prefix), array) for name, array in weights])
    return module
