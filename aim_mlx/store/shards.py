"""Shards: immutable Parquet files that hold the rows of a store, readable by any Parquet reader.

Vectors lie uncompressed, every page has a checksum, and the journal keeps the digest of the file.
"""

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aim_mlx.errors import OutputError
from aim_mlx.files import disk_errors, open_regular, publish
from aim_mlx.store.rows import COLUMNS, Row, exact_paths, path_columns, table_schema

_NAME = re.compile(r"rows-([0-9]{6,12})\.parquet")
_GROUP_ROWS = 1024
_ROW_BYTES = 32 << 10  # of a row without its vector: a path of 4,096 bytes, each escaped
_HEAD_BYTES = 1 << 20  # of pages without rows
MOST_ROWS = 1 << 16  # that the journal may say a shard has; we write far fewer
DIGEST = re.compile("[0-9a-f]{64}")
_OTHER_COLUMNS = "its columns are not those of a store"
_BROKEN = (errno.EIO, errno.EINVAL, errno.ELOOP)  # what a disk, or somebody, did to a file


@dataclass(frozen=True)
class Shard:
    """What the journal knows of a shard: its name, rows, bytes and SHA-256 in hex."""

    name: str
    rows: int
    bytes: int
    sha256: str


def name_of(number: int) -> str:
    return f"rows-{number:06d}.parquet"


def number_of(name: str) -> int | None:
    """The number in a shard's name, None for the name of another file."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and name_of(int(match[1])) == name else None


def table_of(rows: Sequence[Row], vectors: np.ndarray) -> pa.Table:
    """Rows with their vectors, float32 (n, D), as a table."""
    count, dim = vectors.shape
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    kind = table_schema(dim)
    columns = path_columns([row.path for row in rows])
    columns |= {name: [getattr(row, name) for row in rows] for name in COLUMNS[2:]}
    embedding = pa.FixedSizeListArray.from_arrays(flat, type=kind.field("embedding").type)
    arrays = [pa.array(columns[name], kind.field(name).type) for name in COLUMNS]
    return pa.Table.from_arrays([*arrays, embedding], schema=kind)


def write_table(table: pa.Table, file: Any) -> None:
    """Parquet with page checksums; vectors plain and uncompressed, the other columns small."""
    with pq.ParquetWriter(file, table.schema, **PARQUET) as writer:
        writer.write_table(table, row_group_size=_GROUP_ROWS)


PARQUET: dict[str, Any] = {
    "compression": {name: "zstd" for name in COLUMNS} | {"embedding.list.element": "none"},
    "use_dictionary": False,
    "write_page_checksum": True,
    "write_statistics": [*COLUMNS],
}


def write_shard(folder: Path, number: int, table: pa.Table) -> Shard:
    """Publishes a table as a shard; raises OSError."""
    name = name_of(number)
    summed: list[Summed] = []

    def write(file: BinaryIO) -> None:
        summed.append(Summed(file))
        write_table(table, summed[0])

    publish({folder / name: write})
    return Shard(name, len(table), summed[0].bytes, summed[0].digest.hexdigest())


class Summed(io.RawIOBase):
    """A file to write to, which counts and digests what goes through."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.bytes


def damage(folder: Path, shard: Shard, dim: int) -> str | None:
    """What is wrong with a shard's file, None if every byte is as it was written.

    Also where it was written wrong: with other columns than those of vectors of length `dim`.
    Raises OutputError where the file may be sound but cannot be read now.
    """
    path = folder / shard.name
    with disk_errors("read", path):
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size != shard.bytes:
                    return f"it has {size} bytes, {shard.bytes} were written"
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    return "its bytes are not those that were written"
                ours = _parquet(file, shard).schema_arrow.equals(table_schema(dim))
                return None if ours else _OTHER_COLUMNS
        except pa.ArrowException:
            return _OTHER_COLUMNS
        except FileNotFoundError:
            return "it is missing"
        except OSError as error:
            if error.errno not in _BROKEN:
                raise
            return f"it cannot be read: {error.strerror or error}"


