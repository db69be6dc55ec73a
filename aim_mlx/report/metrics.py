"""How good predictions are: accuracy, balanced accuracy, mean average precision."""

import numpy as np


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The share of right classes; both (n,)."""
    return float((predicted == labels).mean())


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that occur in `labels` of the share found of each; both (n,)."""
    counts = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(counts))
    return float((right[counts > 0] / counts[counts > 0]).mean())


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Scores (n, C) and labels bool (n, C) -> the mean over the labels that occur.

    Images with equal scores count as one place in the ranking.
    """
    found = [
        _average_precision(scores[:, label], labels[:, label])
        for label in np.flatnonzero(labels.any(axis=0))
    ]
    return float(np.mean(found)) if found else 0.0


def _average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of each group of equals
    found = np.cumsum(right)[last]
    precision = found / (last + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def measured(logits: np.ndarray, labels: np.ndarray, balanced: bool = False) -> float:
    """What heads are chosen by: accuracy (balanced if asked), mAP for several labels."""
    if labels.ndim == 2:
        return mean_average_precision(logits, labels)
    predicted = logits.argmax(axis=1)
    return balanced_accuracy(predicted, labels) if balanced else accuracy(predicted, labels)
