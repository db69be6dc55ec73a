"""How good probabilities and predictions are, for one class or several, in plain numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

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


_BINS = 15  # of the calibration, as in Guo et al. (arXiv 1706.04599)
_Z = 1.959963984540054  # of a two-sided interval of 95%


def figures_of(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict:
    """Probabilities (n, C) beside labels, int (n,) or 0 and 1 (n, C) -> figures as JSON values.

    `accuracy` with its Wilson interval of 95%, `balanced_accuracy` (the mean recall of the classes
    that have images), `log_loss`, calibration in bins with its expected error `ece`, and a record
    for each class. For several labels a threshold of 0.5 decides: `exact_match` takes the place of
    accuracy, and there is `mean_average_precision`.
    """
    if labels.ndim == 2:
        return _of_several(probabilities, labels.astype(bool), classes)
    said = probabilities.argmax(axis=1)
    right = said == labels
    # Of each class: found, said and wanted. A table of all pairs of 10,000 would take 800 MB.
    counts = [np.bincount(part, minlength=len(classes)) for part in (said[right], said, labels)]
    per_class = [
        {"name": name, **_counts(*(int(each[i]) for each in counts))}
        for i, name in enumerate(classes)
    ]
    recalls = [each["recall"] for each in per_class if each["recall"] is not None]
    found = {
        "images": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_interval": wilson(int(right.sum()), len(right)),
        "balanced_accuracy": float(np.mean(recalls)),
        "majority": float(counts[2].max() / len(labels)),
    }
    if len(classes) > 5:
        rank = (probabilities > probabilities[np.arange(len(labels)), labels][:, None]).sum(axis=1)
        found["top5_accuracy"] = float((rank < 5).mean())
    of_truth = probabilities[np.arange(len(labels)), labels]
    return found | {
        "log_loss": float(-np.log(np.maximum(of_truth, 1e-12)).mean()),
        **_calibration(probabilities.max(axis=1), right),
        "classes": per_class,
    }


def _of_several(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict:
    said = probabilities >= 0.5
    exact = (said == labels).all(axis=1)
    per_class = []
    for i, name in enumerate(classes):
        both = int((said[:, i] & labels[:, i]).sum())
        counts = _counts(both, int(said[:, i].sum()), int(labels[:, i].sum()))
        precision = average_precision(probabilities[:, i], labels[:, i])
        per_class.append({"name": name, **counts, "average_precision": precision})
    precisions = [p for each in per_class if (p := each["average_precision"]) is not None]
    scores = [each["f1"] for each in per_class if each["f1"] is not None]
    return {
        "images": len(labels),
        "exact_match": float(exact.mean()),
        "exact_match_interval": wilson(int(exact.sum()), len(exact)),
        "mean_average_precision": float(np.mean(precisions)) if precisions else 0.0,
        "macro_f1": float(np.mean(scores)) if scores else 0.0,
        **_calibration(
            np.maximum(probabilities, 1 - probabilities).ravel(), (said == labels).ravel()
        ),
        "classes": per_class,
    }


def near_chance(figures: Mapping[str, Any]) -> str | None:
    """A warning where figures are hardly better than those of a guess, else None.

    With one class an image, where the interval of accuracy reaches down to what the largest class
    alone gives; with several, where mean average precision is within 5% of a random order's.
    """
    if "accuracy" in figures:
        guess, found = figures["majority"], figures["accuracy"]
        near = figures["accuracy_interval"][0] <= guess
        how, what = "always saying the largest class", "accuracy"
    else:
        there = [each["images"] for each in figures["classes"] if each["images"]]
        guess = sum(there) / max(1, len(there) * figures["images"])
        found = figures["mean_average_precision"]
        near = found < guess + 0.05
        how, what = "a random order", "mean average precision"
    if not near:
        return None
    return (
        f"near chance: {what} {found:.1%} on {figures['images']:,} images is not clearly above "
        f"the {guess:.1%} of {how}: more images, other layers, another learning rate or a look at "
        "the labels may help"
    )


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many images of class i (rows) were taken for class j: int64 (C, C)."""
    count = probabilities.shape[1]
    flat = labels * count + probabilities.argmax(axis=1)
    return np.bincount(flat, minlength=count**2).reshape(count, count)


def wilson(right: int, count: int) -> list[float]:
    """The interval of 95% for a share of `count`, after Wilson (1927): holds for 0 and 1 too."""
    share, z2 = right / count, _Z**2
    middle = share + z2 / (2 * count)
    spread = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    low, high = ((middle + sign * spread) / (1 + z2 / count) for sign in (-1, 1))
    return [max(0.0, low), min(1.0, high)]


def average_precision(scores: np.ndarray, wanted: np.ndarray) -> float | None:
    """The mean, over the images wanted, of the precision at their rank; None without any.

    Equal scores share a rank, the last of theirs.
    """
    if not wanted.any():
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(wanted[order])
    last = np.searchsorted(-scores[order], -scores[order], side="right") - 1
    precision = hits[last] / (last + 1)
    return float(precision[wanted[order]].mean())


def _counts(both: int, said: int, wanted: int) -> dict[str, Any]:
    """Precision, recall and their harmonic mean; None where there is nothing to divide by."""
    return {
        "images": int(wanted),
        "precision": float(both / said) if said else None,
        "recall": float(both / wanted) if wanted else None,
        "f1": float(2 * both / (said + wanted)) if said + wanted else None,
    }


def _calibration(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Bins of equal width of the confidence, those with images; ECE is their weighted gap."""
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    bins = []
    for i in np.unique(place):
        members = place == i
        bins.append(
            {
                "from": float(i / _BINS),
                "to": float((i + 1) / _BINS),
                "images": int(members.sum()),
                "confidence": float(confidence[members].mean()),
                "accuracy": float(right[members].mean()),
            }
        )
    gap = sum(each["images"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return {"ece": float(gap / len(right)), "calibration": bins}
