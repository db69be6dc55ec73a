"""The gradient of a batch in parts, to save memory, and of each part in shares, one a core."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from aim_mlx.backend import concurrency, in_parallel, mx, tree_map

Tree = dict[str, Any]


@dataclass(frozen=True)
class Division:
    """So many images in so many parts, whose shares have at least `least` images."""

    count: int
    parts: int
    least: int
    most_shares: int

    def rows(self) -> list[slice]:
        """The parts, one after the other."""
        return slices(slice(0, self.count), min(self.parts, self.count))

    def shares(self, part: slice) -> list[slice]:
        """What of a part is computed at the same time."""
        count = part.stop - part.start
        return slices(part, concurrency(min(count // self.least, self.most_shares)))


def slices(rows: slice, count: int) -> list[slice]:
    """Rows in so many slices of nearly one length."""
    length = rows.stop - rows.start
    bounds = [rows.start + length * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in zip(bounds, bounds[1:], strict=False)]


def summed_gradient(
    division: Division, compute: Callable[[slice, int], tuple[np.ndarray, Tree]]
) -> tuple[np.ndarray, Tree]:
    """The sums and the gradients that `compute` gives for rows, added up over all rows.

    It is called with the number of the share too, in a thread of that share's own, and evaluates
    what it returns.
    """
    sums, total = None, None
    for part in division.rows():
        tasks = [partial(compute, rows, n) for n, rows in enumerate(division.shares(part))]
        of_shares, gradients = zip(*in_parallel(tasks), strict=True)
        of_part, gradient = reduce(np.add, of_shares), reduce(_added, gradients)
        sums = of_part if sums is None else sums + of_part
        total = gradient if total is None else _added(total, gradient)
        mx.eval(total)
    assert sums is not None and total is not None
    return sums, total


def _added(first: Tree, second: Tree) -> Tree:
    return tree_map(mx.add, first, second)
