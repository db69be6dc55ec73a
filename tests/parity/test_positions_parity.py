"""Resizing of learned positions against PyTorch's bicubic interpolation, live."""

import numpy as np
import pytest

from aim_mlx.backend import mx
from aim_mlx.models.positions import resize_positions

pytestmark = pytest.mark.parity

# 4 x 4 weights with an absolute sum below 3: their rounding to float32 is worth some 1e-6.
CLOSE = 1e-5


@pytest.mark.parametrize("target", [(32, 32), (24, 24), (17, 40), (9, 5), (1, 3), (16, 16)])
def test_positions_are_resized_as_by_interpolate_bicubic(target):
    import torch
    from torch.nn.functional import interpolate

    positions = np.random.default_rng(0).normal(size=(1, 16 * 16, 12)).astype(np.float32)
    grid = torch.from_numpy(positions).reshape(1, 16, 16, 12).permute(0, 3, 1, 2)
    resized = interpolate(grid, size=target, mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(1, -1, 12).numpy()
    difference = np.abs(np.array(resize_positions(mx.array(positions), *target)) - expected)
    assert difference.max() <= CLOSE, (
        f"largest difference {difference.max():.2e}, mean {difference.mean():.2e}"
    )
