"""Grouping samples by shape within bounds, and restoring their order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_mlx.encoder import batches as batches_module
from aim_mlx.encoder.batches import batches, in_order
from aim_mlx.errors import ImageError
from aim_mlx.images import Embedded

SHAPES = {"a": (28, 28, 3), "b": (28, 42, 3), "c": (42, 28, 3)}


def samples(kinds: str) -> list[Embedded]:
    """One sample a letter: its shape's, or for "-" a failure."""
    failure = ImageError("empty", "empty")
    return [
        Embedded(i, pixels=np.zeros(SHAPES[kind], np.float32), width=1, height=1)
        if kind in SHAPES
        else Embedded(i, failure=failure)
        for i, kind in enumerate(kinds)
    ]


def shapes(batch: list[Embedded]) -> set[tuple[int, ...]]:
    return {sample.pixels.shape for sample in batch if sample.pixels is not None}


@given(kinds=st.text("abc-", max_size=60), size=st.sampled_from([1, 2, 5]))
def test_every_sample_is_in_one_batch_of_one_shape_and_no_larger_than_asked(kinds, size):
    made = list(batches(iter(samples(kinds)), 14, batch_size=size))
    assert sorted(s.index for batch in made for s in batch) == list(range(len(kinds)))
    for batch in made:
        assert len(shapes(batch)) <= 1
        assert len([s for s in batch if s.pixels is not None]) <= size


def test_a_batch_holds_about_the_patches_asked_for_and_no_more_samples_than_its_size():
    sizes = [len(batch) for batch in batches(iter(samples("bbbbbbb")), 14, 9, patches=12)]
    assert sizes == [2, 2, 2, 1]
    assert [len(batch) for batch in batches(iter(samples("bbb")), 14, 1, patches=12)] == [1, 1, 1]


def test_an_image_larger_than_the_patches_asked_for_is_a_batch_of_its_own():
    assert [len(batch) for batch in batches(iter(samples("aa")), 14, 9, patches=1)] == [1, 1]


def test_a_rare_shape_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(batches_module, "_LONGEST_WAIT", 10)
    made = list(batches(iter(samples("c" + "a" * 60)), 14, batch_size=2))
    position = next(i for i, batch in enumerate(made) if batch[0].index == 0)
    assert position < 8


def test_a_batch_size_above_the_default_is_reached():
    made = list(batches(iter(samples("a" * 100)), 14, batch_size=50))
    assert [len(batch) for batch in made] == [50, 50]


def test_waiting_samples_are_bounded_by_their_patches():
    taken = []

    def source():
        for sample in samples("abc" * 40):
            taken.append(sample.index)
            yield sample

    given_out = 0
    for batch in batches(source(), 14, batch_size=5):
        assert len(taken) - given_out <= 4 * 5 + 1
        given_out += len(batch)
    assert given_out == 120


def each(order):
    yield from (Embedded(i) for i in order)


@given(st.permutations(range(12)))
def test_rows_leave_in_order(order):
    assert [row.index for row in in_order(each(order), range(12))] == list(range(12))


def test_rows_of_some_places_leave_in_their_order():
    assert [row.index for row in in_order(each([7, 2, 5]), [2, 5, 7])] == [2, 5, 7]


def test_a_row_leaves_as_soon_as_those_before_it_are_out():
    rows = in_order(each([0, 2, 1]), range(3))
    assert next(rows).index == 0


@pytest.mark.parametrize(("order", "count"), [([0, 2], 3), ([0, 1], 3), ([0, 1, 2], 2)])
def test_a_missing_or_extra_row_is_never_passed_over(order, count):
    with pytest.raises(RuntimeError, match="rows were expected"):
        list(in_order(each(order), range(count)))
