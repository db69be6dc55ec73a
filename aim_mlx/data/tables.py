"""Rows of a CSV, JSONL or Parquet file with named columns, such as path and caption."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.data.columns import FILE_NAME, actual, check_columns, missing, short
from aim_mlx.data.labels import check_characters
from aim_mlx.data.parquet_table import ROWS, parquet_rows, too_much
from aim_mlx.errors import UsageError
from aim_mlx.files import disk_errors
from aim_mlx.images.parquet_images import ParquetImage

_LONGEST_LINE = 2**20  # bytes; a longer one is no table of paths and captions
_LONGEST_TEXT = 2**16  # characters of one value
_BOM = b"\xef\xbb\xbf"

# Where a row stands, and its values by the names of their columns.
_Rows = Iterator[tuple[str, Mapping[str, Any]]]


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
    images: str | None = None,
    unlabelled: list[str] | None = None,
) -> list[TableRow]:
    """The rows of a table, its format known by the suffix; other columns are passed over.

    A table without the column path or caption may have another that stands for it (see columns).
    Of Parquet files, the column `images` may hold images, whose values are then ParquetImages, and
    rows whose class is -1 are left out where there is a list `unlabelled` to say where they stand.

    Text is UTF-8, with or without a byte-order mark and with any line ends; lines with nothing in
    them are passed over. Whole numbers become their digits. The column `several` holds lists, or
    text with ";" between its parts, and may be empty. The column `optional` is read, as the last,
    only where the table has it: JSONL in its first line. Values of the column `may_be_empty` may be
    missing, and are "". Raises UsageError for a file that cannot be read or is not of its format, a
    missing column, an empty value, no rows at all, a file_name that leaves the folder, and more
    than a file of its size would hold.
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
    names, lacking = list(columns), may_be_empty
    try:
        with disk_errors("read", path, kind=UsageError):
            most = ROWS + path.stat().st_size
            for place, values in read(path, wanted, extra, images, unlabelled):
                if len(rows) == most:
                    raise too_much(path, f"more than {most:,} rows")
                if not rows:
                    there = [name for name in extra if actual(name, values) in values]
                    names = [actual(name, values) for name in (*columns, *there)]
                    lacking = None if may_be_empty is None else actual(may_be_empty, values)
                rows.append(_row(place, values, names, several, lacking))
    except MemoryError:
        raise UsageError(f"{path.name} does not fit in the memory: divide it") from None
    if not rows and not unlabelled:
        raise UsageError(f"{path.name} has no rows: expected {', '.join(wanted)} in each")
    return rows


def beside(table: str | os.PathLike[str], path: str) -> str:
    """A path as a table states it: absolute, or relative to the table's folder, or in the table."""
    if isinstance(path, ParquetImage):
        return path
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
        raise missing(place, error.args[0], values) from None
    if several is None:
        return TableRow(place, texts)
    if isinstance(parts, str):
        parts = [part for part in map(str.strip, parts.split(";")) if part]
    if parts is None:
        parts = []
    if not isinstance(parts, list):
        raise UsageError(f"{place}: expected a list or text as {several!r}, got {short(parts)}")
    return TableRow(place, texts, tuple(_text(place, several, part) for part in parts))


def _text(place: str, column: str, value: Any, may_be_empty: bool = False) -> str:
    """A value as text; raises UsageError for one that is none."""
    if may_be_empty and (value is None or isinstance(value, str) and not value.strip()):
        return ""
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise UsageError(f"{place}: expected text as {column!r}, got {short(value)}")
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
    if column == FILE_NAME and (value.startswith("/") or ".." in value.split("/")):
        raise UsageError(
            f"{place}: {column!r} {short(value)} leaves the folder: expected a path below it"
        )
    return value


def _csv_rows(path: Path, wanted: Sequence[str], extra: Sequence[str], *_: Any) -> _Rows:
    """A header with the names of the columns, then the rows; quoted values may hold line ends."""
    # Not Arrow's reader, which takes a quote that is never closed, and does not say which line.
    with open(path, "rb") as file:
        reader = csv.reader(_lines(path, file), strict=True)
        try:
            header = next(reader, [])
            wanted = [actual(name, header) for name in wanted]
            check_columns(path.name, header, wanted, extra)
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


def _jsonl_rows(path: Path, *_: Any) -> _Rows:
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
                raise UsageError(f"{place}: expected a JSON object, got {short(values)}")
            yield place, values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a name that is there twice: one would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is there twice")
    return values


_READERS = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": parquet_rows}


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
