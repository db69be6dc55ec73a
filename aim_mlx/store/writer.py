"""Writing to a store: rows gather to a shard; shard and line in the journal are one commit."""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aim_mlx.errors import OutputError
from aim_mlx.store import lists
from aim_mlx.store import manifest as manifests
from aim_mlx.store.folder import clean, load_rows, next_number, prepared, without_damaged
from aim_mlx.store.journal import Journal, State
from aim_mlx.store.rows import COLUMNS, Catalog, Row, exact_paths, with_paths
from aim_mlx.store.shards import (
    Shard,
    read_group,
    read_table,
    table_of,
    write_shard,
)

_SHARD_BYTES = 32 << 20  # of vectors; what is written or rewritten in one piece
_SHARD_ROWS = 8192
_SECONDS = 30.0  # a shard closes at the first end of a block after this long


_NONE: Mapping[int, str] = {}


class _Part(NamedTuple):
    """A shard in a group to be written anew: which rows are kept, and new paths of some."""

    shard: Shard
    keep: np.ndarray
    names: dict[int, str]


@contextmanager
def writing(folder: Path, overwrite: bool = False) -> Iterator["StoreWriter"]:
    """A store, or a folder to become one, for this process alone to write to.

    With `overwrite` it begins empty, but nothing is deleted before begin(). Raises OutputError for
    a folder that is no store, or while another process writes there.
    """
    with prepared(folder, overwrite):
        if os.path.lexists(folder / manifests.NAME) and not overwrite:
            manifests.read(folder)  # a newer schema may have another journal
        yield StoreWriter(folder, overwrite)


