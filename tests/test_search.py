"""Nearest neighbours and near-duplicates are those of brute force in float64."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_mlx.errors import UsageError
from aim_mlx.search import duplicates as groups_module
from aim_mlx.search import nearest as search
from aim_mlx.search.duplicates import duplicates, photo_groups
from aim_mlx.search.nearest import combine, top_k
from aim_mlx.store.reader import Photos
from tests.stores import make_store

D = 24


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small matrices have many."""
    monkeypatch.setattr(search, "_BLOCK_SCORES", 1)
    monkeypatch.setattr(search, "_FEWEST_ROWS", 8)
    monkeypatch.setattr(search, "_MOST_QUERIES", 3)
    monkeypatch.setattr(search, "_PAIRS", 5)
    monkeypatch.setattr(groups_module, "_BLOCK_ROWS", 8)


def rows_of(seed: int, count: int, distinct: int, unit: bool = False) -> np.ndarray:
    """`count` rows, float32, of only `distinct` different ones: most have an equal."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((distinct, D)) * rng.uniform(0.1, 10, (distinct, 1))
    if unit:
        kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    return kinds.astype(np.float32)[rng.integers(0, distinct, count)]


def true_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (n, m) in float64, rounded to 1e-12: rows that are equal stay equal."""
    a, b = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (a, b)
    )
    return np.round(a @ b.T, 12)


def brute_force(matrix, queries, k):
    scores = true_cosines(queries, matrix)
    rows = np.stack([np.lexsort((np.arange(len(matrix)), -each))[:k] for each in scores])
    return rows, np.take_along_axis(scores, rows, 1)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    distinct=st.integers(1, 60),
    queries=st.integers(1, 8),
    k=st.integers(1, 70),
    unit=st.booleans(),
)
def test_the_best_rows_are_those_of_brute_force_ties_by_row(
    seed, count, distinct, queries, k, unit
):
    matrix = rows_of(seed, count, distinct, unit)
    asked = rows_of(seed + 1, queries, queries)
    asked[0] = matrix[-1]
    rows, scores = top_k(matrix, asked, k, normalized=unit)
    expected, cosines = brute_force(matrix, asked, k)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, cosines, rtol=0, atol=2e-12)  # the oracle's rounding
    assert scores.dtype == np.float64 and rows.shape == (queries, min(k, count))


def test_equal_rows_have_equal_scores_wherever_they_stand():
    matrix = np.tile(rows_of(0, 1, 1), (100, 1))
    rows, scores = top_k(matrix, rows_of(1, 1, 1), 100)
    assert len(set(scores[0])) == 1 and rows[0].tolist() == list(range(100))


def test_of_rows_that_float32_cannot_tell_apart_the_truly_nearer_comes_first():
    rng = np.random.default_rng(0)
    query = rng.standard_normal(D)
    query /= np.linalg.norm(query)
    away = rng.standard_normal((50, D))
    away -= np.outer(away @ query, query)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    # All within 1e-8 of cosine 1: float32 has steps of 6e-8 there.
    angles = rng.permutation(np.linspace(1e-5, 1.4e-4, 50))
    matrix = (np.cos(angles)[:, None] * query + np.sin(angles)[:, None] * away).astype(np.float32)
    rows, _ = top_k(matrix, query, 50)
    np.testing.assert_array_equal(rows, brute_force_exact(matrix, query))


def brute_force_exact(matrix, query):
    a = matrix.astype(np.longdouble)
    scores = (a @ query.astype(np.longdouble)) / np.sqrt((a * a).sum(axis=1))
    return np.lexsort((np.arange(len(matrix)), -scores))[None]


def test_a_mapped_file_gives_what_the_matrix_gives(tmp_path):
    matrix = rows_of(3, 50, 40)
    matrix.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=matrix.shape)
    for one, other in zip(top_k(mapped, matrix[:5], 7), top_k(matrix, matrix[:5], 7), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_row_of_zeros_is_like_nothing():
    matrix = np.zeros((3, D), np.float32)
    matrix[1, 0] = 5
    rows, scores = top_k(matrix, np.eye(D)[0], 3)
    assert rows.tolist() == [[1, 0, 2]] and scores.tolist() == [[1, 0, 0]]


def test_the_blocks_of_everyday_size_give_the_same(monkeypatch):
    matrix, queries = rows_of(5, 5000, 4000), rows_of(6, 7, 7)
    small = top_k(matrix, queries, 20)
    monkeypatch.undo()
    for one, other in zip(top_k(matrix, queries, 20), small, strict=True):
        np.testing.assert_array_equal(one, other)


def test_memory_does_not_grow_with_the_rows(monkeypatch, tmp_path):
    monkeypatch.undo()
    np.random.default_rng(0).standard_normal((1_200_000, 4), np.float32).tofile(tmp_path / "rows")
    peaks = []
    for count in (300_000, 1_200_000):
        mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=(count, 4))
        tracemalloc.start()
        top_k(mapped, np.ones((2, 4)), 10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize(
    ("query", "k", "said"),
    [
        (np.full(D, np.nan), 1, "not finite"),
        (np.full(D, np.inf), 1, "not finite"),
        (np.zeros(D), 1, "zero"),
        (np.ones(D + 1), 1, f"length {D + 1} do not fit"),
        (np.ones(D), 0, "k must be"),
        (np.ones(D), 1.5, "k must be"),
    ],
)
def test_queries_that_have_no_answer_are_refused(query, k, said):
    with pytest.raises(UsageError, match=said):
        top_k(rows_of(0, 5, 5), query, k)


def test_queries_are_added_and_subtracted_as_unit_vectors():
    x, y, z = np.eye(D)[:3]
    np.testing.assert_allclose(combine([5 * x]), x)
    np.testing.assert_allclose(combine([3 * x, 7 * y], [2 * z]), (x + y - z) / np.sqrt(3))
    expected = (2 * x + y - 0.5 * z) / np.sqrt(5.25)
    np.testing.assert_allclose(combine([x, y], [z], [2, 1, 0.5]), expected)
    np.testing.assert_allclose(combine([], [z]), -z)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], []), "at least one"),
        (([np.ones(D)], [2 * np.ones(D)]), "cancel"),
        (([np.ones(D)], [], [1, 2]), "a weight for each of 1"),
        (([np.ones(D)], [], [0]), "above 0"),
        (([np.ones(D)], [], [-1]), "above 0"),
        (([np.ones(D)], [], [np.nan]), "above 0"),
        (([np.full(D, np.nan)],), "not finite"),
    ],
)
def test_queries_that_cannot_be_combined_are_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        combine(*arguments)


