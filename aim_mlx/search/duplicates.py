"""Groups of duplicates: exact copies by their digests, near-duplicates by the cosine of vectors.

A near-duplicate joins the first row that it is similar enough to, the reference of its group: so
no chain of small steps joins photos that have nothing in common.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from aim_mlx.errors import AimError, UsageError
from aim_mlx.search.nearest import MARGIN, cosines, inverse_norms
from aim_mlx.store.reader import EmbeddingStore, Photos
from aim_mlx.wording import counted

THRESHOLD = 0.95
_BLOCK_ROWS = 2048  # on both sides: 16 MB of cosines


@dataclass(frozen=True)
class Member:
    """A photo of a group; `likeness` is "reference", "copy", "hard link" or its cosine."""

    row: int
    path: str
    likeness: str
    similarity: float
    width: int
    height: int
    bytes: int
    modified: str


@dataclass(frozen=True)
class Group:
    """Rows, the reference first, and their cosines to it, float64, from high to low.

    `exact` says that all have the same content; `photos` is what the store says of them.
    """

    rows: np.ndarray
    similarities: np.ndarray
    exact: bool = False
    photos: tuple[Member, ...] = ()

    @property
    def lowest(self) -> float:
        """The lowest similarity to the reference."""
        return float(self.similarities[-1])


def photo_groups(store: EmbeddingStore, photos: Photos, threshold: float | None) -> list[Group]:
    """Exact copies among a store's photos, then near-duplicates, the tightest groups first.

    With `threshold` None copies alone, for which no vector is read. Of copies one stands for all
    among the near-duplicates. A photo that has several rows counts once, one that is gone not at
    all. Raises UsageError for a threshold outside (0, 1], AimError for a store without rows.
    """
    if not len(store):
        raise AimError(f"{str(store.folder)!r} holds no rows: embed photos into it first")
    candidates = np.ones(len(store), bool)
    groups = []
    for rows in _same_content(store):
        kept = photos.each_once(sorted(rows.tolist(), key=photos.is_link))
        candidates[rows] = False
        candidates[kept[:1]] = True
        if len(kept) > 1:
            groups.append(Group(np.array(kept), np.ones(len(kept)), exact=True))
    if threshold is not None:
        groups += duplicates(
            store.vectors,
            threshold,
            normalized=store.options.normalize,
            candidates=candidates,
            there=lambda row: photos.file(row) is not None,
        )
    table = store.table(["width", "height", "size", "mtime_ns"])
    return [replace(group, photos=_members(store, photos, group, table)) for group in groups]


def account(groups: list[Group], rows: int) -> str:
    """How many groups there are, and how many of a store's rows are in them."""
    copies = counted(sum(group.exact for group in groups), "group")
    near = counted(sum(not group.exact for group in groups), "group")
    among = counted(photo_count(groups), "photo")
    return f"{copies} of copies, {near} of near-duplicates: {among} of {counted(rows, 'row')}"


def photo_count(groups: list[Group]) -> int:
    """How many rows are in groups; one that stands for its copies may be in two."""
    return len({row for group in groups for row in group.rows.tolist()})


def _members(
    store: EmbeddingStore, photos: Photos, group: Group, table: pa.Table
) -> tuple[Member, ...]:
    members, inodes = [], set()
    values = table.take(pa.array(group.rows)).to_pylist()
    for row, score, each in zip(group.rows.tolist(), group.similarities, values, strict=True):
        inode = photos.inode(row)
        likeness = "reference" if not members else "copy" if group.exact else f"{score:.4f}"
        if likeness == "copy" and inode is not None and inode in inodes:
            likeness = "hard link"
        inodes.add(inode)
        size = each["width"], each["height"], each["size"]
        modified = datetime.fromtimestamp(each["mtime_ns"] / 1e9).isoformat(" ", "minutes")
        members.append(Member(row, store.paths[row], likeness, float(score), *size, modified))
    return tuple(members)


