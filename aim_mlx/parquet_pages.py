"""What the pages of a Parquet file will unpack to, read from their headers before any is unpacked.

The sums at the end of the file are what its writer claims. A page is unpacked as its own header
says, whatever was claimed. Headers are Thrift's compact protocol (Apache's parquet-format).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_HEADER = 2**16  # bytes that hold nearly every header
_LONGEST_HEADER = 2**24  # bytes; Arrow reads no longer ones
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # kinds of pages
_DELTA_BYTE_ARRAY = 7  # an encoding: each text repeats the beginning of the one before
_KINDS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # the field with the header of the kind


@dataclass(frozen=True)
class Extent:
    """What some columns hold: values, bytes unpacked, and the largest page that repeats texts.

    A page of a dictionary, for one: any row may be a copy of the longest text in it.
    """

    values: int = 0
    unpacked: int = 0
    repeated: int = 0


def extent(file: BinaryIO, metadata: Any, columns: list[int]) -> Extent:
    """The extent of columns of a file with these (pyarrow's) metadata.

    Raises ValueError for a header that is none.
    """
    values = unpacked = repeated = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for page in (page for i in columns for page in _pages(file, group.column(i))):
            unpacked += page[2]
            kind = page.get(_KINDS.get(page[1], -1), {})
            values += kind.get(1, 0)
            encoding = kind.get(4 if page[1] == _DATA_V2 else 2)
            if page[1] == _DICTIONARY or encoding == _DELTA_BYTE_ARRAY:
                repeated = max(repeated, page[2])
    return Extent(values, unpacked, repeated)


def _pages(file: BinaryIO, chunk: Any) -> Iterator[dict[int, Any]]:
    """The headers of the pages of a column's chunk, as far as they are read: to its last value."""
    starts = (chunk.data_page_offset, chunk.dictionary_page_offset)
    start = min(offset for offset in starts if offset)
    end, values = start + chunk.total_compressed_size, 0
    while start < end and values < chunk.num_values:
        header, length = _header(file, start)
        if min(header[2], header[3]) < 0:
            raise ValueError("a page has a negative size")
        if header[1] != _DICTIONARY:
            values += header.get(_KINDS.get(header[1], -1), {}).get(1, 0)
        start += length + header[3]
        yield header


def _header(file: BinaryIO, start: int) -> tuple[dict[int, Any], int]:
    """A page's header by the numbers of its fields, and how many bytes it takes."""
    for most in (_HEADER, _LONGEST_HEADER):
        file.seek(start)
        reader = _Compact(file.read(most))
        try:
            header = reader.struct()
        except (IndexError, RecursionError):
            continue
        if {1, 2, 3} <= header.keys():
            return header, reader.at
    raise ValueError("a page has no header")


class _Compact:
    """Reads Thrift's compact protocol, as far as headers of pages use it."""

    def __init__(self, data: bytes):
        self._data, self.at = data, 0

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 8:  # bytes, such as the least and largest value: passed over
            length = self._varint()
            self.at += length
            return None
        if kind == 12:
            return self.struct()
        raise ValueError(f"a page's header has a field of kind {kind}")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a page's header has a number of more than 64 bits")
        return value | byte << shift

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]
