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


def test_rows_and_columns_are_resized_along_their_own_axis():
    rows = np.repeat(np.arange(4.0, dtype=np.float32), 4).reshape(1, 16, 1)
    resized = np.array(resize_positions(mx.array(rows), 8, 2)).reshape(8, 2)
    np.testing.assert_allclose(resized[:, 0], resized[:, 1], atol=1e-6)
    assert (np.diff(resized[:, 0]) > 0).all()