def _same_content(store: EmbeddingStore) -> list[np.ndarray]:
    """The rows of each digest that several have, in order."""
    digests = store.table(["digest"])["digest"].combine_chunks()
    codes = digests.dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    return [rows for rows in np.split(order, starts) if len(rows) > 1]


def duplicates(
    matrix: np.ndarray,
    threshold: float,
    *,
    normalized: bool = False,
    candidates: np.ndarray | None = None,
    there: Callable[[int], bool] = lambda row: True,
) -> list[Group]:
    """Groups of a reference and the rows with a cosine >= `threshold` to it, tightest first.

    In the order of the rows each joins the first reference that it is near enough to, or becomes
    one. `matrix` is float32 (n, D), compared in blocks, n * n * D operations at most; `normalized`
    says that all rows have length 1. `candidates`, bool (n,), are the rows to compare; `there` is
    asked of those that would be in a group. Raises UsageError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold must be above 0 and at most 1, got {threshold}")
    matrix = np.asarray(matrix)
    free = np.ones(len(matrix), bool) if candidates is None else candidates.copy()
    scale = None if normalized else inverse_norms(matrix)
    groups = _Finder(matrix, threshold, scale, free, there).groups()
    return sorted(groups, key=lambda group: (-group.lowest, group.rows[0]))


@dataclass
class _Finder:
    """The rows that are still free, and the members of each reference so far."""

    matrix: np.ndarray
    threshold: float
    scale: np.ndarray | None  # 1 / length of each row, where not all have length 1
    free: np.ndarray
    there: Callable[[int], bool]

    def __post_init__(self):
        self.space = np.empty(_BLOCK_ROWS * _BLOCK_ROWS, np.float32)
        self.members: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def groups(self) -> list[Group]:
        starts = range(0, len(self.matrix), _BLOCK_ROWS)
        for left in starts:
            rows = self._free_rows(left)
            for right in starts[left // _BLOCK_ROWS :]:
                self._join(rows, rows if right == left else self._free_rows(right))
                rows = rows[self.free[rows]]
        return [self._group(reference) for reference in self.members]

    def _group(self, reference: int) -> Group:
        rows, scores = map(np.concatenate, zip(*self.members[reference], strict=True))
        order = np.lexsort((rows, -scores))
        return Group(
            np.concatenate([[reference], rows[order]]), np.concatenate([[1.0], scores[order]])
        )

    def _free_rows(self, start: int) -> np.ndarray:
        return start + np.flatnonzero(self.free[start : start + _BLOCK_ROWS])

    def _scores(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Float32 cosines (rows, others), in memory that is used again."""
        scores = self.space[: len(rows) * len(others)].reshape(len(rows), len(others))
        np.matmul(self._block(rows), self._block(others).T, out=scores)
        if self.scale is not None:
            scores *= self.scale[rows, None]
            scores *= self.scale[others]
        return scores

    def _block(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of ascending rows, in place where none is left out."""
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self.matrix[rows[0] : rows[-1] + 1]
        return self.matrix[rows]

    def _join(self, rows: np.ndarray, others: np.ndarray) -> None:
        """Gives to each row, in order, the free ones after it that are near enough."""
        hits = self._scores(rows, others) >= np.float32(self.threshold - MARGIN)
        if rows is others:
            hits = np.triu(hits, 1)
        for i in np.flatnonzero(hits.any(axis=1)):
            row, near = int(rows[i]), others[hits[i]]
            near = near[self.free[near]]
            if not self.free[row] or not len(near):
                continue
            exact = cosines(self.matrix, np.full(len(near), row), self.matrix, near)
            near, exact = near[exact >= self.threshold], exact[exact >= self.threshold]
            if len(near):
                self._take(row, near, exact)

    def _take(self, row: int, near: np.ndarray, scores: np.ndarray) -> None:
        """Members for a reference, as far as their photos are there."""
        self.free[row] = self.there(row)
        if not self.free[row]:
            return
        self.free[near] = False
        there = np.array([self.there(int(other)) for other in near], bool)
        if there.any():
            self.members.setdefault(row, []).append((near[there], scores[there]))
