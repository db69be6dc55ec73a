"""Positions of patches."""

import numpy as np
import pytest

from aim_mlx.backend import mx
from aim_mlx.models.positions import resize_positions, sincos_positions


def test_the_first_half_encodes_the_column_and_the_second_the_row():
    positions = sincos_positions(2, 3, 8).reshape(2, 3, 8)
    np.testing.assert_allclose(positions[0, :, :4], positions[1, :, :4])
    np.testing.assert_allclose(positions[:, 0, 4:], positions[:, 2, 4:])


def test_within_a_half_sines_come_before_cosines():
    column_one = sincos_positions(1, 2, 8)[1]
    omega = 10_000.0 ** -np.array([0.0, 0.5])
    np.testing.assert_allclose(column_one[:2], np.sin(omega), atol=1e-7)
    np.testing.assert_allclose(column_one[2:4], np.cos(omega), atol=1e-7)


@pytest.mark.parametrize("grid", [(4, 4), (7, 3), (2, 9), (1, 1)])
def test_constant_positions_stay_constant_when_resized(grid):
    resized = np.array(resize_positions(mx.full((1, 16, 5), 3.0), *grid))
    assert resized.shape == (1, grid[0] * grid[1], 5)
    np.testing.assert_allclose(resized, 3.0, rtol=1e-6)


def test_resizing_to_the_same_grid_changes_nothing():
    positions = mx.array(np.random.default_rng(0).normal(size=(1, 16, 5)).astype(np.float32))
    np.testing.assert_allclose(resize_positions(positions, 4, 4), positions, atol=1e-6)


# What PyTorch 2.13 gives: interpolate(mode="bicubic", align_corners=False). Another constant of the
# kernel or another alignment of the pixels is off by more than 0.05.
GRID = [[1.0, -2.0, 3.0], [0.0, 4.0, -1.0], [2.0, 1.0, -3.0]]
RESIZED = {
    (4, 5): [
        [1.408012, -0.698849, -2.430664, 0.816439, 3.836016],
        [-0.053953, 1.035502, 2.16748, 1.391529, 0.516524],
        [0.325981, 2.175302, 3.578125, 0.279941, -2.711031],
        [2.274008, 1.899137, 0.784668, -1.717244, -3.520664],
    ],
    (2, 2): [[0.327682, 1.508987], [1.758514, -1.636948]],
}


@pytest.mark.parametrize("grid", RESIZED)
def test_resizing_gives_the_numbers_of_pytorch(grid):
    positions = mx.array(np.array(GRID, np.float32).reshape(1, 9, 1))
    resized = np.array(resize_positions(positions, *grid)).reshape(grid)
    # Six decimals are written down; float32 sums of sixteen terms lose less.
    np.testing.assert_allclose(resized, RESIZED[grid], atol=5e-6)


def test_rows_and_columns_are_resized_along_their_own_axis():
    rows = np.repeat(np.arange(4.0, dtype=np.float32), 4).reshape(1, 16, 1)
    resized = np.array(resize_positions(mx.array(rows), 8, 2)).reshape(8, 2)
    np.testing.assert_allclose(resized[:, 0], resized[:, 1], atol=1e-6)
    assert (np.diff(resized[:, 0]) > 0).all()
