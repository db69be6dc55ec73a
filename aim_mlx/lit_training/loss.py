"""The contrastive loss of CLIP (arXiv 2103.00020, figure 3)."""

import math

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.models.pooling import normalized

LARGEST_LOG_SCALE = math.log(100.0)


def contrastive_loss(
    images: mx.array, texts: mx.array, log_scale: mx.array, left_out: np.ndarray
) -> mx.array:
    """Images and texts (B, P), row i of one belonging to row i of the other -> their loss ().

    The mean cross-entropy of finding each image's text among the batch's, and each text's image,
    by cosines times exp(log_scale). `left_out` (B, B) bool marks those not to tell apart.
    """
    logits = mx.exp(log_scale.astype(mx.float32)) * (normalized(images) @ normalized(texts).T)
    logits = mx.where(mx.array(left_out), -math.inf, logits)
    right = mx.diag(logits)
    by_image = mx.logsumexp(logits, axis=1) - right
    by_text = mx.logsumexp(logits, axis=0) - right
    return (by_image.mean() + by_text.mean()) / 2


def no_counterexamples(images: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Which pairs do not count against each other: bool (B, B), False on the diagonal.

    Those that share the image, by its number (B,), or the text, by its token ids (B, L).
    """
    texts = np.unique(ids, axis=0, return_inverse=True)[1].reshape(-1)
    same = (images[:, None] == images) | (texts[:, None] == texts)
    np.fill_diagonal(same, False)
    return same
