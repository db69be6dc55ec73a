"""What one row of a store is, the columns that hold it, and all rows without their vectors."""

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

COLUMNS = ("path", "raw_path", "digest", "size", "mtime_ns", "width", "height")


@dataclass(frozen=True, slots=True)
class Row:
    """One embedded image: `digest` is the SHA-256 of the file in hex, `size` its bytes.

    `path` is exactly as the file was named; bytes that are not UTF-8 are surrogates, as Python
    has them. `width` and `height` are those of the upright original.
    """

    path: str
    digest: str
    size: int
    mtime_ns: int
    width: int
    height: int


def table_schema(dim: int) -> pa.Schema:
    """The columns of a shard with vectors of length `dim`."""
    element = pa.field("element", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("raw_path", pa.binary()),
            pa.field("digest", pa.string(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("embedding", pa.list_(element, dim), nullable=False),
        ]
    )


def path_columns(paths: Sequence[str]) -> dict[str, Any]:
    """Paths as the columns `path`, always valid UTF-8, and `raw_path`: null where `path` is exact.

    A name that is not UTF-8 appears in `path` with its odd bytes escaped as \\udcXX.
    """
    return {
        "path": [path.encode("utf-8", "backslashreplace").decode() for path in paths],
        "raw_path": [None if _is_text(path) else os.fsencode(path) for path in paths],
    }


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def exact_paths(table: pa.Table) -> list[str]:
    """The paths of a table with the columns `path` and `raw_path`."""
    paths, raw = table["path"].to_pylist(), table["raw_path"]
    if raw.null_count == len(raw):
        return paths
    return [
        path if name is None else os.fsdecode(name)
        for path, name in zip(paths, raw.to_pylist(), strict=True)
    ]


def with_paths(table: pa.Table, paths: Sequence[str]) -> pa.Table:
    """A table of rows with other paths."""
    for name, values in path_columns(paths).items():
        place = table.schema.get_field_index(name)
        kind = table.schema.field(place)
        table = table.set_column(place, kind, pa.array(values, kind.type))
    return table


class Catalog:
    """All rows without their vectors, in order; of rows with one path the last is the current."""

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
        self._starts.append(len(self))
        self._row_of.update(zip(paths, range(len(self), len(self) + len(paths)), strict=True))
        self._paths.extend(paths)
        for digest in map(bytes.fromhex, table["digest"].to_pylist()):
            self._row_with.setdefault(digest, len(self._digests))
            self._digests.append(digest)
        for name, values in self._numbers.items():
            for chunk in table[name].chunks:
                values.frombytes(chunk.to_numpy().astype(np.int64).tobytes())

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
        numbers = {name: values[row] for name, values in self._numbers.items()}
        return Row(self._paths[row], self._digests[row].hex(), **numbers)

    def is_file(self, row: int, size: int, mtime_ns: int) -> bool:
        """Whether a row was made of a file of this size and time of change."""
        numbers = self._numbers
        return numbers["size"][row] == size and numbers["mtime_ns"][row] == mtime_ns

    def place(self, row: int) -> tuple[int, int]:
        """The shard a row is in, by number in order, and its row there."""
        shard = bisect_right(self._starts, row) - 1
        return shard, row - self._starts[shard]
