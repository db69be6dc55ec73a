"""Rows of a CSV, JSONL or Parquet file with named columns, such as path and caption."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.data.labels import check_characters
from aim_mlx.errors import UsageError
from aim_mlx.files import disk_errors

_LONGEST_LINE = 2**20  # bytes; a longer one is no table of paths and captions
_LONGEST_TEXT = 2**16  # characters of one value
# What a file may hold grows with its own size, so that a small one cannot fill the memory.
_ROWS = 200_000  # and one for each byte of the file
_TEXT = 2**26  # bytes of a Parquet file's columns, and 16 for each byte of the file
_BATCH = 64  # rows of a Parquet file at a time: each may be a copy of one text of a few megabytes
_BOM = b"\xef\xbb\xbf"

# Where a row stands, and its values by the names of their columns.
_Found = Iterator[tuple[str, Mapping[str, Any]]]


class MissingColumn(UsageError):
    """A table without one of the columns that are asked for."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """The values of one row in the order the columns were asked for.

    `place` says where it stands, such as "line 7 of pairs.csv", for messages. `several` are the
    values of the column that holds any number of them.
    """

    place: str
    values: tuple[str, ...]
    several: tuple[str, ...] = ()


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    several: str | None = None,
    optional: str | None = None,
    may_be_empty: str | None = None,
) -> list[TableRow]:
    """The rows of a table, its format known by the suffix; other columns are passed over.

    Text is UTF-8, with or without a byte-order mark and with any line ends; lines with nothing in
    them are passed over. Whole numbers become their digits. The column `several` holds lists, or
    text with ";" between its parts, and may be empty. The column `optional` is read, as the last,
    only where the table has it: JSONL in its first line. Values of the column `may_be_empty` may be
    missing, and are "". Raises UsageError for a file that cannot be read or is not of its format, a
    missing column, an empty value, no rows at all, and more than a file of its size would hold.
    """
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise UsageError(
            f"a table must end in {', '.join(_READERS)}, got {path.name!r}: save it as one of these"
        )
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}: check the path of the table")
    wanted = [*columns] if several is None else [*columns, several]
    extra = [] if optional is None else [optional]
    rows: list[TableRow] = []
    try:
        with disk_errors("read", path, kind=UsageError):
            most = _ROWS + path.stat().st_size
            for place, values in read(path, wanted, extra):
                if len(rows) == most:
                    raise _too_much(path, f"more than {most:,} rows")
                if not rows:
                    columns = [*columns, *(name for name in extra if name in values)]
                rows.append(_row(place, values, columns, several, may_be_empty))
    except MemoryError:
        raise UsageError(f"{path.name} does not fit in the memory: divide it") from None
    if not rows:
        raise UsageError(f"{path.name} has no rows: expected {', '.join(wanted)} in each")
    return rows


def beside(table: str | os.PathLike[str], path: str) -> str:
    """A path as a table states it: absolute, or relative to the table's own folder."""
    return os.path.join(os.path.dirname(os.fspath(table)), path)


def _row(
    place: str,
    values: Mapping[str, Any],
    columns: Sequence[str],
    several: str | None,
    may_be_empty: str | None,
) -> TableRow:
    try:
        texts = tuple([_text(place, name, values[name], name == may_be_empty) for name in columns])
        parts = None if several is None else values[several]
    except KeyError as error:
        raise _missing(place, error.args[0], values) from None
    if several is None:
        return TableRow(place, texts)
    if isinstance(parts, str):
        parts = [part for part in map(str.strip, parts.split(";")) if part]
    if parts is None:
        parts = []
    if not isinstance(parts, list):
        raise UsageError(f"{place}: expected a list or text as {several!r}, got {_short(parts)}")
    return TableRow(place, texts, tuple(_text(place, several, part) for part in parts))


def _text(place: str, column: str, value: Any, may_be_empty: bool = False) -> str:
    """A value as text; raises UsageError for one that is none."""
    if may_be_empty and (value is None or isinstance(value, str) and not value.strip()):
        return ""
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise UsageError(f"{place}: expected text as {column!r}, got {_short(value)}")
    if not value.strip():
        raise UsageError(f"{place}: {column!r} is empty: fill it in, or remove the row")
    if "\0" in value:
        raise UsageError(f"{place}: {column!r} holds a NUL character: remove it")
    if len(value) > _LONGEST_TEXT:
        raise UsageError(
            f"{place}: {column!r} has {len(value):,} characters: expected {_LONGEST_TEXT:,} at most"
        )
    if not value.isascii():
        check_characters(f"{place}: {column!r}", value)
    return value