def read_table(folder: Path, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Columns of a shard; raises OutputError, naming it, for one that cannot be read."""
    names = list(columns)
    with _opened(folder, shard) as parquet:
        table = parquet.read(names, use_threads=False).select(names)
        _check_columns(table)
        if len(table) != shard.rows:
            raise pa.ArrowInvalid(f"it has {len(table)} rows where {shard.rows} were written")
    return table


def read_rows(folder: Path, shard: Shard) -> tuple[list[str], pa.Table]:
    """The exact paths of a shard and its columns without the vectors."""
    table = read_table(folder, shard, COLUMNS)
    if not all(map(DIGEST.fullmatch, table["digest"].to_pylist())):
        raise damaged(folder, shard, "it has rows without a SHA-256")
    return exact_paths(table), table


def read_group(folder: Path, shard: Shard, row: int) -> tuple[int, np.ndarray]:
    """The vectors, float32 (rows, D), of the row group that a row is in, and its first row."""
    group = row // _GROUP_ROWS
    with _opened(folder, shard) as parquet:
        table = parquet.read_row_group(group, ["embedding"], use_threads=False)
        return group * _GROUP_ROWS, vectors_of(table)


def damaged(folder: Path, shard: Shard, why: object) -> OutputError:
    """The error for a shard that does not hold what it should."""
    reason = " ".join(str(why).split())[:200]
    return OutputError(
        f"shard {str(folder / shard.name)!r} is damaged ({reason}): embed again to compute its rows"
    )


@contextmanager
def _opened(folder: Path, shard: Shard) -> Iterator[pq.ParquetFile]:
    """A shard to read from; whatever Arrow raises meanwhile becomes an OutputError."""
    try:
        with open_regular(folder / shard.name) as file:
            yield _parquet(file, shard)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise damaged(folder, shard, error) from error


def _parquet(file: BinaryIO, shard: Shard) -> pq.ParquetFile:
    """A shard to read from, open as a file: Arrow would take its name for UTF-8.

    To be read without threads. In one of its own Arrow may let go of the file when the interpreter
    is leaving, which aborts the process. Raises ArrowInvalid for a file that is not packed as ours
    are: a few bytes could unpack to more than the memory holds.
    """
    parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
    groups = map(parquet.metadata.row_group, range(parquet.num_row_groups))
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    if unpacked > _ROW_BYTES * shard.rows + os.fstat(file.fileno()).st_size + _HEAD_BYTES:
        raise pa.ArrowInvalid("it would unpack to far more than a store's rows")
    if any(chunk.has_dictionary_page for chunk in chunks):
        raise pa.ArrowInvalid(_OTHER_COLUMNS)
    return parquet


def _check_columns(table: pa.Table) -> None:
    """Raises ArrowInvalid for columns of other types, or with values that those cannot have."""
    kind = table_schema(1)
    for name in table.column_names:
        field = table.schema.field(name)
        if name == "embedding":
            ours = pa.types.is_fixed_size_list(field.type) and field.type.value_type == pa.float32()
        else:
            ours = field.type == kind.field(name).type
        if not ours or (table[name].null_count and not kind.field(name).nullable):
            raise pa.ArrowInvalid(_OTHER_COLUMNS)
    table.validate(full=True)
    names = {"path", "raw_path"}.intersection(table.column_names)
    texts = [chunk.buffers()[-1] for name in names for chunk in table[name].chunks]
    if any(text is not None and b"\0" in text.to_pybytes() for text in texts):
        raise pa.ArrowInvalid("it has paths that no file can have")


def vectors_of(table: pa.Table) -> np.ndarray:
    """The vectors of a table, float32 (n, D)."""
    column = table["embedding"]
    dim = column.type.list_size
    parts = []
    for chunk in column.chunks:  # flatten() imports pyarrow.compute, 5% of a short run
        start = chunk.offset * dim  # of `values`, which Arrow gives whole
        parts.append(chunk.values.to_numpy()[start : start + len(chunk) * dim].reshape(-1, dim))
    return np.concatenate(parts) if parts else np.empty((0, dim), np.float32)
