"""What one row of a store is, and the Arrow schema of its columns."""

import os
from dataclasses import dataclass
from typing import Any

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


def path_columns(paths: list[str]) -> dict[str, Any]:
    """Paths as the columns `path`, always valid UTF-8, and `raw_path`: null where `path` is exact.

    A name that is not UTF-8 appears in `path` with its odd bytes escaped as \\udcXX.
    """
    return {
        "path": [path.encode("utf-8", "backslashreplace").decode() for path in paths],
        "raw_path": [None if _is_text(path) else os.fsencode(path) for path in paths],
    }


def exact_paths(table: pa.Table) -> list[str]:
    """The paths of a table with the columns `path` and `raw_path`."""
    paths = table["path"].to_pylist()
    raw = table["raw_path"]
    if raw.null_count < len(raw):
        exact = raw.to_pylist()
        return [
            path if name is None else os.fsdecode(name)
            for path, name in zip(paths, exact, strict=True)
        ]
    return paths


def with_paths(table: pa.Table, paths: list[str]) -> pa.Table:
    """A table of rows with other paths."""
    for name, values in path_columns(paths).items():
        place = table.schema.get_field_index(name)
        kind = table.schema.field(place)
        table = table.set_column(place, kind, pa.array(values, kind.type))
    return table


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