def _csv_rows(path: Path, wanted: Sequence[str], extra: Sequence[str]) -> _Found:
    """A header with the names of the columns, then the rows; quoted values may hold line ends."""
    # Not Arrow's reader, which takes a quote that is never closed, and does not say which line.
    with open(path, "rb") as file:
        reader = csv.reader(_lines(path, file), strict=True)
        try:
            header = next(reader, [])
            _check_columns(path, header, wanted, extra)
            for values in reader:
                place = f"line {reader.line_num} of {path.name}"
                if values and len(values) != len(header):
                    raise UsageError(
                        f"{place}: expected {len(header)} values, got {len(values)}: put values "
                        "that hold a comma in double quotes"
                    )
                if values:
                    yield place, dict(zip(header, values, strict=True))
        except csv.Error as error:
            where = f"line {reader.line_num} of {path.name}"
            raise UsageError(f"{where} is not CSV ({error}): fix it") from error


def _jsonl_rows(path: Path, wanted: Sequence[str], extra: Sequence[str]) -> _Found:
    """One JSON object a line, each with its own names."""
    # Not Arrow's reader, which takes a column of texts and numbers for an error, and half a
    # character in a path, and large numbers for infinity.
    with open(path, "rb") as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            place = f"line {number} of {path.name}"
            try:
                values = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{place} is not JSON ({error!s:.80}): fix it") from error
            if not isinstance(values, dict):
                raise UsageError(f"{place}: expected a JSON object, got {_short(values)}")
            yield place, values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a name that is there twice: one would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is there twice")
    return values


def _parquet_rows(path: Path, wanted: Sequence[str], extra: Sequence[str]) -> _Found:
    """Rows of a file, a few at a time, as long as they keep to what a file of its size may hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(path, schema.names, wanted, extra)
            columns = [name for name in schema.names if name in (*wanted, *extra)]
            for column in columns:
                _check_type(path, column, schema.field(column).type)
            room = _room(path, file.metadata, columns)
            number = 0
            for batch in file.iter_batches(_BATCH, columns=columns):
                values = [_dense(batch.column(name)) for name in columns]
                room -= sum(array.nbytes for array in values)
                if room < 0:
                    raise _too_much(path, f"more than {_TEXT:,} bytes of text")
                for row in zip(*(array.to_pylist() for array in values), strict=True):
                    number += 1
                    yield f"row {number} of {path.name}", dict(zip(columns, row, strict=True))
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UsageError(
            f"{path.name} is not a sound Parquet file ({' '.join(str(error).split())[:80]}): "
            "write it again"
        ) from error


_READERS = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _check_type(path: Path, column: str, kind: Any) -> None:
    """Raises UsageError for a column of neither texts nor whole numbers, nor lists of them."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    inner = inner.value_type if types.is_dictionary(inner) else inner
    passing = (types.is_string, types.is_large_string, types.is_integer, types.is_null)
    if not any(passes(inner) for passes in passing):
        raise UsageError(f"{path.name}: expected text as {column!r}, got a column of {kind!s:.80}")


def _room(path: Path, metadata: Any, columns: Sequence[str]) -> int:
    """Bytes that the columns may take; UsageError where they claim more than a file of its size."""
    size = path.stat().st_size
    room, values, unpacked = _TEXT + 16 * size, 0, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.split(".")[0] in columns:
                values += chunk.num_values
                unpacked += chunk.total_uncompressed_size
    if values > len(columns) * (_ROWS + size) or unpacked > room:
        raise _too_much(path, f"{values:,} values and {unpacked:,} bytes, unpacked,")
    return room


def _too_much(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path.name} holds {what} in a file of {path.stat().st_size:,} bytes: divide it, or "
        "write it without compression"
    )


def _dense(array: Any) -> Any:
    """An Arrow array, or the lists in one, with every value in full and none in a dictionary."""
    if hasattr(array, "dictionary"):
        return array.dictionary_decode()
    if hasattr(array, "offsets") and hasattr(array.values, "dictionary"):
        return type(array).from_arrays(array.offsets, array.values.dictionary_decode())
    return array


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; raises UsageError naming the line that is none."""
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > _LONGEST_LINE:
            raise UsageError(
                f"line {number} of {path.name} is longer than {_LONGEST_LINE:,} bytes: "
                "expected a table of text"
            )
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"line {number} of {path.name} is not UTF-8 (byte {error.start + 1} of the line): "
                "save the table as UTF-8"
            ) from error


def _check_columns(
    path: Path, names: list[str], wanted: Sequence[str], extra: Sequence[str]
) -> None:
    """Raises UsageError for a column that is not there, or is there twice."""
    for column in wanted:
        if column not in names:
            raise _missing(path.name, column, names)
    for column in (*wanted, *extra):
        if names.count(column) > 1:
            raise UsageError(f"{path.name} has the column {column!r} twice: expected it once")


def _missing(place: str, column: str, names: Iterable[str]) -> MissingColumn:
    there = ", ".join(map(repr, names))
    there = there if len(there) <= 200 else f"{there[:197]}..."
    return MissingColumn(f"{place} has no column {column!r}: it has {there or 'none'}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
