"""Whether a store is what it says: bytes, rows and vectors of its shards, and its account.

A sample of its photos can be embedded again, to see that they still give those vectors.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import OutputError
from aim_mlx.images import KnownFile, default_max_pixels
from aim_mlx.store import journal, lists
from aim_mlx.store.folder import damages, matrix_name
from aim_mlx.store.reader import EmbeddingStore, mapped_matrix
from aim_mlx.store.rows import COLUMNS, Row, exact_paths, path_columns
from aim_mlx.store.shards import DIGEST, Shard, read_table, vectors_of

AGAIN = "embed again: it recomputes what is wrong"
OVERWRITE = "embed again with --overwrite"
# float32 sums of a few thousand squares are off by some 1e-6; a damaged number by far more.
_UNIT = 1e-4
_TRIES = 3  # a store that is being written to may change between reading its journal and its shards
# How far the cosine of two computations of one photo may be below 1. Another device or another
# batch sums in another order: the vectors then differ by the rounding of the dtype, some 24 blocks
# deep (relative 1e-5 in float32, 1e-2 and 8e-2 in the half precisions), and the cosine by half the
# square of that. TF32, which some GPUs take for float32, is as coarse as float16.
_MARGIN = {"float32": 1e-4, "float16": 5e-4, "bfloat16": 5e-3}


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: in which file, what is wrong, how to repair it."""

    where: str
    what: str
    todo: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.todo}"


@dataclass(frozen=True)
class Account:
    """What became of the files of the last run: listed == embedded + skipped + ignored + missing.

    `missing` have neither a row nor a reason yet, as the run was not finished.
    """

    listed: int
    embedded: int
    skipped: int
    ignored: int
    missing: int


