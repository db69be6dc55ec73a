"""What a store holds, without the vectors: which paths, as which files, with which contents."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import pyarrow as pa

from aim_mlx.store.rows import Row


class Catalog:
    """The rows of a store's shards, in order; of rows with one path the last is the current one."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._digests: list[bytes] = []
        self._numbers = {name: array("q") for name in ("size", "mtime_ns", "width", "height")}
        self._row_of: dict[str, int] = {}
        self._row_with: dict[bytes, int] = {}
        self._starts: list[int] = []  # the first row of each shard

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, paths: Sequence[str], table: pa.Table) -> None:
        """Appends the rows of a shard."""
        self._starts.append(len(self._paths))
        self._row_of.update(zip(paths, range(len(self), len(self) + len(paths)), strict=True))
        self._paths.extend(paths)
        for digest in map(bytes.fromhex, table["digest"].to_pylist()):
            self._row_with.setdefault(digest, len(self._digests))
            self._digests.append(digest)
        for name, values in self._numbers.items():
            for chunk in table[name].chunks:
                values.frombytes(chunk.cast(pa.int64()).to_numpy().tobytes())

    def current(self) -> Iterator[str]:
        """The paths that have a row."""
        return iter(self._row_of)

    def is_current(self, row: int) -> bool:
        """Whether no later row has the path of this one."""
        return self._row_of[self._paths[row]] == row

    def path(self, row: int) -> str:
        return self._paths[row]

    def find(self, path: str) -> int | None:
        """The current row of a path."""
        return self._row_of.get(path)

    def find_digest(self, digest: str) -> int | None:
        """The first row with this content."""
        return self._row_with.get(bytes.fromhex(digest))

    def content(self, row: int) -> bytes:
        """The digest of what a row was made of."""
        return self._digests[row]

    def row(self, row: int) -> Row:
        size, mtime_ns, width, height = (values[row] for values in self._numbers.values())
        return Row(self._paths[row], self._digests[row].hex(), size, mtime_ns, width, height)

    def is_file(self, row: int, size: int, mtime_ns: int) -> bool:
        """Whether a row was made of a file of this size and time of change."""
        numbers = self._numbers
        return numbers["size"][row] == size and numbers["mtime_ns"][row] == mtime_ns

    def place(self, row: int) -> tuple[int, int]:
        """The shard a row is in, by number in order, and its row there."""
        shard = bisect_right(self._starts, row) - 1
        return shard, row - self._starts[shard]
