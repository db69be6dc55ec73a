"""The patch grids of native resolution."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_mlx.errors import UsageError
from aim_mlx.images import plan_native

sides = st.one_of(st.integers(1, 3000), st.integers(1, 100_000))


def test_640_by_480_keeps_34_by_45_whole_patches():
    assert plan_native(480, 640) == (34 * 14, 45 * 14)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (1, 1, (11, 11)),
        (3000, 4000, (55, 73)),
        (20_000, 2, (4096, 1)),
        (2, 20_000, (1, 4096)),
        (70, 42, (15, 9)),
        (14, 14 * 112, (1, 112)),
        (64 * 14, 64 * 14, (64, 64)),
    ],
)
def test_known_plans(height, width, grid):
    assert plan_native(height, width) == (grid[0] * 14, grid[1] * 14)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(575, 20, (58, 2)), (1241, 1291, (62, 64)), (1291, 1241, (64, 62))],
)
def test_the_nearest_aspect_is_that_of_the_smallest_ratio_not_difference(height, width, grid):
    # 575 / 20 is 28.75: 29 is 1.0087 times that, and that 1.0088 times 28.5, which is as far away.
    assert plan_native(height, width) == (grid[0] * 14, grid[1] * 14)


@given(sides, sides)
def test_every_image_gets_whole_patches_in_range(height, width):
    planned = plan_native(height, width)
    rows, columns = planned[0] / 14, planned[1] / 14
    assert rows.is_integer() and columns.is_integer() and rows >= 1 and columns >= 1
    assert 112 <= rows * columns <= 4096


@given(sides, sides)
def test_an_image_in_range_only_loses_its_ragged_edge(height, width):
    if 112 <= (height // 14) * (width // 14) <= 4096:
        assert plan_native(height, width) == (height // 14 * 14, width // 14 * 14)


@given(sides, sides)
def test_a_plan_is_kept_when_planned_again(height, width):
    assert plan_native(*plan_native(height, width)) == plan_native(height, width)


@given(sides, sides)
def test_an_image_outside_the_range_is_scaled_to_its_nearer_end_with_its_aspect(height, width):
    patches = (height // 14) * (width // 14)
    aspect = height / width
    if 112 <= patches <= 4096 or not 1 / 25 < aspect < 25:
        return
    goal = 112 if patches < 112 else 4096
    rows, columns = (side / 14 for side in plan_native(height, width))
    # The shorter side is about one whole patch from the exact grid, the other follows from it.
    shorter = math.sqrt(goal * min(aspect, 1 / aspect))
    assert abs(min(rows, columns) - shorter) <= 1.5
    assert abs(math.log(rows / columns / aspect)) <= math.log(1 + 1 / shorter)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 40))
def test_other_ranges_and_patch_sizes_hold(height, width, patch_size, smallest):
    largest = 2 * smallest
    planned = plan_native(height, width, patch_size, smallest, largest)
    assert planned[0] % patch_size == planned[1] % patch_size == 0
    assert smallest <= planned[0] * planned[1] // patch_size**2 <= largest


@pytest.mark.parametrize(
    "arguments", [(0, 5), (5, 0), (5, 5, 0), (5, 5, 14, 0), (5, 5, 14, 100, 150)]
)
def test_sizes_below_1_and_too_narrow_a_range_are_refused(arguments):
    with pytest.raises(UsageError, match="expected sizes of at least 1"):
        plan_native(*arguments)
