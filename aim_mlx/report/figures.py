"""How good probabilities and predictions are, for one class or several, in plain numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BINS = 15  # of the calibration, as in Guo et al. (arXiv 1706.04599)
_Z = 1.959963984540054  # of a two-sided interval of 95%


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean recall of the classes that occur in `labels`; both (n,)."""
    counts = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(counts))
    return float((right[counts > 0] / counts[counts > 0]).mean())


def average_precision(scores: np.ndarray, wanted: np.ndarray) -> float | None:
    """The mean, over the images wanted, of the precision at their rank; None without any.

    Equal scores share a rank, the last of theirs.
    """
    if not wanted.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, wanted = scores[order], wanted[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of each group of equals
    hits = np.cumsum(wanted)[last]
    # Heads are chosen by this sum: another order of it would go on to other bits.
    return float((np.diff(hits, prepend=0) * (hits / (last + 1))).sum() / hits[-1])


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Scores (n, C) and labels 0 or 1 (n, C) -> the mean over the labels that occur."""
    wanted = labels.astype(bool)
    return _mean([average_precision(scores[:, i], wanted[:, i]) for i in range(labels.shape[1])])


def measured(logits: np.ndarray, labels: np.ndarray, balanced: bool = False) -> float:
    """Logits (n, C) and labels -> the figure to choose by, 0 to 1.

    For labels (n,) the accuracy, with `balanced` the mean over the classes; for bool (n, C) the
    mean average precision.
    """
    if labels.ndim == 2:
        return mean_average_precision(logits, labels)
    predicted = logits.argmax(axis=1)
    if balanced:
        return balanced_accuracy(predicted, labels)
    return float((predicted == labels).mean())


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
    # Right, said and wanted of each class. A table of all pairs of 10,000 would take 800 MB.
    counts = [np.bincount(part, minlength=len(classes)) for part in (said[right], said, labels)]
    per_class = [
        {"name": name, **_counts(*numbers)}
        for name, *numbers in zip(classes, *(each.tolist() for each in counts), strict=True)
    ]
    of_truth = probabilities[np.arange(len(labels)), labels]
    figures = {
        "images": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_interval": wilson(int(right.sum()), len(right)),
        "balanced_accuracy": _mean([each["recall"] for each in per_class]),
        "majority": float(counts[2].max() / len(labels)),
    }
    if len(classes) > 5:
        rank = (probabilities > of_truth[:, None]).sum(axis=1)
        figures["top5_accuracy"] = float((rank < 5).mean())
    return figures | {
        "log_loss": float(-np.log(np.maximum(of_truth, 1e-12)).mean()),
        **_calibration(probabilities.max(axis=1), right),
        "classes": per_class,
    }


def _of_several(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict:
    said = probabilities >= 0.5
    exact = (said == labels).all(axis=1)
    per_class = []
    for i, name in enumerate(classes):
        both = (said[:, i] & labels[:, i]).sum()
        counts = _counts(int(both), int(said[:, i].sum()), int(labels[:, i].sum()))
        precision = average_precision(probabilities[:, i], labels[:, i])
        per_class.append({"name": name, **counts, "average_precision": precision})
    confidence = np.maximum(probabilities, 1 - probabilities)
    return {
        "images": len(labels),
        "exact_match": float(exact.mean()),
        "exact_match_interval": wilson(int(exact.sum()), len(exact)),
        "mean_average_precision": _mean([each["average_precision"] for each in per_class]),
        "macro_f1": _mean([each["f1"] for each in per_class]),
        **_calibration(confidence.ravel(), (said == labels).ravel()),
        "classes": per_class,
    }


def _mean(values: Sequence[float | None]) -> float:
    """The mean of those that are there, 0 without any."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else 0.0


def near_chance(figures: Mapping[str, Any]) -> str | None:
    """A warning where figures are hardly better than those of a guess, else None.

    With one class an image, where the interval of accuracy reaches down to what the largest class
    alone gives; with several, where mean average precision is within 5% of a random order's.
    """
    if "accuracy" in figures:
        guess, value = figures["majority"], figures["accuracy"]
        near = figures["accuracy_interval"][0] <= guess
        how, what = "always saying the largest class", "accuracy"
    else:
        there = [each["images"] for each in figures["classes"] if each["images"]]
        guess = sum(there) / max(1, len(there) * figures["images"])
        value = figures["mean_average_precision"]
        near = value < guess + 0.05
        how, what = "a random order", "mean average precision"
    if not near:
        return None
    return (
        f"near chance: {what} {value:.1%} on {figures['images']:,} images is not clearly above "
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


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, list[float]]:
    """Of two on the same images, bool (n,) which were right: the first's share above the second's.

    With its interval of 95%, for pairs, after Agresti and Min (2005): half an image is added to
    each of the four cases.
    """
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    count = len(first) + 2
    middle = (gained - lost) / count
    spread = _Z * math.sqrt((gained + lost + 1) / count - middle**2) / math.sqrt(count)
    return (gained - lost) / len(first), [max(-1.0, middle - spread), min(1.0, middle + spread)]


def _counts(both: int, said: int, wanted: int) -> dict[str, Any]:
    """Precision, recall and their harmonic mean; None where there is nothing to divide by."""
    return {
        "images": wanted,
        "precision": both / said if said else None,
        "recall": both / wanted if wanted else None,
        "f1": 2 * both / (said + wanted) if said + wanted else None,
    }


def _calibration(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Bins of equal width of the confidence, those with images; ECE is their weighted gap."""
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    bins = [
        {
            "from": i / _BINS,
            "to": (i + 1) / _BINS,
            "images": int((place == i).sum()),
            "confidence": float(confidence[place == i].mean()),
            "accuracy": float(right[place == i].mean()),
        }
        for i in np.unique(place).tolist()
    ]
    gap = sum(each["images"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return {"ece": float(gap / len(right)), "calibration": bins}
