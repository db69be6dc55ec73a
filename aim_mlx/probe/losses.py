"""The loss of a head, for one label an image or any number of them."""

from dataclasses import dataclass, replace

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.errors import UsageError


@dataclass(frozen=True)
class Targets:
    """What images should be called.

    `values` is int32 (n,), a class each, or float32 (n, C) of zeros and ones for several labels.
    `weights` (n,), or (C,) for several labels, say how much each image, or each label that is
    there, counts. Made by `targets_of`.
    """

    values: np.ndarray
    weights: np.ndarray
    smoothing: float = 0.0

    @property
    def multi_label(self) -> bool:
        return self.values.ndim == 2

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: np.ndarray) -> "Targets":
        """Those of some of the images."""
        weights = self.weights if self.multi_label else self.weights[rows]
        return replace(self, values=self.values[rows], weights=weights)


def targets_of(
    labels: np.ndarray, classes: int, *, smoothing: float = 0.0, balanced: bool = False
) -> Targets:
    """Labels, integers (n,) or bool (n, C), as targets.

    `smoothing` is the share of a target that is spread over all classes. `balanced` makes every
    class count the same in sum; with several labels, each label's presence as much as its absence.
    Raises UsageError for labels that are not of these classes.
    """
    labels = check_labels(labels, classes)
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=classes)
        weights = np.ones(len(labels))
        if balanced:
            weights = len(labels) / ((counts > 0).sum() * counts[labels])
        return Targets(labels.astype(np.int32), weights.astype(np.float32), smoothing)
    weights = np.ones(classes)
    if balanced:
        there = labels.sum(axis=0)
        weights = np.where(there > 0, (len(labels) - there) / np.maximum(there, 1), 1.0)
    return Targets(labels.astype(np.float32), weights.astype(np.float32), smoothing)


def check_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """The labels as an array; raises UsageError for those that are not of these classes."""
    labels = np.asarray(labels)
    if labels.ndim == 2:
        if labels.shape[1] != classes or not np.isin(labels, (0, 1)).all():
            raise UsageError(
                f"expected labels (n, {classes}) of 0 and 1, got {labels.dtype} {labels.shape}"
            )
        return labels.astype(bool)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(
            f"expected whole numbers (n,) or bool (n, {classes}) as labels, got {labels.dtype} "
            f"{labels.shape}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"labels must be from 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)


def total_weight(targets: Targets) -> float:
    """What the losses of all these images are divided by to give their mean."""
    if targets.multi_label:
        return float(targets.values.size)
    return float(targets.weights.sum(dtype=np.float64))


def loss_sum(logits: mx.array, targets: Targets) -> mx.array:
    """The weighted sum of the losses of images whose logits are (B, C)."""
    values, weights = mx.array(targets.values), mx.array(targets.weights)
    smoothing = targets.smoothing
    if targets.multi_label:
        wanted = values * (1 - smoothing) + smoothing / 2
        missed, raised = mx.logaddexp(0.0, -logits), mx.logaddexp(0.0, logits)
        return (weights * wanted * missed + (1 - wanted) * raised).sum()
    logs = logits - mx.logsumexp(logits, axis=1, keepdims=True)
    right = mx.take_along_axis(logs, values[:, None], axis=1)[:, 0]
    return -(weights * ((1 - smoothing) * right + smoothing * logs.mean(axis=1))).sum()


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Logits (n, C) -> a softmax over the classes, or a sigmoid for each label; float32."""
    logits = logits.astype(np.float64)
    if multi_label:
        return (np.exp(-np.logaddexp(0.0, -logits))).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