class StoreWriter:
    """A store that this process has locked; made by `writing`.

    Rows added since the last commit() are lost with the process, those before are not. `notes` says
    what had to be mended.
    """

    def __init__(self, folder: Path, overwrite: bool):
        self.folder = folder
        self._overwrite = overwrite
        self.catalog = Catalog()
        self.notes: list[str] = []
        self._journal = Journal(folder, afresh=self._is_new())
        self._most_rows = _SHARD_ROWS
        self._rows: list[Row] = []
        self._vectors: list[np.ndarray] = []
        self._skips: list[dict[str, Any]] = []
        self._first_frames: list[str] = []
        self._films: set[str] = set()  # digests of contents with several frames
        self._unpublished: dict[str, int] = {}  # digest -> its place in _rows
        self._complete = (0, 0, 0)  # rows, skips, first frames that complete blocks have
        self._committed_at = time.monotonic()
        self._last_read = "", 0, np.empty((0, 0), np.float32)  # shard, first row, vectors

    @property
    def state(self) -> State:
        """What the journal says."""
        return self._journal.state

    def begin(self, manifest: Mapping[str, Any], replace: bool = False) -> dict[str, Any]:
        """Makes sure the store is one of these vectors, and sound; the manifest it goes by.

        With `replace` a store of other vectors begins empty. Otherwise raises OutputError for it.
        """
        with self._storing():
            if self._is_new() or (replace and not self._is_of(manifest)):
                # In this order a crash leaves an empty store, never rows under a wrong manifest.
                self._journal.clear()
                manifests.write(self.folder, manifest)
            there = manifests.read(self.folder)
            manifests.check_same(self.folder, there, manifest)
            self.notes += without_damaged(self.folder, self._journal, there["dim"])
            clean(self.folder, self.state)
            load_rows(self.folder, self.state.shards, self.catalog)
        rows = map(self.catalog.find, self.state.first_frames)
        self._films.update(self.catalog.row(row).digest for row in rows if row is not None)
        self._most_rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // (4 * there["dim"])))
        return there

    def _is_new(self) -> bool:
        return self._overwrite or not os.path.lexists(self.folder / manifests.NAME)

    def _is_of(self, manifest: Mapping[str, Any]) -> bool:
        return manifests.difference(manifests.read(self.folder), manifest) is None

    def start_run(
        self,
        header: Mapping[str, Any],
        paths: Iterable[str],
        skips: Iterable[Mapping[str, Any]],
    ) -> None:
        """Writes down the files of a run, and those known to be skipped, before any is opened."""
        with self._storing():
            if self.state.finished is not None:
                self._journal.append()  # the lists below are of a run that is not finished
            lists.write_files(self.folder, header, paths)
            lists.write_skips(self.folder, skips)

    def add(self, row: Row, vector: np.ndarray, first_frame: bool = False) -> None:
        """Appends a row: vector float32 (D,)."""
        self._unpublished.setdefault(row.digest, len(self._rows))
        self._rows.append(row)
        self._vectors.append(vector)
        if first_frame:
            self._first_frames.append(row.path)
            self._films.add(row.digest)

    def skip(self, record: dict[str, Any]) -> None:
        """Records an image that gave no row: path, reason, detail, size, mtime_ns."""
        self._skips.append(record)

    def has(self, digest: str) -> bool:
        """Whether a row that is committed has this content."""
        return self.catalog.find_digest(digest) is not None

    def find(self, digest: str) -> tuple[Row, np.ndarray] | None:
        """A row with this content and its vector."""
        place = self._unpublished.get(digest)
        if place is not None:
            return self._rows[place], self._vectors[place]
        row = self.catalog.find_digest(digest)
        if row is None:
            return None
        number, place = self.catalog.place(row)
        return self.catalog.row(row), self._vector(self.state.shards[number], place)

    def is_first_frame(self, digest: str) -> bool:
        """Whether images with this content, which has a row, have several frames."""
        return digest in self._films

    def end_block(self) -> None:
        """All rows so far may be committed; does so when they make a shard, or after 30 s."""
        self._complete = (len(self._rows), len(self._skips), len(self._first_frames))
        full = len(self._rows) >= self._most_rows
        if full or time.monotonic() - self._committed_at >= _SECONDS:
            self.commit()

    def commit(self) -> None:
        """Makes the complete blocks durable and forgets the rest; raises OutputError."""
        rows, skips, frames = self._complete
        if rows or skips:
            with self._storing():
                self._commit(rows, self._skips[:skips], self._first_frames[:frames])
        self._rows, self._vectors, self._skips, self._first_frames = [], [], [], []
        self._unpublished, self._complete = {}, (0, 0, 0)
        self._committed_at = time.monotonic()

    def _commit(self, rows: int, skips: list[dict[str, Any]], first_frames: list[str]) -> None:
        table = table_of(self._rows[:rows], np.stack(self._vectors[:rows])) if rows else None
        shards = [] if table is None else [self._write(table)]
        whole = self.state.first_frames.intersection(row.path for row in self._rows[:rows])
        self._journal.append(shards, (), skips, first_frames, sorted(whole))
        if table is not None:
            self.catalog.add([row.path for row in self._rows[:rows]], table)
        lists.append_skips(self.folder, skips)

    def compact(self, dropped: Collection[int], renamed: Mapping[int, str] = _NONE) -> None:
        """Takes rows out, gives others new paths, and joins small shards to full ones.

        Rows go by their numbers in the catalog, which describes the store as it was before.
        """
        start = 0
        group: list[_Part] = []
        with self._storing():
            for shard in list(self.state.shards):
                rows = range(start, start := start + shard.rows)
                keep = np.array([row not in dropped for row in rows], bool)
                names = {i: renamed[row] for i, row in enumerate(rows) if row in renamed}
                part = _Part(shard, keep, names)
                if group and not self._fits([*group, part]):
                    self._rewrite(group)
                    group = []
                group.append(part)
            self._rewrite(group)
            clean(self.folder, self.state)

    def finish(self, summary: Mapping[str, Any], skips: Iterable[Mapping[str, Any]]) -> None:
        """Closes a run: its summary, with the digest of its list, and the skips of the list."""
        with self._storing():
            lists.write_skips(self.folder, skips)
            self._journal.append(finished={**summary, "files": lists.digest(self.folder)})
            self._journal.rewrite()

    def _fits(self, parts: list["_Part"]) -> bool:
        return sum(int(part.keep.sum()) for part in parts) <= self._most_rows

    def _rewrite(self, group: list["_Part"]) -> None:
        """One shard in the place of several, without the rows that are not kept."""
        if len(group) < 2 and all(part.keep.all() and not part.names for part in group):
            return
        tables, frames = [], {}
        for shard, keep, names in group:
            table = read_table(self.folder, shard, [*COLUMNS, "embedding"])
            if names:
                before = exact_paths(table)
                table = with_paths(table, [names.get(i, path) for i, path in enumerate(before)])
                frames |= {before[i]: name for i, name in names.items()}
            tables.append(table.filter(pa.array(keep)))
        whole = pa.concat_tables(tables)
        added = [self._write(whole)] if len(whole) else []
        frames = {old: new for old, new in frames.items() if old in self.state.first_frames}
        removed = [part.shard.name for part in group]
        self._journal.append(added, removed, (), list(frames.values()), list(frames))

    def _write(self, table: pa.Table) -> Shard:
        return write_shard(self.folder, next_number(self.folder, self.state.shards), table)

    def _vector(self, shard: Shard, row: int) -> np.ndarray:
        """A row of a shard; files that were renamed together mostly lie together."""
        name, start, vectors = self._last_read
        if name != shard.name or not start <= row < start + len(vectors):
            start, vectors = read_group(self.folder, shard, row)
            self._last_read = shard.name, start, vectors
        return vectors[row - start]

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Turns failures of the disk into one that says what is kept and how to go on."""
        try:
            yield
        except OSError as error:
            kept = self.state.rows
            raise OutputError(
                f"cannot write to {str(self.folder)!r}: {error.strerror or error}; {kept:,} rows "
                "are kept: mend it and run the same command again to resume"
            ) from error