@dataclass
class Findings:
    """The number of current rows, the account where it could be made, all faults, some rows.

    `sample` holds rows with their vectors, float32 (D,).
    """

    rows: int = 0
    shards: int = 0
    finished: bool = False
    account: Account | None = None
    faults: list[Fault] = field(default_factory=list)
    sample: list[tuple[Row, np.ndarray]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.faults

    @property
    def complete(self) -> bool:
        """Whether the store is sound and the last run came to its end."""
        return self.sound and self.finished


def verify(store: EmbeddingStore, sample: int = 0, seed: int = 0) -> Findings:
    """Reads every byte of a store and compares it with what was written down; changes nothing.

    `sample` rows are chosen by `seed` and kept in the findings. Memory does not grow with the
    vectors. A store that another process writes to is judged by its journal. Raises OutputError
    where manifest or journal cannot be read.
    """
    for _ in range(_TRIES - 1):
        findings = _Verification(store, sample, seed).run()
        if findings.sound or journal.read(store.folder / journal.NAME)[0] == store._state:
            return findings
        store = EmbeddingStore(store.folder)
    return _Verification(store, sample, seed).run()


class _Verification:
    """One pass over the shards of a store, then over its lists."""

    def __init__(self, store: EmbeddingStore, sample: int, seed: int):
        self.store, self.folder, self.state = store, store.folder, store._state
        self.findings = Findings(shards=len(self.state.shards), finished=store.finished)
        count = self.state.rows
        chosen = np.random.default_rng(seed).choice(count, min(sample, count), replace=False)
        self.chosen = np.sort(chosen)
        self.row_of: dict[str, int] = {}
        self.wrong_matrix = ""  # what is wrong with the file that has all vectors in one
        self.matrix = self._matrix()

    def run(self) -> Findings:
        damaged, start = damages(self.folder, self.state.shards, self.store.dim), 0
        for shard in self.state.shards:
            if wrong := damaged.get(shard.name):
                self._fault(shard.name, wrong, AGAIN)
            else:
                self._check_shard(shard, start)
            start += shard.rows
        self.findings.rows = len(self.row_of)
        if self.findings.sound:
            try:
                self._check_account()
            except OutputError as error:
                self._fault("account", str(error), AGAIN)
        if self.wrong_matrix:
            todo = "delete this file; it is made again from the shards"
            self._fault(matrix_name(self.state), self.wrong_matrix, todo)
        return self.findings

    def _matrix(self) -> np.ndarray | None:
        """The file with all vectors in one, if there is one."""
        if not self.state.rows:
            return None
        path = self.folder / matrix_name(self.state)
        try:  # of another size, as it is where rows no longer count, the reader replaces it
            return mapped_matrix(path, (self.state.rows, self.store.dim))
        except OSError as error:
            self.wrong_matrix = error.strerror or str(error)
            return None

    def _check_matrix(self, vectors: np.ndarray, start: int) -> None:
        """Compares its rows from `start` on with those of a shard, up to the first that differs."""
        if self.matrix is None:
            return
        there = self.matrix[start : start + len(vectors)].view(np.uint32)
        differ = (there != np.ascontiguousarray(vectors).view(np.uint32)).any(axis=1)
        if differ.any():
            self.wrong_matrix = f"row {start + int(np.argmax(differ))} is not that of the shards"
            self.matrix = None

    def _fault(self, where: str, what: str, todo: str) -> None:
        self.findings.faults.append(Fault(where, what, todo))

    def _check_shard(self, shard: Shard, start: int) -> None:
        try:
            table = read_table(self.folder, shard, [*COLUMNS, "embedding"])
        except OutputError as error:
            self._fault(shard.name, str(error.__cause__ or error), OVERWRITE)
            return
        paths, vectors = exact_paths(table), vectors_of(table)
        wrong = [*_wrong_columns(table, paths), *_wrong_vectors(vectors, self.store.manifest)]
        for what, rows in wrong:
            if count := int(np.count_nonzero(rows)):
                first = paths[int(np.argmax(rows))]
                self._fault(shard.name, f"{count:,} rows, first {first!r}, {what}", OVERWRITE)
        self._add(shard, paths, start)
        low, high = np.searchsorted(self.chosen, [start, start + len(paths)])
        for i in (self.chosen[low:high] - start).tolist():
            columns = {name: table[name][i].as_py() for name in COLUMNS[2:]}
            self.findings.sample.append((Row(paths[i], **columns), vectors[i].copy()))
        self._check_matrix(vectors, start)

    def _add(self, shard: Shard, paths: Sequence[str], start: int) -> None:
        before = len(self.row_of)
        self.row_of.update(zip(paths, range(start, start + len(paths)), strict=True))
        twice = before + len(paths) - len(self.row_of)
        # A file that changed has a new row, and its old one until the run is finished.
        if twice and (self.store.finished or len(set(paths)) < len(paths)):
            self._fault(shard.name, f"{twice:,} paths have a row already", OVERWRITE)

    def _check_account(self) -> None:
        """Every listed file is a row or a skip, and the counts of the run are those that are there.

        Raises OutputError for a list that cannot be read.
        """
        finished = self.state.finished
        if finished is None and not os.path.lexists(self.folder / lists.FILES):
            return  # a run that ended before it began
        header, files = lists.read_files(self.folder)
        if finished is not None and finished["files"] != lists.digest(self.folder):
            self._fault(lists.FILES, "it is not the list that was written", AGAIN)
            return
        skips = self._skips(set(files))
        rest = [path for path in files if path not in skips]
        embedded = sum(path in self.row_of for path in rest)
        account = Account(
            listed=header["listed"],
            embedded=embedded,
            skipped=len(skips),
            ignored=header["ignored"],
            missing=len(rest) - embedded,
        )
        self.findings.account = account
        if finished is not None:
            self._check_counts(account, finished)
            self._check_reasons(skips)

    def _skips(self, listed: set[str]) -> dict[str, str]:
        """Reasons by path: those of the last run, or those so far where it is not finished."""
        skips = {}
        if self.findings.finished or os.path.lexists(self.folder / lists.SKIPPED):
            skips = {skip["path"]: skip["reason"] for skip in lists.read_skips(self.folder)}
        if not self.findings.finished:
            known = self.state.skipped.items()
            skips |= {path: skip["reason"] for path, skip in known if path in listed}
            # The reason may be of an earlier run, and the row of this one.
            skips = {path: reason for path, reason in skips.items() if path not in self.row_of}
        return skips

    def _check_counts(self, account: Account, finished: Mapping[str, Any]) -> None:
        if account.missing:
            what = f"{account.missing:,} listed files have neither a row nor a reason"
            self._fault(journal.NAME, what, AGAIN)
        parts = account.embedded + account.skipped + account.ignored + account.missing
        if parts != account.listed:
            what = f"it lists {account.listed:,} files, but {parts:,} are accounted for"
            self._fault(lists.FILES, what, AGAIN)
        for name in ("listed", "embedded", "skipped", "ignored"):
            there, counted = getattr(account, name), finished[name]
            if there != counted:
                what = f"the run counted {counted:,} files {name}, there are {there:,}"
                self._fault(journal.NAME, what, AGAIN)

    def _check_reasons(self, skips: Mapping[str, str]) -> None:
        # A file that only vanished keeps the row that it had.
        both = [p for p, why in skips.items() if why != "vanished" and p in self.row_of]
        if both:
            what = f"{len(both):,} files, first {both[0]!r}, were skipped but have a row"
            self._fault(lists.SKIPPED, what, AGAIN)


def _wrong_columns(table: pa.Table, paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """What can be wrong with the columns of a shard, and which rows have it."""
    digests = [DIGEST.fullmatch(digest) is None for digest in table["digest"].to_pylist()]
    yield "have no SHA-256 as digest", np.array(digests, bool)
    for name in ("size", "width", "height"):
        yield f"have a {name} below 1", np.asarray(table[name]) < 1
    shown = path_columns(paths)["path"]
    differ = [a != b for a, b in zip(shown, table["path"].to_pylist(), strict=True)]
    yield "have a raw_path that is not their path", np.array(differ, bool)


def _wrong_vectors(
    vectors: np.ndarray, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    yield "have numbers that are not finite", ~finite
    if manifest["normalized"]:
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        yield "are not of length 1", finite & (np.abs(lengths - 1) > _UNIT)


@dataclass(frozen=True)
class Recomputed:
    """What became of one row: "same" or "differs" with the cosine of old and new vector.

    Or why it could not be compared: "changed" or another reason of a photo that is not what it was,
    with a sentence.
    """

    path: str
    outcome: str
    cosine: float | None = None
    detail: str = ""

    @property
    def fault(self) -> Fault | None:
        """What is wrong where the vectors differ."""
        if self.outcome != "differs":
            return None
        what = f"embedded again it gives a different vector (cosine {self.cosine:.6f})"
        return Fault(self.path, what, OVERWRITE)


def recompute(
    store: EmbeddingStore, encoder: Encoder, sample: Sequence[tuple[Row, np.ndarray]]
) -> Iterator[Recomputed]:
    """Embeds the photos of these rows and compares the vectors, in the order of the rows."""
    photos = [
        KnownFile(str(store.locate_path(row.path)), row.digest, row.size) for row, _ in sample
    ]
    # Whatever was allowed then is allowed now; photos that are whole give the same pixels.
    most = max([default_max_pixels(), *(row.width * row.height for row, _ in sample)])
    options = replace(store.options, allow_truncated=True, max_pixels=most)
    least = 1 - _MARGIN[store.manifest["dtype"]]
    with closing(encoder.embed_stream(photos, options)) as embedded:
        for (row, vector), again in zip(sample, embedded, strict=True):
            if again.failure is not None:
                yield Recomputed(row.path, again.failure.reason, detail=again.failure.detail)
                continue
            old, new = vector.astype(np.float64), again.vector.astype(np.float64)
            cosine = float(old @ new / (np.linalg.norm(old) * np.linalg.norm(new) or 1.0))
            yield Recomputed(row.path, "same" if cosine >= least else "differs", round(cosine, 6))
