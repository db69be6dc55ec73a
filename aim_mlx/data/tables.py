"""Rows of a CSV, JSONL or Parquet file with named columns, such as path and caption."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.errors import UsageError

SUFFIXES = (".csv", ".jsonl", ".parquet")
_LONGEST_LINE = 2**20  # bytes; a longer one is no table of paths and captions
_LONGEST_TEXT = 2**16  # characters of one value
# What a file may hold grows with its own size, so that a small one cannot fill the memory.
_ROWS = 200_000  # and one for each byte of the file
_TEXT = 2**26  # bytes of a Parquet file's columns, and 16 for each byte of the file
_BATCH = 64  # rows of a Parquet file at a time: each may be a copy of one text of a few megabytes
_BOM = b"\xef\xbb\xbf"


class MissingColumn(UsageError):
    """A table without one of the columns that are asked for."""


@dataclass(frozen=True, slots=True)
class Row:
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
) -> list[Row]:
    """The rows of a table, its format known by the suffix; other columns are passed over.

    Text is UTF-8, with or without a byte-order mark and with any line ends; lines with nothing in
    them are passed over. Whole numbers become their digits. The column `several` holds lists, or
    text with ";" between its parts, and may be empty. The column `optional` is read, as the last,
    only where the table has it. Values of the column `may_be_empty` may be missing, and are "".
    Raises UsageError for a file that cannot be read or is not of its format, a missing column, an
    empty value, no rows at all, and more than a file of its size would hold.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise UsageError(
            f"a table must end in {', '.join(SUFFIXES)}, got {path.name!r}: save it as one of these"
        )
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}: check the path of the table")
    read = readers[path.suffix.lower()]
    try:
        if optional is not None and optional in _names(path):
            columns = [*columns, optional]
        wanted = [*columns] if several is None else [*columns, several]
        found = _counted(path, read(path, wanted))
        rows = [_row(place, columns, several, values, may_be_empty) for place, values in found]
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except MemoryError:
        raise UsageError(f"{path.name} does not fit in the memory: divide it") from None
    if not rows:
        raise UsageError(f"{path.name} has no rows: expected {', '.join(wanted)} in each")
    return rows


def beside(table: str | os.PathLike[str], path: str) -> str:
    """A path as a table states it: absolute, or relative to the table's own folder."""
    return os.path.join(os.path.dirname(os.fspath(table)), path)


def _names(path: Path) -> Sequence[str]:
    """The columns of a table, as far as its first row tells; what is wrong is said on reading."""
    try:
        with open(path, "rb") as file:
            if path.suffix.lower() == ".parquet":
                import pyarrow.parquet as pq

                return pq.read_schema(file).names
            if path.suffix.lower() == ".csv":
                return next(csv.reader(_lines(path, file)), [])
            return list(json.loads(next(filter(str.strip, _lines(path, file)), "[]")))
    except (ValueError, RecursionError, TypeError, csv.Error):  # Arrow's are ValueErrors too
        return []


