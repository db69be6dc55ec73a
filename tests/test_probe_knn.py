"""k nearest neighbours as a classifier."""

import numpy as np
import pytest

from aim_mlx.errors import UsageError
from aim_mlx.probe.knn import knn_scores


def by_hand(vectors, labels, query, classes, k, temperature) -> np.ndarray:
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    near = np.argsort(-cosines, kind="stable")[:k]
    votes = np.exp(cosines[near] / temperature)
    scores = [(votes[labels[near] == c]).sum() for c in range(classes)]
    return np.array(scores) / votes.sum()


def data(seed: int = 0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(40, 8)).astype(np.float32),
        rng.integers(0, 3, 40),
        rng.normal(size=(5, 8)).astype(np.float32),
    )


def test_scores_are_the_weighted_votes_of_the_nearest():
    vectors, labels, queries = data()
    found = knn_scores(vectors, labels, queries, 3, (1, 10, 40))
    for k, scores in found.items():
        assert scores.dtype == np.float32
        for query, row in zip(queries, scores, strict=True):
            expected = by_hand(vectors.astype(float), labels, query.astype(float), 3, k, 0.07)
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_a_low_temperature_leaves_the_nearest_alone_and_nothing_overflows():
    vectors, labels, queries = data()
    found = knn_scores(vectors, labels, queries, 3, (1, 40), 1e-6)
    np.testing.assert_allclose(found[40], found[1], atol=1e-6)


def test_the_length_of_vectors_does_not_matter():
    vectors, labels, queries = data()
    scaled = vectors * np.random.default_rng(1).uniform(0.1, 9, (40, 1)).astype(np.float32)
    ours, theirs = (knn_scores(each, labels, queries, 3) for each in (vectors, scaled))
    assert ours.keys() == {10, 20, 100, 200}
    for k in ours:
        np.testing.assert_allclose(ours[k], theirs[k], atol=1e-5)


def test_a_k_above_the_number_of_vectors_takes_all_of_them():
    vectors, labels, queries = data()
    found = knn_scores(vectors, labels, queries, 3, (40, 200))
    np.testing.assert_array_equal(found[40], found[200])


def test_classes_that_lie_apart_are_told_apart():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 8))
    labels = rng.integers(0, 3, 60)
    vectors = (centers[labels] + rng.normal(0, 0.1, (60, 8))).astype(np.float32)
    found = knn_scores(vectors[:50], labels[:50], vectors[50:], 3, (10,))
    np.testing.assert_array_equal(found[10].argmax(axis=1), labels[50:])


def test_with_several_labels_a_score_is_the_share_of_votes():
    vectors, labels, queries = data()
    several = np.zeros((40, 3), bool)
    several[np.arange(40), labels] = True
    one = knn_scores(vectors, labels, queries, 3, (10,))[10]
    np.testing.assert_allclose(knn_scores(vectors, several, queries, 3, (10,))[10], one, atol=1e-6)
    several[:, 1] = True
    np.testing.assert_allclose(knn_scores(vectors, several, queries, 3, (10,))[10][:, 1], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, "a label for each"),
        ({"labels": np.full(40, 3)}, "labels must be from 0 to 2"),
        ({"labels": np.zeros(40)}, "whole numbers"),
        ({"ks": (0,)}, "k must be from 1"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    vectors, labels, queries = data()
    values = {"labels": labels, "ks": (1,), "temperature": 0.07, **change}
    with pytest.raises(UsageError, match=message):
        knn_scores(vectors, values["labels"], queries, 3, values["ks"], values["temperature"])
