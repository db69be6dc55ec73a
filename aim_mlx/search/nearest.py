"""Nearest neighbours by cosine: exact, in blocks of a matrix that may be larger than the memory.

Products of blocks run in float32 in numpy's BLAS (OpenBLAS, or Accelerate on a Mac), which reads
a memory-mapped matrix in place; MLX would copy it first. They only sort out what cannot be among
the best. What may be is computed again in float64, so that the order is that of the true cosines
and equal rows have equal scores wherever in the matrix they stand.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from aim_mlx.errors import UsageError

# Cosines in float32 err by less: D products, whose sizes add up to 1 at most, in many partial sums.
MARGIN = 1e-5
_MOST_QUERIES = 256  # in one product; more of them only enlarge the block of scores
# Scores of a block, 4 MB: still in the cache when they are compared. Each block wakes the threads
# of the BLAS, which takes long where other programs run too: few, large blocks for few queries.
_BLOCK_SCORES = 1 << 20
_FEWEST_ROWS, _MOST_ROWS = 4096, 1 << 18
_SMALLEST_NORM = 1e-6  # of a sum of unit vectors: below it there is rounding and no direction
_PAIRS = 4096  # computed again at a time


def top_k(
    matrix: np.ndarray, queries: np.ndarray, k: int, *, normalized: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows nearest to each query: row numbers int64 (q, k) and cosines float64 (q, k).

    `matrix` is float32 (n, D), `queries` (q, D) of any length; best first, equal cosines by row
    number; fewer columns where the matrix has fewer rows. `normalized` says that all rows have
    length 1, which saves measuring them. A row of zeros has cosine 0. Raises UsageError for shapes
    that do not fit, k below 1, and queries that are zero or not finite.
    """
    matrix, queries = np.asarray(matrix), _directions(queries)
    if matrix.ndim != 2 or matrix.shape[1] != queries.shape[1]:
        raise UsageError(
            f"queries of length {queries.shape[1]} do not fit a matrix of shape {matrix.shape}"
        )
    if type(k) is not int or k < 1:
        raise UsageError(f"k must be a whole number from 1, got {k!r}")
    results = [
        _Best(matrix, queries[start : start + _MOST_QUERIES], k, normalized).search()
        for start in range(0, len(queries), _MOST_QUERIES)
    ]
    rows, scores = zip(*results, strict=True)
    return np.concatenate(rows), np.concatenate(scores)


def combine(
    positive: Sequence[np.ndarray],
    negative: Sequence[np.ndarray] = (),
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """One query of several: the weighted sum of unit vectors, negative ones subtracted, length 1.

    Vectors are (D,) of any length, `weights` one for each of `positive` and then of `negative`
    (default 1). Returns float64 (D,). Raises UsageError where they cancel each other out, for none
    at all, and for weights that are not above 0.
    """
    vectors = [*positive, *negative]
    weights = [1.0] * len(vectors) if weights is None else list(weights)
    if not vectors:
        raise UsageError("expected at least one query, got none")
    if len(weights) != len(vectors):
        raise UsageError(
            f"expected a weight for each of {len(vectors)} queries, got {len(weights)}"
        )
    if not all(0 < weight < np.inf for weight in weights):
        raise UsageError(f"weights must be above 0, got {', '.join(map(str, weights))}")
    signs = np.repeat([1.0, -1.0], [len(positive), len(negative)])
    total = (signs * weights / max(weights)) @ _directions(np.stack(vectors))
    norm = np.linalg.norm(total)
    if norm < _SMALLEST_NORM:
        raise UsageError("these queries cancel each other out: leave one out or change the weights")
    return total / norm


def cosines(
    matrix: np.ndarray, left: np.ndarray, others: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Float64 cosine of matrix[left[i]] and others[right[i]] for each i."""
    result = np.empty(len(left))
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        a, b = (each.astype(np.float64) for each in (matrix[left[part]], others[right[part]]))
        lengths = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
        result[part] = np.einsum("ij,ij->i", a, b) / np.where(lengths, lengths, 1.0)
    return np.clip(result, -1.0, 1.0)


def inverse_norms(block: np.ndarray) -> np.ndarray:
    """1 / length of each row, float32 (n,); 0 for a row of zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Float64 (n, D) of length 1."""
    vectors = np.atleast_2d(np.asarray(vectors, np.float64))
    if not np.isfinite(vectors).all():
        raise UsageError("a query holds values that are not finite")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not lengths.all():
        raise UsageError("a query is zero and has no direction")
    return vectors / lengths


class _Best:
    """The running best of a few queries: a pool of all pairs that may still be among them."""

    def __init__(self, matrix: np.ndarray, queries: np.ndarray, k: int, normalized: bool):
        self._matrix, self._queries, self._normalized = matrix, queries, normalized
        self._k = min(k, len(matrix))
        self._pool: list[tuple[np.ndarray, ...]] = []  # query numbers, row numbers, cosines
        self._floor = np.full(len(queries), -np.inf, np.float32)  # what a candidate must exceed

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and cosines, (q, k) each."""
        count, size = len(self._queries), 0
        limit = max(2 * self._k * count, _PAIRS)
        for start, scores in self._blocks():
            if start == 0 and len(scores) > self._k:
                place = len(scores) - self._k
                self._floor = np.partition(scores, place, axis=0)[place] - np.float32(2 * MARGIN)
            hits = np.flatnonzero(scores > self._floor)
            if not len(hits):
                continue
            rows, queries = np.divmod(hits, count)
            self._pool.append((queries, rows + start, scores.ravel()[hits]))
            size += len(hits)
            if size > limit:
                size = self._prune()
            if size > limit:  # only of rows as good as equal
                size = self._prune(exact=True)
        self._prune(exact=True)
        _, rows, scores = self._pool[0]
        return rows.reshape(count, self._k), scores.reshape(count, self._k)

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Row number and float32 cosines (rows, q) of each block, in memory that is used again."""
        count = len(self._matrix)
        queries = np.ascontiguousarray(self._queries.T, np.float32)
        rows = min(max(_BLOCK_SCORES // len(self._queries), _FEWEST_ROWS), _MOST_ROWS, count)
        space = np.empty((rows, len(self._queries)), np.float32)
        for start in range(0, count, rows):
            block = self._matrix[start : start + rows]
            scores = np.matmul(block, queries, out=space[: len(block)])
            if not self._normalized:
                scores *= inverse_norms(block)[:, None]
            yield start, scores

    def _prune(self, exact: bool = False) -> int:
        """Drops pairs that cannot be among the best, raises the floor; how many pairs are left.

        With `exact` the cosines are computed again, and the best alone are left, in order.
        """
        queries, rows, scores = map(np.concatenate, zip(*self._pool, strict=True))
        if exact:
            scores = cosines(self._matrix, rows, self._queries, queries)
        order = np.lexsort((rows, -scores, queries))
        queries, rows, scores = queries[order], rows[order], scores[order]
        firsts = np.searchsorted(queries, np.arange(len(self._queries)))
        kth = scores[firsts + self._k - 1]
        # Both sides may err by the margin.
        self._floor = np.maximum(self._floor, (kth - 2 * MARGIN).astype(np.float32))
        if exact:
            keep = np.arange(len(order)) - firsts[queries] < self._k
        else:
            keep = scores >= self._floor[queries]
        self._pool = [(queries[keep], rows[keep], scores[keep])]
        return int(keep.sum())
