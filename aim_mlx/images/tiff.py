"""The first directory of a TIFF or BigTIFF, and of EXIF, which is written as one.

Pillow warns of each damaged tag, at length and for all to see; such tags are taken out before.
"""

import io
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from aim_mlx.errors import ImageError

_MOST_TAGS, _MOST_STRIPS = 4096, 100_000  # a strip for each row of the tallest
_STRIPS = (273, 324)  # the tags with the places of strips and of tiles
_TYPE_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1)) | {16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class _Directory:
    """`data` are the entries that are there, from `start` on; `count` says how many should be."""

    order: Literal["little", "big"]
    start: int
    count: int
    count_bytes: int
    pointer_bytes: int
    entry: struct.Struct  # tag, type, number of values, and them or their offset
    data: bytes

    @property
    def is_cut(self) -> bool:
        return len(self.data) < self.count * self.entry.size

    @property
    def entries(self) -> list[bytes]:
        size = self.entry.size
        return [self.data[at : at + size] for at in range(0, len(self.data) - size + 1, size)]


def _directory(file: BinaryIO) -> _Directory | None:
    """None where it lies beyond the end; ImageError `not_image` for far too many tags or strips."""
    file.seek(0)
    head = file.read(16)
    little, big = head[:2] == b"II", head[2:4] in (b"+\0", b"\0+")
    order: Literal["little", "big"] = "little" if little else "big"
    pointer_bytes, count_bytes = (8, 8) if big else (4, 2)
    entry = struct.Struct(("<" if little else ">") + ("HHQ8s" if big else "HHI4s"))
    offset = int.from_bytes(head[pointer_bytes : 2 * pointer_bytes], order)
    if head[:2] not in (b"II", b"MM") or len(head) < 2 * pointer_bytes or offset >= 2**63:
        return None
    file.seek(offset)
    count = file.read(count_bytes)
    if len(count) < count_bytes:
        return None
    number = int.from_bytes(count, order)
    if number > _MOST_TAGS:
        raise ImageError("not_image", f"{number:,} tags are too many for a photograph")
    data = file.read(number * entry.size)
    start = offset + count_bytes
    directory = _Directory(order, start, number, count_bytes, pointer_bytes, entry, data)
    for tag, _, values, _ in map(entry.unpack, directory.entries):
        if tag in _STRIPS and values > _MOST_STRIPS:
            raise ImageError("not_image", f"{values:,} strips are too many for a photograph")
    return directory


def is_cut(file: BinaryIO) -> bool:
    """Whether the first directory reaches beyond the end: writers often put it last."""
    directory = _directory(file)
    return directory is None or directory.is_cut


def without_damaged_tags(file: Any) -> io.BytesIO | None:
    """A TIFF in memory without the tags whose values are not within it; None without a directory.

    Raises ImageError `not_image` for far too many tags or strips.
    """
    directory, size = _directory(file), len(file.getbuffer())
    if directory is None:
        return None
    kept, used = [], 0
    for entry in directory.entries:
        _, kind, number, value = directory.entry.unpack(entry)
        outside = number * _TYPE_BYTES.get(kind, 0)
        if outside > directory.pointer_bytes:
            if max(used, int.from_bytes(value, directory.order)) + outside > size:
                continue
            used += outside
        kept.append(entry)
    end = directory.start + directory.count * directory.entry.size
    if len(kept) == directory.count and end + directory.pointer_bytes <= size:
        return file
    copy = bytearray(file.getbuffer())
    following = bytes(copy[end : end + 8]).ljust(8, b"\0")  # where the next directory is
    count = len(kept).to_bytes(directory.count_bytes, directory.order)
    written = count + b"".join(kept) + following
    start = directory.start - directory.count_bytes
    copy[start : start + len(written)] = written
    return io.BytesIO(copy)


def without_damaged_exif(info: dict[Any, Any]) -> None:
    """Takes damaged tags out of the EXIF in the `info` of a Pillow image, or all where none is."""
    data = info.get("exif")
    try:
        if data is None and (text := info.get("Raw profile type exif")):
            data = bytes.fromhex("".join(text.split("\n")[3:]))
        if data is None:
            return
        sound = without_damaged_tags(io.BytesIO(re.sub(b"^(Exif\0\0){1,2}", b"", data)))
    except (ImageError, ValueError):
        sound = None
    info["exif"] = sound.getvalue() if sound else b""
