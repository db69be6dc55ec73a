"""Writing to a store: rows gather to a shard; shard and line in the journal are one commit."""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aim_mlx.files import disk_errors
from aim_mlx.store import lists
from aim_mlx.store import manifest as manifests
from aim_mlx.store.folder import clean, load_rows, next_number, prepared, without_damaged
from aim_mlx.store.journal import Journal, State
from aim_mlx.store.rows import COLUMNS, Catalog, Row, exact_paths, with_paths
from aim_mlx.store.shards import Shard, read_group, read_table, table_of, write_shard

_SHARD_BYTES = 32 << 20  # of vectors; what is written or rewritten in one piece
_SHARD_ROWS = 8192
_SECONDS = 30.0  # a shard closes at the first end of a block after this long


class _Added(NamedTuple):
    """A row that is not committed yet, and whether it is of the first of several frames."""

    row: Row
    vector: np.ndarray
    first_frame: bool


class _Part(NamedTuple):
    """A shard in a group to be rewritten: which rows are kept, and new paths of some."""

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
    what had to be repaired.
    """

    def __init__(self, folder: Path, overwrite: bool):
        self.folder = folder
        self._overwrite = overwrite
        self.catalog = Catalog()
        self.notes: list[str] = []
        self._journal = Journal(folder, new=self._is_new())
        self._most_rows = _SHARD_ROWS
        self._added: list[_Added] = []
        self._skips: list[dict[str, Any]] = []
        self._films: set[str] = set()  # digests of contents with several frames
        self._place_of: dict[str, int] = {}  # digest -> its place in _added
        self._complete = 0, 0  # rows and skips that complete blocks have
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
        self._place_of.setdefault(row.digest, len(self._added))
        self._added.append(_Added(row, vector, first_frame))
        if first_frame:
            self._films.add(row.digest)

    def skip(self, record: dict[str, Any]) -> None:
        """Records an image that gave no row: path, reason, detail, size, mtime_ns."""
        self._skips.append(record)

    def has(self, digest: str) -> bool:
        """Whether a row that is committed has this content."""
        return self.catalog.find_digest(digest) is not None

    def find(self, digest: str) -> tuple[Row, np.ndarray, bool] | None:
        """A row with this content, its vector, and whether it is of the first of several frames."""
        first_frame = digest in self._films
        if (place := self._place_of.get(digest)) is not None:
            return self._added[place].row, self._added[place].vector, first_frame
        if (row := self.catalog.find_digest(digest)) is None:
            return None
        number, place = self.catalog.place(row)
        return self.catalog.row(row), self._vector(self.state.shards[number], place), first_frame

    def end_block(self) -> None:
        """All rows so far may be committed; does so when they make a shard, or after 30 s."""
        self._complete = len(self._added), len(self._skips)
        full = len(self._added) >= self._most_rows
        if full or time.monotonic() - self._committed_at >= _SECONDS:
            self.commit()

    def commit(self) -> None:
        """Makes the complete blocks durable and forgets the rest; raises OutputError."""
        rows, skips = self._complete
        if rows or skips:
            with self._storing():
                self._commit(self._added[:rows], self._skips[:skips])
        self._added, self._skips, self._place_of, self._complete = [], [], {}, (0, 0)
        self._committed_at = time.monotonic()

    def _commit(self, added: list[_Added], skips: list[dict[str, Any]]) -> None:
        paths = [each.row.path for each in added]
        frames = [each.row.path for each in added if each.first_frame]
        whole = sorted(self.state.first_frames.intersection(paths))
        if added:
            vectors = np.stack([each.vector for each in added])
            table = table_of([each.row for each in added], vectors)
            self._journal.append([self._write(table)], (), skips, frames, whole)
            self.catalog.add(paths, table)
        else:
            self._journal.append((), (), skips)
        lists.append_skips(self.folder, skips)

    def compact(self, dropped: Collection[int], renamed: Mapping[int, str] | None = None) -> None:
        """Takes rows out, gives others new paths, and joins small shards to full ones.

        Rows go by their numbers in the catalog, which describes the store as it was before.
        """
        start, new_names = 0, renamed or {}
        group: list[_Part] = []
        with self._storing():
            for shard in list(self.state.shards):
                rows = range(start, start := start + shard.rows)
                keep = np.array([row not in dropped for row in rows], bool)
                names = {i: new_names[row] for i, row in enumerate(rows) if row in new_names}
                kept = sum(int(part.keep.sum()) for part in group)
                if group and kept + int(keep.sum()) > self._most_rows:
                    self._rewrite(group)
                    group = []
                group.append(_Part(shard, keep, names))
            self._rewrite(group)
            clean(self.folder, self.state)

    def finish(self, summary: Mapping[str, Any], skips: Iterable[Mapping[str, Any]]) -> None:
        """Closes a run: its summary, with the digest of its list, and the skips of the list."""
        with self._storing():
            lists.write_skips(self.folder, skips)
            self._journal.append(finished={**summary, "files": lists.digest(self.folder)})
            self._journal.rewrite()

    def _rewrite(self, group: list[_Part]) -> None:
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

    def _storing(self) -> AbstractContextManager[None]:
        """Turns failures of the disk into one that says what is kept and how to go on."""
        advice = "fix it and run the same command again to resume"
        return disk_errors("write to", self.folder, f"{self.state.rows:,} rows are kept; {advice}")
