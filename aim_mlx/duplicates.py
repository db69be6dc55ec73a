"""Groups of near-duplicates: rows that hang together by cosines at or above a threshold."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aim_mlx.errors import UsageError
from aim_mlx.search import MARGIN, cosines, inverse_norms

_BLOCK_ROWS = 2048  # on both sides: 16 MB of cosines
_GROUP_ROWS = 1024
_PAIRS = 4096


@dataclass(frozen=True)
class Group:
    """Rows in order, and the highest and lowest cosine of any two of them.

    Where A is like B and B like C, all three are a group: the lowest may lie below the threshold.
    """

    rows: np.ndarray
    highest: float
    lowest: float


def duplicates(matrix: np.ndarray, threshold: float, *, normalized: bool = False) -> list[Group]:
    """Groups of two rows or more, joined by cosines >= `threshold`, by their first row.

    `matrix` is float32 (n, D); every two rows are compared once, n * n * D operations, in blocks.
    `normalized` says that all rows have length 1. Raises UsageError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold must be above 0 and at most 1, got {threshold}")
    matrix = np.asarray(matrix)
    scale = None if normalized else _inverse_norms(matrix)
    forest = _Forest(len(matrix))
    for left, right, scores in _blocks(matrix, scale):
        hits = scores >= np.float32(threshold - MARGIN)
        if not hits.any():
            continue
        hits &= forest.apart(left, right, hits.shape)  # of a large group most are joined by now
        rows, others = np.divmod(np.flatnonzero(hits), hits.shape[1])
        _join(forest, matrix, rows + left, others + right, scores[rows, others], threshold)
    return [_group(matrix, rows) for rows in forest.groups()]


def _blocks(matrix: np.ndarray, scale: np.ndarray | None) -> Iterator[tuple[int, int, np.ndarray]]:
    """First rows on both sides and float32 cosines (rows, others) of each pair of blocks, once."""
    count = len(matrix)
    space = np.empty(_BLOCK_ROWS * _BLOCK_ROWS, np.float32)
    for left in range(0, count, _BLOCK_ROWS):
        block = matrix[left : left + _BLOCK_ROWS]
        for right in range(left, count, _BLOCK_ROWS):
            other = matrix[right : right + _BLOCK_ROWS]
            scores = space[: len(block) * len(other)].reshape(len(block), len(other))
            np.matmul(block, other.T, out=scores)
            if scale is not None:
                scores *= scale[left : left + len(block), None]
                scores *= scale[right : right + len(other)]
            yield left, right, scores


def _join(
    forest: "_Forest",
    matrix: np.ndarray,
    rows: np.ndarray,
    others: np.ndarray,
    scores: np.ndarray,
    threshold: float,
) -> None:
    """Joins pairs at or above the threshold; those too close to it to tell are computed exactly."""
    sure = scores >= threshold + MARGIN
    forest.join(rows[sure], others[sure])
    rows, others = rows[~sure], others[~sure]
    for start in range(0, len(rows), _PAIRS):  # of a thousand equal rows most are soon joined
        left, right = rows[start : start + _PAIRS], others[start : start + _PAIRS]
        apart = forest.roots(left) != forest.roots(right)
        left, right = left[apart], right[apart]
        alike = cosines(matrix, left, matrix, right) >= threshold
        forest.join(left[alike], right[alike])


def _inverse_norms(matrix: np.ndarray) -> np.ndarray:
    parts = [
        inverse_norms(matrix[start : start + _BLOCK_ROWS])
        for start in range(0, len(matrix), _BLOCK_ROWS)
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


class _Forest:
    """Union-find over numbers 0 to count - 1, many pairs at a time; the smallest is the root."""

    def __init__(self, count: int):
        self._parents = np.arange(count)

    def roots(self, nodes: np.ndarray) -> np.ndarray:
        found = self._parents[nodes]
        while not np.array_equal(found, above := self._parents[found]):
            found = above
        self._parents[nodes] = found
        return found

    def apart(self, left: int, right: int, shape: tuple[int, int]) -> np.ndarray:
        """Whether rows and others, consecutive from `left` and `right`, are in different trees."""
        rows = self.roots(np.arange(left, left + shape[0]))
        others = self.roots(np.arange(right, right + shape[1]))
        return rows[:, None] != others

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Joins left[i] with right[i] for each i."""
        while len(left):
            a, b = self.roots(left), self.roots(right)
            apart = a != b
            left, right, a, b = left[apart], right[apart], a[apart], b[apart]
            # Of several claims on one root the smallest wins; the others come round again.
            np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))

    def groups(self) -> list[np.ndarray]:
        """The members of every tree of two or more, in order, by their first."""
        roots = self.roots(np.arange(len(self._parents)))
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        return [members for members in np.split(order, starts)[1:] if len(members) > 1]


def _group(matrix: np.ndarray, rows: np.ndarray) -> Group:
    """A group with the highest and lowest cosine in float64, block by block."""
    highest, lowest = -1.0, 1.0
    for left in range(0, len(rows), _GROUP_ROWS):
        block = _unit(matrix[rows[left : left + _GROUP_ROWS]])
        for right in range(left, len(rows), _GROUP_ROWS):
            scores = block @ _unit(matrix[rows[right : right + _GROUP_ROWS]]).T
            if left == right:
                scores = scores[np.triu_indices(len(block), 1)]
            if scores.size:
                highest = max(highest, float(scores.max()))
                lowest = min(lowest, float(scores.min()))
    return Group(rows, min(highest, 1.0), max(lowest, -1.0))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths, lengths, 1.0)
