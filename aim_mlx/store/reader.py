"""EmbeddingStore: a finished or growing store, read without loading what is not asked for.

And Photos: where the photos of its rows are now.
"""

import os
import tempfile
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aim_mlx.encoder.encoder import EmbedOptions
from aim_mlx.errors import OutputError, UsageError, warn_of_untrained
from aim_mlx.files import open_regular, publish
from aim_mlx.store import journal, lists, manifest
from aim_mlx.store.folder import matrix_name
from aim_mlx.store.lists import Places, read_header, started_in
from aim_mlx.store.rows import COLUMNS, exact_paths, table_schema
from aim_mlx.store.shards import Shard, damaged, read_table, vectors_of
from aim_mlx.wording import counted

T = TypeVar("T")
_TRIES = 5  # each run changes a store but once in this way


class StoreChanged(OutputError):
    """A run ended and joined the shards of a store, so what was to be read is gone."""


def reading(folder: Path, use: "Callable[[EmbeddingStore], T]") -> T:
    """What `use` makes of a store; called again with the new store where a run changed it."""
    for _ in range(_TRIES - 1):
        with suppress(StoreChanged):
            return use(EmbeddingStore(folder))
    return use(EmbeddingStore(folder))


class EmbeddingStore:
    """The rows of a store: row i of everything belongs to paths[i].

    Nothing but the manifest and the journal is read at first. Raises UsageError for a folder that
    is not there, OutputError for one that is no store, is damaged or of a newer schema. Warns with
    UntrainedModelWarning where random weights made its vectors.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(
                f"expected the folder of a store, but {os.fspath(folder)!r} is not a folder: "
                "make one with: aim-mlx embed PHOTOS -o FOLDER"
            )
        self.manifest: dict[str, Any] = manifest.read(self.folder)
        self._state, _ = journal.read(self.folder / journal.NAME)
        warn_of_untrained(self.manifest["model"].get("trained"))

    @property
    def dim(self) -> int:
        """The length of the vectors, D."""
        return self.manifest["dim"]

    @property
    def finished(self) -> bool:
        """Whether the last run came to its end."""
        return self._state.finished is not None

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def paths(self) -> list[str]:
        """The files exactly as they were named, one a row."""
        return exact_paths(self.table(["path", "raw_path"]))

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """All vectors, float32 (n, D), read-only and mapped from one file; row i is of paths[i].

        The file is made beside the shards when it is first asked for, or for the time of this
        process where the folder cannot be written to. Raises OutputError for a damaged shard, or
        where there is no room for the file.
        """
        path, shape = self.folder / matrix_name(self._state), (len(self), self.dim)
        if not len(self):
            return np.empty(shape, np.float32)
        mapped = None
        with suppress(OSError):
            mapped = mapped_matrix(path, shape)
            if mapped is None:
                publish({path: self._write_matrix})
                mapped = mapped_matrix(path, shape)
        return self._unnamed_matrix() if mapped is None else mapped

    def table(self, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """Columns of the rows as an Arrow table of n rows, in the order of `paths`.

        path (string), raw_path (binary, None where the path is UTF-8), digest (SHA-256 in hex),
        size (bytes), mtime_ns (ns since 1970), width and height (pixels). Raises OutputError for a
        damaged shard.
        """
        tables = [table.select(list(columns)) for table in self._tables(columns)]
        if not tables:
            return table_schema(self.dim).empty_table().select(list(columns))
        return pa.concat_tables(tables)

    def parts(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Paths and vectors, float32 (rows, D), shard by shard in order; raises OutputError."""
        for table in self.tables():
            yield exact_paths(table), vectors_of(table)

    def tables(self) -> Iterator[pa.Table]:
        """All columns with the vectors, shard by shard in order."""
        return self._tables([*COLUMNS, "embedding"])

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """What the last run could not embed: path, reason, detail, size, mtime_ns."""
        return lists.read_skips(self.folder)

    def locate(self, row: int) -> Path:
        """Where the photo of row `row`, 0 to n - 1, is; it may be gone since.

        A relative path is seen from where the first run was started, or from here if it is only
        there.
        Raises IndexError for a row that does not exist.
        """
        return self.locate_path(self.paths[row])

    def locate_path(self, named: str) -> Path:
        """Where the photo of a path is."""
        path = Path(self._places.locate(named))
        return path if path.exists() or not os.path.exists(named) else Path(named)

    @property
    def options(self) -> EmbedOptions:
        """How tokens became these vectors."""
        layers = tuple(self.manifest["layers"])
        return EmbedOptions(self.manifest["pooling"], layers, self.manifest["normalized"])

    @cached_property
    def _places(self) -> Places:
        return Places(started_in(self.folder))

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The current rows of each shard, with at least these columns."""
        wanted = [*dict.fromkeys([*columns, "path", "raw_path"])]
        for shard, keep in zip(self._state.shards, self._current, strict=True):
            table = self._read(shard, wanted)
            yield table if keep is None else table.filter(pa.array(keep))

    def _read(self, shard: Shard, columns: Sequence[str]) -> pa.Table:
        """Columns of a shard; raises StoreChanged where the store no longer is what it was."""
        try:
            table = read_table(self.folder, shard, columns)
        except OutputError as error:
            if journal.read(self.folder / journal.NAME)[0] == self._state:
                raise
            raise StoreChanged(
                f"{str(self.folder)!r} changed while it was read: run the same command again"
            ) from error
        if "embedding" in columns and table["embedding"].type.list_size != self.dim:
            raise damaged(self.folder, shard, f"its vectors are not of length {self.dim}")
        return table

    @cached_property
    def _current(self) -> list[np.ndarray | None]:
        """Which rows of each shard count, None for all: of rows with one path the last.

        Only a run that was not finished leaves others.
        """
        if self.finished:
            return [None] * len(self._state.shards)
        names = [
            exact_paths(self._read(shard, ["path", "raw_path"])) for shard in self._state.shards
        ]
        later: set[str] = set()
        current: list[np.ndarray | None] = []
        for paths in reversed(names):
            keep = np.array([path not in later for path in paths], bool)
            later.update(paths)
            current.append(None if keep.all() else keep)
        return current[::-1]

    def _write_matrix(self, file: BinaryIO) -> None:
        for _, vectors in self.parts():
            file.write(np.ascontiguousarray(vectors).data)

    def _unnamed_matrix(self) -> np.ndarray:
        """The matrix in a file without a name, which goes with the process."""
        with tempfile.TemporaryFile() as file:
            try:
                self._write_matrix(file)
                file.flush()
            except OSError as error:
                raise OutputError(
                    f"no room for the {4 * len(self) * self.dim:,} bytes of all vectors, neither "
                    f"in {str(self.folder)!r} nor in {tempfile.gettempdir()!r}: make room"
                ) from error
            return np.memmap(file, np.float32, "r", shape=(len(self), self.dim))


def mapped_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The file with all vectors, float32 of this shape, read-only; None if there is no such file.

    Raises OSError where what is there cannot be mapped.
    """
    with suppress(FileNotFoundError), open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 4 * shape[0] * shape[1]:
            return np.memmap(file, np.float32, "r", shape=shape)
    return None


