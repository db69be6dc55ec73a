"""Images in the cells of Parquet files.

A ParquetImage is a text that names a cell, FILE#ROW, and stands wherever the path of an image does.
The first image that is asked for unpacks its row group. In a group without compression, as
`datasets` writes them, that says where in the file each image is, and from then on it is read like
a file of its own; other groups are unpacked whenever they are no longer kept.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from aim_mlx.errors import ImageError

_LARGEST_GROUP = 1 << 30  # bytes that the images of a row group may unpack to
_KEPT = 256 << 20  # bytes of row groups that are kept, or a single larger one
_BATCH = 16  # rows that are unpacked at a time: each may be a copy of one large image
_HEADER = 1 << 16  # bytes between the images of two pages, beside two of them as statistics


class ImageColumn:
    """The images of a Parquet file: its column `leaf`, of bytes, in row groups of `rows` rows."""

    def __init__(self, file: str, leaf: str, rows: Sequence[int]):
        self.file, self._leaf = file, leaf
        self._ends = np.cumsum(rows)
        self._spans: dict[Hashable, np.ndarray] = {}

    def __getitem__(self, row: int) -> "ParquetImage":
        """The image in a row, counted from 0; names sort as their rows do."""
        return ParquetImage(f"{self.file}#{row + 1:0{len(str(self._ends[-1]))}}", self, row)

    def read(self, row: int, version: Hashable) -> bytes:
        """The bytes in a row; `version` is another where the file is. Raises ImageError."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        place = row - (int(self._ends[group - 1]) if group else 0)
        key = (self.file, self._leaf, version, group)
        with _turn:  # threads work on neighbours: the first unpacks the group for all of them
            cells, spans = _kept.get(key), self._spans.get(key)
            if cells is None and spans is None:
                cells, spans = _read_group(self.file, self._leaf, group)
                _keep(key, cells)
                if spans is not None:
                    self._spans[key] = spans
        rows = spans if cells is None else cells
        if rows is None or place >= len(rows):
            raise ImageError("changed", "the file has fewer rows than when it was listed")
        if rows is spans:
            data = _read_span(self.file, *rows[place].tolist())
        else:
            data = rows[place].as_py()
        if not data:
            raise ImageError("empty", "the cell has no bytes")
        return data


class ParquetImage(str):
    """The name of an image in a cell, which knows where it is."""

    __slots__ = ("column", "row")
    column: ImageColumn
    row: int

    def __new__(cls, name: str, column: ImageColumn, row: int) -> "ParquetImage":
        image = super().__new__(cls, name)
        image.column, image.row = column, row
        return image

    def __deepcopy__(self, memo: dict[int, Any]) -> "ParquetImage":
        return self  # as of any text


_kept: OrderedDict[Hashable, Any] = OrderedDict()  # the row groups that were read last
_turn = threading.Lock()


def _keep(key: Hashable, cells: Any) -> None:
    _kept[key] = cells
    while len(_kept) > 1 and sum(each.nbytes for each in _kept.values()) > _KEPT:
        _kept.popitem(last=False)


def _read_group(file: str, leaf: str, group: int) -> tuple[Any, np.ndarray | None]:
    """The cells of a row group, an Arrow array in chunks, and their spans; raises ImageError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chunks, room = [], _LARGEST_GROUP
    try:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            batches = parquet.iter_batches(
                _BATCH, row_groups=[group], columns=[leaf], use_threads=False
            )
            for batch in batches:
                cells = batch.column(0)
                chunks.append(cells.flatten()[0] if pa.types.is_struct(cells.type) else cells)
                room -= chunks[-1].nbytes
                if room < 0:
                    raise ImageError(
                        "too_large",
                        f"row group {group + 1} has more than {_LARGEST_GROUP:,} bytes of images: "
                        "write the file with fewer rows in a group",
                    )
            cells = pa.chunked_array(chunks or [pa.array([], pa.binary())])
            return cells, _spans(file, leaf, parquet.metadata.row_group(group), cells)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:80]
        detail = f"row group {group + 1} cannot be read ({reason})"
        raise ImageError("unreadable", detail) from error


def _spans(file: str, leaf: str, group: Any, cells: Any) -> np.ndarray | None:
    """Where each cell starts in the file and how long it is, (n, 2); None where it is not there.

    They are looked for in the order in which they stand; between them are lengths and the headers
    of pages.
    """
    chunks = map(group.column, range(group.num_columns))
    chunk = next((each for each in chunks if each.path_in_schema == leaf), None)
    if chunk is None or chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        return None
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    if not 0 <= start or not 0 < size <= _KEPT:
        return None
    with open(file, "rb") as opened:
        data = os.pread(opened.fileno(), size, start)
    spans, place, longest = np.zeros((len(cells), 2), np.int64), 0, 0
    for row, cell in enumerate(cells):
        value = cell.as_py() or b""
        longest = max(longest, len(value))
        place = data.find(value, place, place + _HEADER + 3 * longest)
        if place < 0:
            return None
        spans[row] = start + place, len(value)
        place += len(value)
    return spans


def _read_span(file: str, start: int, size: int) -> bytes:
    try:
        with open(file, "rb") as opened:
            return os.pread(opened.fileno(), size, start)
    except OSError as error:
        raise ImageError("unreadable", os.strerror(error.errno or 0)) from error