def brute_groups(matrix, threshold, compared):
    """Each row joins the first reference that it is near enough to, or becomes one."""
    cosines = true_cosines(matrix, matrix)
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(compared).tolist():
        near = (reference for reference in groups if cosines[reference, row] >= threshold)
        groups.setdefault(next(near, row), []).append(row)
    return {
        rows[0]: {row: cosines[rows[0], row] for row in rows[1:]}
        for rows in groups.values()
        if len(rows) > 1
    }


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 50),
    distinct=st.integers(1, 50),
    threshold=st.sampled_from([1e-3, 0.2, 0.35, 0.5, 0.9, 1.0]),
    unit=st.booleans(),
    part=st.sampled_from([1.0, 0.7, 0.3]),
)
def test_groups_are_those_of_brute_force(seed, count, distinct, threshold, unit, part):
    matrix = rows_of(seed, count, distinct, unit)
    candidates, there = np.random.default_rng(seed).random((2, count)) < part
    found = duplicates(
        matrix,
        threshold,
        normalized=unit,
        candidates=candidates,
        there=lambda row: bool(there[row]),
    )
    expected = brute_groups(matrix, threshold, candidates & there)
    assert {group.rows[0]: set(group.rows[1:].tolist()) for group in found} == {
        reference: set(members) for reference, members in expected.items()
    }
    for group in found:
        cosines = [expected[group.rows[0]][row] for row in group.rows[1:].tolist()]
        # The oracle's rounding.
        np.testing.assert_allclose(group.similarities, [1, *cosines], rtol=0, atol=2e-12)
        assert (np.diff(group.similarities) <= 0).all() and group.similarities[0] == 1
    lows = [group.lowest for group in found]
    assert lows == sorted(lows, reverse=True)


def test_of_a_chain_each_photo_is_near_the_reference_of_its_group():
    angles = np.radians([0, 10, 20, 30, 90, 180, 185])
    matrix = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    groups = duplicates(matrix, np.cos(np.radians(11)))
    # The tightest first; 20 degrees are near to 10, which belongs to 0.
    assert groups[0].rows.tolist() == [5, 6]
    assert sorted(group.rows.tolist() for group in groups[1:]) == [[0, 1], [2, 3]]
    assert groups[1].lowest == pytest.approx(np.cos(np.radians(10)), abs=1e-6)  # float32 input


def test_the_threshold_itself_is_near_enough():
    matrix = np.array([[1, 0], [3, 4]], np.float32)  # 3 / 5 has no rounding
    (group,) = duplicates(matrix, 0.6)
    assert group.rows.tolist() == [0, 1] and group.lowest == 0.6
    assert duplicates(matrix, float(np.nextafter(0.6, 1))) == []


def test_only_photos_that_would_be_in_a_group_are_looked_for():
    matrix = np.vstack([np.eye(D, dtype=np.float32), np.eye(1, D, 3, dtype=np.float32)])
    asked: list[int] = []
    (group,) = duplicates(matrix, 0.9, there=lambda row: not asked.append(row))
    assert group.rows.tolist() == [3, D] and sorted(asked) == [3, D]


def test_a_store_of_short_vectors_has_the_groups_of_their_directions(tmp_path):
    vectors = 0.1 * np.eye(3, D, dtype=np.float32)
    vectors[2] = 0.2 * vectors[0]
    store = make_store(tmp_path / "store", ["a.jpg", "b.jpg", "c.jpg"], vectors)
    store.manifest["normalized"] = False
    (group,) = photo_groups(store, Photos(store, gone=True), 0.9)
    assert group.rows.tolist() == [0, 2]


def test_many_equal_rows_are_one_group():
    matrix = np.tile(rows_of(0, 1, 1), (300, 1))
    (group,) = duplicates(matrix, 1.0)
    assert len(group.rows) == 300
    assert group.lowest == pytest.approx(1.0, abs=1e-12) and group.similarities.max() <= 1.0


def test_rows_of_zeros_are_no_duplicates():
    assert duplicates(np.zeros((5, D), np.float32), 0.5) == []


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, np.nan, np.inf])
def test_thresholds_that_are_no_cosine_of_alike_photos_are_refused(threshold):
    with pytest.raises(UsageError, match="threshold"):
        duplicates(np.ones((2, D), np.float32), threshold)