class Photos:
    """The photos of a store's rows; each is looked at once, when it is first asked for.

    A photo is gone when its file is not there while the folder that was embedded still is. Where
    that folder is missing or empty (another machine, a disk that is not mounted) its photos count
    as there. With `gone` those that are gone count too.
    """

    def __init__(self, store: EmbeddingStore, gone: bool = False):
        self._store, self._with_gone, self._places = store, gone, store._places
        self._files: dict[int, Hashable] = {}
        self._inodes: dict[int, tuple[int, int]] = {}
        self._folders: dict[str, bool] = {}
        self.gone: set[int] = set()  # of the rows asked for
        self.away: set[int] = set()  # not there, in a folder that is not there either

    def file(self, row: int) -> Hashable | None:
        """The same for all rows of one file, links to it included; None for one that is gone."""
        if row not in self._files:
            self._files[row] = self._look(row)
        return self._files[row]

    @property
    def left_out(self) -> int:
        """How many of the rows asked for are left out as their photos are gone."""
        return 0 if self._with_gone else len(self.gone)

    def notes(self, shown: Iterable[int]) -> list[str]:
        """What to say of photos left out as they are gone, and of rows shown that are not there."""
        notes = []
        if self.left_out:
            what = counted(self.left_out, "photo that is gone was", "photos that are gone were")
            notes.append(f"{what} left out: --gone shows them")
        if away := len(self.away.intersection(shown)):
            what = counted(away, "photo is", "photos are")
            notes.append(f"{what} not there now: is their disk mounted?")
        return notes

    def each_once(self, rows: Iterable[int], without: Collection[Hashable] = ()) -> list[int]:
        """The first row of each file, in order, but none of the files `without`."""
        seen: set[Hashable] = {None, *without}
        return [row for row in rows if not ((file := self.file(row)) in seen or seen.add(file))]

    def is_link(self, row: int) -> bool:
        """Whether a row's path is a symbolic link."""
        return os.path.islink(self._store.locate(row))

    def inode(self, row: int) -> tuple[int, int] | None:
        """The same for hard links, which are names of one file; None where it is not known."""
        return self._inodes.get(row) if self.file(row) is not None else None

    def _look(self, row: int) -> Hashable | None:
        path = self._store.paths[row]
        # As EmbeddingStore.locate() does: from here if it is only there.
        for place in dict.fromkeys((self._places.locate(path), path)):
            try:
                status = os.stat(place)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return place  # in a folder that cannot be read now
            if status.st_ino:  # some network file systems number nothing
                self._inodes[row] = status.st_dev, status.st_ino
            return file_of(place, status)
        gone = self._is_folder_there(path)
        (self.gone if gone else self.away).add(row)
        return None if gone and not self._with_gone else self._places.locate(path)

    def _is_folder_there(self, path: str) -> bool:
        """Whether the folder that was embedded, and a path with it, is there and not empty."""
        folder = os.path.dirname(self._places.locate(path)) or "."
        if folder not in self._folders:
            above = (source for source in self._sources if self._places.is_under(folder, source))
            try:
                with os.scandir(next(above, folder)) as entries:
                    self._folders[folder] = next(entries, None) is not None
            except OSError:
                self._folders[folder] = False
        return self._folders[folder]

    @cached_property
    def _sources(self) -> list[str]:
        """The folders of the last run."""
        sources = read_header(self._store.folder).get("sources", [])
        return [self._places.locate(source) for source in sources]


def file_of(place: str | os.PathLike[str], status: os.stat_result | None = None) -> Hashable:
    """What is the same for all spellings of a path and links to it, and not for hard links.

    `status` is what os.stat() says of it; raises OSError where it is not there.
    """
    status = status or os.stat(place)
    if status.st_nlink == 1 and status.st_ino:
        return status.st_dev, status.st_ino
    return Places("").entry(os.path.realpath(place))
