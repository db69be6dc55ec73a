"""Figures of predictions, beside scikit-learn's where it has them."""

from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from aim_mlx.report.figures import (
    average_precision,
    confusion,
    difference,
    figures_of,
    near_chance,
    wilson,
)

CLASSES = [f"class {i}" for i in range(7)]


def predictions(count: int = 400, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count) ** 2 // classes
    logits = rng.normal(0, 1, (count, classes))
    logits[np.arange(count), labels] += 1.5
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


def test_figures_of_one_class_an_image_equal_those_of_scikit_learn():
    probabilities, labels = predictions()
    said = probabilities.argmax(axis=1)
    found = figures_of(probabilities, labels, CLASSES)
    present = np.unique(labels)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, said))
    each_class: Any = None
    recalls: Any = metrics.recall_score(labels, said, average=each_class, labels=present)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["log_loss"] == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=range(7))
    )
    assert found["top5_accuracy"] == pytest.approx(
        metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(7))
    )
    undefined: Any = np.nan
    scores: Any = metrics.precision_recall_fscore_support(
        labels, said, labels=range(7), zero_division=undefined
    )
    precision, recall, f1, count = scores
    for i, each in enumerate(found["classes"]):
        assert each["images"] == count[i]
        for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
            if each[name] is None:
                assert np.isnan(expected[i])
            else:
                assert each[name] == pytest.approx(expected[i])


def test_figures_of_several_classes_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 7)) < 0.3).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-(2 * labels - 1 + rng.normal(0, 1, labels.shape))))
    found = figures_of(probabilities, labels, CLASSES)
    said = probabilities >= 0.5
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(labels, said))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, said, average="macro"))
    assert found["mean_average_precision"] == pytest.approx(
        metrics.average_precision_score(labels, probabilities, average="macro")
    )


def test_average_precision_treats_equal_scores_as_one_rank():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    wanted = np.array([False, True, False, True, True])
    assert average_precision(scores, wanted) == pytest.approx(
        metrics.average_precision_score(wanted, scores)
    )
    assert average_precision(scores, np.zeros(5, bool)) is None


def test_confusions_are_counted_by_what_is_and_what_was_said():
    probabilities, labels = predictions()
    expected = metrics.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(7))
    np.testing.assert_array_equal(confusion(probabilities, labels), expected)


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    # Of R's prop.test without continuity correction.
    [(8, 10, (0.4901625, 0.9433178)), (0, 20, (0.0, 0.1611252)), (20, 20, (0.8388748, 1.0))],
)
def test_the_interval_is_wilsons(right, count, interval):
    assert wilson(right, count) == pytest.approx(interval, abs=1e-6)


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy():
    """Each bin counts as many times as it has images."""
    sure = np.array([0.95] * 10 + [0.62] * 30)
    probabilities = np.stack([sure, 1 - sure], axis=1)
    labels = np.array([0] * 9 + [1] + [0] * 18 + [1] * 12)
    found = figures_of(probabilities, labels, ["a", "b"])
    assert found["ece"] == pytest.approx(0.25 * 0.05 + 0.75 * 0.02)
    assert [each["images"] for each in found["calibration"]] == [30, 10]


@pytest.mark.parametrize(("right", "near"), [(20, True), (24, True), (36, False)])
def test_a_result_near_that_of_the_largest_class_is_a_warning(right, near):
    """Of 40 images 20 are of the largest class; 24 right are no proof of learning."""
    labels = np.repeat([0, 1, 2, 3], [20, 10, 5, 5])
    said = labels.copy()
    said[right:] = (labels[right:] + 1) % 4
    warning = near_chance(figures_of(np.eye(4)[said], labels, list("abcd")))
    assert (warning is not None) == near
    if warning:
        assert f"{right / 40:.1%} on 40 images is not clearly above the 50.0%" in warning


@pytest.mark.parametrize("strength", [0, 3])
def test_a_random_order_of_several_classes_is_a_warning(strength):
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 4)) < 0.3).astype(np.float32)
    logits = strength * labels + rng.normal(size=labels.shape)
    figures = figures_of(1 / (1 + np.exp(-logits)), labels, list("abcd"))
    assert (near_chance(figures) is not None) == (strength == 0)


def test_figures_hold_for_a_single_image_and_a_class_without_images():
    found = figures_of(np.array([[1.0, 0.0, 0.0]]), np.array([0]), ["a", "b", "c"])
    assert found["accuracy"] == found["balanced_accuracy"] == 1.0 and found["ece"] == 0
    assert found["classes"][1]["recall"] is None and found["classes"][1]["precision"] is None


def test_the_difference_of_two_on_the_same_images_has_an_interval_for_pairs():
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:70] = second[:64] = True
    second[[70, 71, 72, 73]] = True  # four that the first lost
    second[:4] = False
    value, (low, high) = difference(first, second)
    # Ten gained and four lost of 100, worked by hand: 6 / 102 +- 1.96 sqrt(15 - 36 / 102) / 102.
    assert value == pytest.approx(0.06)
    assert (low, high) == pytest.approx((-0.01472, 0.13236), abs=1e-4)
    assert difference(first, first)[0] == 0 and difference(second, first)[0] == pytest.approx(-0.06)
