"""What pre-training minimises (arXiv 2411.14402, section 3.1): pixels of patches, then words.

Both losses are sums here, to be divided by what is counted in the whole batch: so a batch may be
computed in parts, and every part weighs what it holds.
"""

from dataclasses import dataclass

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.models.decoder import PretrainingModel

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
        """In the order in which `losses` takes them."""
        ids = None if self.ids is None else mx.array(self.ids)
        return mx.array(self.pixels), mx.array(self.prefix), ids, mx.array(self.lengths)

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


def text_loss(logits: mx.array, ids: mx.array, lengths: mx.array) -> mx.array:
    """The cross-entropy of the tokens of captions, the end token too, and their sum.

    Logits (B, L, V), of which output i is for token i of ids (B, L); lengths (B,).
    """
    logits = logits.astype(mx.float32)
    right = mx.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    counted = mx.arange(ids.shape[1]) < lengths[:, None]
    return ((mx.logsumexp(logits, axis=-1) - right) * counted).sum()


def counts(batch: Batch, patches: int) -> tuple[int, int]:
    """How many patches and tokens of a batch count."""
    return int((patches - batch.prefix).sum()), int(batch.lengths.sum())


def losses(
    model: PretrainingModel,
    pixels: mx.array,
    prefix: mx.array,
    ids: mx.array | None,
    lengths: mx.array,
    checkpointed: bool = False,
) -> tuple[mx.array, mx.array]:
    """The sums of the pixel and the text loss over a batch's arrays, each ()."""
    patch = model.config.vision.patch_size
    patches = pixels.shape[1] * pixels.shape[2] // patch**2
    # The last token predicts nothing.
    inputs = None if ids is None else ids[:, :-1]
    image, text = model(pixels, prefix_mask(prefix, patches), inputs, checkpointed)
    targets = pixel_targets(pixels, patch)
    of_pixels = pixel_loss(model.decoder.pixel_head(image), targets, prefix)
    if text is None or ids is None:
        return of_pixels, mx.array(0.0)
    return of_pixels, text_loss(model.decoder.text_head(text), ids, lengths)
