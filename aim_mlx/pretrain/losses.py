"""What pre-training minimises (arXiv 2411.14402, section 3.1): pixels of patches, then words.

Both losses are sums here, to be divided by what is counted in the whole batch: so a batch may be
computed in parts, and every part weighs what it holds.
"""

import math
from dataclasses import dataclass

import numpy as np

from aim_mlx.backend import mx, on_gpu
from aim_mlx.models.decoder import PretrainingModel
from aim_mlx.models.layers import power_on_cpu

_PLACES = 64  # tokens of a batch are padded to a multiple
_EPSILON = 1e-6  # added to a patch's variance


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    pixels: float32 (B, H, W, 3) normalised
    prefix: int (B,) patches that the encoder sees from the start, 1 to N - 1
    ids:    int (B, L) tokens without a start token, the end token last; None to leave words out
    lengths: int (B,) tokens of each caption, 0 where there is none
    """

    pixels: np.ndarray
    prefix: np.ndarray
    ids: np.ndarray | None
    lengths: np.ndarray

    def arrays(self) -> tuple[mx.array, mx.array, mx.array | None, mx.array]:
        """Pixels, prefix, ids, and the places of the captions' tokens in ids, int (T,).

        Behind the places come -1 up to a multiple of _PLACES, so that few shapes occur.
        """
        pixels, prefix = mx.array(self.pixels), mx.array(self.prefix)
        if self.ids is None:
            return pixels, prefix, None, mx.array([], mx.int32)
        places = np.flatnonzero(np.arange(self.ids.shape[1]) < self.lengths[:, None])
        padded = np.full(-(-max(len(places), 1) // _PLACES) * _PLACES, -1, np.int32)
        padded[: len(places)] = places
        return pixels, prefix, mx.array(self.ids), mx.array(padded)

    def part(self, rows: slice) -> "Batch":
        ids = None if self.ids is None else self.ids[rows]
        return Batch(self.pixels[rows], self.prefix[rows], ids, self.lengths[rows])


def sample_prefixes(rng: np.random.Generator, count: int, patches: int) -> np.ndarray:
    """The prefix of each image: int (count,), uniform from 1 to patches - 1."""
    return rng.integers(1, patches, count).astype(np.int32)


def prefix_mask(prefix: mx.array, patches: int) -> mx.array:
    """Prefixes (B,) -> which patch may attend to which, bool (B, 1, N, N): k <= q or k < prefix."""
    places = mx.arange(patches)
    return (places <= places[:, None]) | (places < prefix[:, None, None, None])


def pixel_targets(pixels: mx.array, patch: int) -> mx.array:
    """Pixels (B, H, W, 3) -> each patch as (p, p, 3) with its own mean and variance taken out,
    float32 (B, N, 3 p^2)."""
    B, H, W, _ = pixels.shape
    h, w = H // patch, W // patch
    patches = pixels.reshape(B, h, patch, w, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(B, h * w, -1).astype(mx.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) * mx.rsqrt(variance + _EPSILON)


def pixel_loss(predictions: mx.array, targets: mx.array, prefix: mx.array) -> mx.array:
    """The squared error of the patches outside the prefix, averaged over each, and their sum.

    Predictions (B, N, P), of which output i is for patch i + 1, and targets (B, N, P).
    """
    error = predictions[:, :-1].astype(mx.float32) - targets[:, 1:]
    counted = mx.arange(1, targets.shape[1]) >= prefix[:, None]
    return ((error * error).mean(axis=-1) * counted).sum()


def text_loss(logits: mx.array, ids: mx.array, counted: mx.array) -> mx.array:
    """The summed cross-entropy of tokens: logits (T, V), ids (T,), and bool (T,) which count."""
    logits = logits.astype(mx.float32)
    right = mx.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    return ((_log_sum_exp(logits) - right) * counted).sum()


def counts(batch: Batch, patches: int) -> tuple[int, int]:
    """How many patches and tokens of a batch count."""
    return int((patches - batch.prefix).sum()), int(batch.lengths.sum())


def losses(
    model: PretrainingModel,
    pixels: mx.array,
    prefix: mx.array,
    ids: mx.array | None,
    places: mx.array,
    checkpointed: bool = False,
) -> tuple[mx.array, mx.array]:
    """The sums of the pixel and the text loss over a batch's arrays, each () float32.

    The network computes in its parameters' dtype; targets and losses are float32.
    """
    patch = model.config.vision.patch_size
    patches = pixels.shape[1] * pixels.shape[2] // patch**2
    # The last token predicts nothing.
    inputs = None if ids is None else ids[:, :-1]
    mask, dtype = prefix_mask(prefix, patches), model.connector.weight.dtype
    image, text = model(pixels.astype(dtype), mask, inputs, checkpointed)
    targets = pixel_targets(pixels, patch)
    of_pixels = pixel_loss(model.decoder.pixel_head(image), targets, prefix)
    if text is None or ids is None:
        return of_pixels, mx.array(0.0)
    # Logits of the padding would cost more than all the rest of a small network.
    chosen = text.reshape(-1, text.shape[-1])[mx.maximum(places, 0)]
    wanted = ids.reshape(-1)[mx.maximum(places, 0)]
    return of_pixels, text_loss(model.decoder.text_head(chosen), wanted, places >= 0)


def _log_sum_exp(logits: mx.array) -> mx.array:
    """Over the last axis; on the CPU with the exponential that is fast there."""
    if on_gpu():
        return mx.logsumexp(logits, axis=-1)
    largest = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    total = power_on_cpu(math.e, logits - largest).sum(axis=-1)
    return largest[..., 0] + mx.log(total)