def _counted(path: Path, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The rows, as long as a file of this size can have as many."""
    most = _ROWS + path.stat().st_size
    for number, row in enumerate(rows, 1):
        if number > most:
            raise _too_much(path, f"more than {most:,} rows")
        yield row


def _too_much(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path.name} holds {what} in a file of {path.stat().st_size:,} bytes: divide it, or "
        "write it without compression"
    )


def _row(
    place: str,
    columns: Sequence[str],
    several: str | None,
    values: Sequence[Any],
    may_be_empty: str | None,
) -> Row:
    texts = _checked(place, columns, values[: len(columns)], may_be_empty)
    if several is None:
        return Row(place, texts)
    parts = values[-1]
    if isinstance(parts, str):
        parts = [part for part in map(str.strip, parts.split(";")) if part]
    if parts is None:
        parts = []
    if not isinstance(parts, (list, tuple)):
        raise UsageError(f"{place}: expected a list or text as {several!r}, got {_short(parts)}")
    return Row(place, texts, _checked(place, [several] * len(parts), parts))


def _checked(
    place: str, columns: Sequence[str], values: Sequence[Any], may_be_empty: str | None = None
) -> tuple[str, ...]:
    """The values as text; raises UsageError, with the place, for one that is none."""
    texts = []
    for column, value in zip(columns, values, strict=True):
        if type(value) is int:
            value = str(value)
        if value is None and column == may_be_empty:
            value = ""
        if not isinstance(value, str):
            raise UsageError(f"{place}: expected text as {column!r}, got {_short(value)}")
        value = value if value.strip() else ""
        if not value and column != may_be_empty:
            raise UsageError(f"{place}: {column!r} is empty: fill it in, or remove the row")
        if "\0" in value:
            raise UsageError(f"{place}: {column!r} holds a NUL character: remove it")
        if len(value) > _LONGEST_TEXT:
            raise UsageError(
                f"{place}: {column!r} has {len(value):,} characters: expected {_LONGEST_TEXT:,} "
                "at most"
            )
        if not value.isascii() and not _is_path(value):
            raise UsageError(f"{place}: {column!r} holds half a character: fix it")
        texts.append(value)
    return tuple(texts)


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
    """A header with the names of the columns, then the rows; quoted values may hold line ends."""
    with open(path, "rb") as file:
        reader = csv.reader(_lines(path, file), strict=True)
        try:
            header = next(reader, [])
            places = [_column(path, header, column) for column in columns]
            for values in reader:
                place = f"line {reader.line_num} of {path.name}"
                if values and len(values) != len(header):
                    raise UsageError(
                        f"{place}: expected {len(header)} values, got {len(values)}: put values "
                        "that hold a comma in double quotes"
                    )
                if values:
                    yield place, [values[i] for i in places]
        except csv.Error as error:
            where = f"line {reader.line_num} of {path.name}"
            raise UsageError(f"{where} is not CSV ({error}): fix it") from error


def _jsonl_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
    """One JSON object a line."""
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
            for column in columns:
                if column not in values:
                    raise _missing(place, column, list(values))
            yield place, [values[column] for column in columns]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a name that is there twice: one would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is there twice")
    return values


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Rows of a file, a few at a time, as long as they keep to what a file of its size may hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for column in columns:
                _column(path, file.schema_arrow.names, column)
                _check_type(path, column, file.schema_arrow.field(column).type)
            room = _room(path, file.metadata, columns)
            number = 0
            for batch in file.iter_batches(_BATCH, columns=list(dict.fromkeys(columns))):
                values = {name: _dense(batch.column(name)) for name in columns}
                room -= sum(array.nbytes for array in values.values())
                if room < 0:
                    raise _too_much(path, f"more than {_TEXT:,} bytes of text")
                for row in zip(*(values[name].to_pylist() for name in columns), strict=True):
                    number += 1
                    yield f"row {number} of {path.name}", row
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UsageError(
            f"{path.name} is not a sound Parquet file ({' '.join(str(error).split())[:80]}): "
            "write it again"
        ) from error


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


def _column(path: Path, found: Sequence[str], column: str) -> int:
    """Where a column stands; raises UsageError where it is missing or there twice."""
    if column not in found:
        raise _missing(path.name, column, found)
    if found.count(column) > 1:
        raise UsageError(f"{path.name} has the column {column!r} twice: expected it once")
    return found.index(column)


def _missing(place: str, column: str, found: Sequence[str]) -> MissingColumn:
    names = ", ".join(map(repr, found))
    names = names if len(names) <= 200 else f"{names[:197]}..."
    return MissingColumn(f"{place} has no column {column!r}: it has {names or 'none'}")


def _is_path(text: str) -> bool:
    """Whether a text could name a file: half a character, as JSON can hold, could not."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
