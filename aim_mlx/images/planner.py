"""The patch grid of a native-resolution image: its own where in range, else the nearest that is."""

import math

from aim_mlx.errors import UsageError


def plan_native(
    height: int,
    width: int,
    patch_size: int = 14,
    min_patches: int = 112,
    max_patches: int = 4096,
) -> tuple[int, int]:
    """The (height, width) in pixels, multiples of `patch_size`, that an image is brought to.

    An image whose whole patches number min_patches to max_patches keeps its scale and loses the
    ragged right and bottom edge: 480 x 640 -> 476 x 630, 34 x 45 patches. Any other is scaled to
    the nearer end of the range, with the aspect ratio as near as whole patches allow.
    Raises UsageError for sizes below 1 and a range without room for every shape.
    """
    if min(height, width, patch_size, min_patches) < 1 or max_patches < 2 * min_patches:
        raise UsageError(
            "expected sizes of at least 1 and max_patches of at least twice min_patches, got "
            f"height {height}, width {width}, patch_size {patch_size}, "
            f"patches {min_patches} to {max_patches}"
        )
    rows, columns = height // patch_size, width // patch_size
    if min_patches <= rows * columns <= max_patches:
        return rows * patch_size, columns * patch_size
    goal = min_patches if rows * columns < min_patches else max_patches
    rows, columns = _nearest_grid(height / width, goal, min_patches, max_patches)
    return rows * patch_size, columns * patch_size


def _nearest_grid(aspect: float, goal: int, smallest: int, largest: int) -> tuple[int, int]:
    """The whole (rows, columns) about sqrt(goal * aspect) by sqrt(goal / aspect), in the range."""
    candidates = []
    for rows in _around(math.sqrt(goal * aspect), largest):
        for columns in _around(rows / aspect, largest):
            # Never empty: with largest >= 2 smallest, every side has a whole other side in range.
            candidates.append((rows, min(max(columns, -(-smallest // rows)), largest // rows)))
    for columns in _around(math.sqrt(goal / aspect), largest):
        for rows in _around(columns * aspect, largest):
            candidates.append(
                (min(max(rows, -(-smallest // columns)), largest // columns), columns)
            )
    return min(candidates, key=lambda grid: (abs(math.log(grid[0] / grid[1] / aspect)), grid))


def _around(side: float, largest: int) -> tuple[int, int]:
    low, high = math.floor(side), math.ceil(side)
    return min(max(low, 1), largest), min(max(high, 1), largest)
