"""The pixels that a file's header announces, and the limits of a file that can hold them.

They are known before a decoder, or the digest, reads a file: no header of a photograph is near a
limit, while decoders spend minutes on headers made to be slow, and hours on a sparse terabyte.
"""

import io
import struct
from typing import BinaryIO, Literal

from aim_mlx.errors import ImageError
from aim_mlx.images.formats import tiff_directory

HEAD_BYTES = 64
_MOST_PARTS = (
    10_000  # segments of a JPEG, chunks of a PNG, blocks of a GIF, before they are weighed
)
_LONGEST_HEADER = 16 << 20  # bytes of a JPEG before its pixels: depth maps take 10 MB
_MOST_TAGS, _MOST_STRIPS = 4096, 100_000  # of a TIFF; a strip for each row of the tallest
_TYPE_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1)) | {16: 8, 17: 8, 18: 8}
_TEXT_BYTES = 4096  # in which a PPM says its size, comments included

# No format needs more than 8 bytes a pixel (four samples of 16 bits), and JPEG less. What else is
# in a file is for others: previews, profiles, the film that a phone appends to its photograph. GIF
# and TIFF hold many pages of which one is read; a TIFF that is no BigTIFF ends at 4 GiB. The size
# of AVIF and HEIF lies deep within boxes, and they are small. Pillow decodes 5 MB a second of a BMP
# in runs.
_PIXEL_BYTES = 8
_OTHER_BYTES = 64 << 20
_RUN_BYTES = 16 << 20
_FILE_BYTES = {"TIFF": 4 << 30, "GIF": 1 << 30, "AVIF": 256 << 20, "HEIF": 256 << 20}


def check_bytes(format: str, head: bytes, size: tuple[int, int], file_size: int) -> None:
    """Raises ImageError `too_large` for more bytes than an image of this size can need."""
    most = _FILE_BYTES.get(format, _OTHER_BYTES) + _PIXEL_BYTES * size[0] * size[1]
    if format == "BMP" and head[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        most = _RUN_BYTES
    if file_size > most:
        pixels = f"{size[0]} x {size[1]} pixels" if size[0] else f"an image of {format}"
        raise ImageError(
            "too_large", f"the file has {file_size:,} bytes, {pixels} can need {most:,} at most"
        )


def most_scans(pixels: int) -> int:
    """How many scans of a JPEG are decoded; encoders make 10 at most, or 20 to save bytes.

    Each goes over all pixels, 3 to 8 s for a thousand million of them.
    """
    return min(500, max(20, 500_000_000 // max(1, pixels)))


def pixel_size(format: str, head: bytes, file: BinaryIO) -> tuple[int, int]:
    """(width, height) as the header has it; (0, 0) for AVIF, HEIF and a header that is cut.

    `head` are the first HEAD_BYTES bytes. Raises ImageError `not_image` for a header that is far
    longer than it need be.
    """
    if format == "JPEG":
        return _jpeg_size(file)
    if format == "TIFF":
        return _tiff_size(file)
    if format == "PPM":
        return _ppm_size(file)
    if format == "WEBP":
        return _webp_size(head)
    if format == "GIF" and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
        return width, height
    if format == "PNG" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
        return width, height
    if format == "BMP" and len(head) >= 26:
        old = head[14:18] == b"\x0c\0\0\0"  # the header of OS/2
        width, height = struct.unpack_from("<HH" if old else "<ii", head, 18)
        return abs(width), abs(height)
    return 0, 0


def _webp_size(head: bytes) -> tuple[int, int]:
    """From the VP8, VP8L or VP8X chunk."""
    if len(head) < 30:
        return 0, 0
    if head[12:16] == b"VP8X":
        width, height = (int.from_bytes(head[i : i + 3], "little") + 1 for i in (24, 27))
        return width, height
    if head[12:16] == b"VP8L":
        bits = struct.unpack("<I", head[21:25])[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    """From the frame header, on a walk over all segments before the first scan (T.81, B.1)."""
    file.seek(2)
    width = height = parts = 0
    while parts < _MOST_PARTS and file.tell() < _LONGEST_HEADER:
        parts += 1
        byte, kind = file.read(1), b"\xff"
        if byte != b"\xff":  # decoders pass by what is between segments
            if not byte:
                return 0, 0
            continue
        while kind == b"\xff" and parts < _MOST_PARTS:
            kind = file.read(1)
            parts += 1
        if kind in b"\xda\xd9" or not kind:
            return width, height
        if kind[0] in (0, 1) or 0xD0 <= kind[0] <= 0xD8:  # without a length
            continue
        start = file.tell()
        data = file.read(7)
        if len(data) < 7:
            return 0, 0
        if 0xC0 <= kind[0] <= 0xCF and kind not in b"\xc4\xc8\xcc":
            height, width = struct.unpack(">HH", data[3:])
        file.seek(start + max(2, struct.unpack(">H", data[:2])[0]))
    raise _too_much("segments before its pixels")


def _tiff_size(file: BinaryIO) -> tuple[int, int]:
    """From the tags of the first directory."""
    directory = tiff_directory(file)
    if directory is None or directory.offset >= 2**63:
        return 0, 0
    entry, values = directory.entry, {}
    file.seek(directory.offset)
    count = directory.count_in(file.read(directory.count_bytes))
    if count > _MOST_TAGS:
        raise _too_much("tags")
    data = file.read(count * entry.size)
    for tag, kind, number, value in entry.iter_unpack(data[: len(data) // entry.size * entry.size]):
        if tag in (256, 257):
            short = value[:2] if kind == 3 else value
            values[tag] = int.from_bytes(short, "little" if directory.order == "<" else "big")
        elif tag in (273, 324) and number > _MOST_STRIPS:
            raise _too_much("strips")
    return values.get(256, 0), values.get(257, 0)


def without_damaged_tags(file: io.BytesIO) -> io.BytesIO | None:
    """A TIFF without the tags whose values are not within it: Pillow warns of each, at length.

    None where it has no directory.
    """
    directory, data = tiff_directory(file), file.getbuffer()
    if directory is None or directory.offset + directory.count_bytes > len(data):
        return None
    order: Literal["little", "big"] = "little" if directory.order == "<" else "big"
    start, entry, used = directory.offset + directory.count_bytes, directory.entry, 0
    count = directory.count_in(bytes(data[directory.offset : start]))
    end = start + count * entry.size
    kept, value = [], b""
    for at in range(start, min(end, len(data) - entry.size + 1), entry.size):
        _, kind, number, value = entry.unpack_from(data, at)
        size = number * _TYPE_BYTES.get(kind, 0)
        if size > len(value):
            if max(used, int.from_bytes(value, order)) + size > len(data):
                continue
            used += size
        kept.append(bytes(data[at : at + entry.size]))
    if len(kept) == count and end + len(value) <= len(data):
        return file
    following = bytes(data[end : end + 8]).ljust(8, b"\0")  # where the next directory is
    written = len(kept).to_bytes(directory.count_bytes, order) + b"".join(kept) + following
    copy = bytearray(data)
    copy[directory.offset : directory.offset + len(written)] = written
    return io.BytesIO(copy)


def _ppm_size(file: BinaryIO) -> tuple[int, int]:
    """From the header, which is text."""
    file.seek(0)
    lines = file.read(_TEXT_BYTES).replace(b"\r", b"\n").split(b"\n")
    fields = b" ".join(line.split(b"#", 1)[0] for line in lines).split(None, 3)[1:3]
    if len(fields) < 2 or not all(field.isdigit() for field in fields):
        raise ImageError("not_image", f"its first {_TEXT_BYTES} bytes do not say its size")
    width, height = (int(field[:11]) for field in fields)
    return width, height


def check_png_chunks(file: BinaryIO) -> None:
    """Raises ImageError `not_image` for chunks so many and small that a decoder is slow."""
    file.seek(8)
    position, parts = 8, 0
    while len(header := file.read(8)) == 8 and header[4:] != b"IEND":
        parts += 1
        position += struct.unpack(">I", header[:4])[0] + 12
        if parts > _MOST_PARTS and parts * 1024 > position:
            raise _too_much("chunks")
        file.seek(position)


def gif_has_frames(file: BinaryIO) -> bool:
    """Whether there is a second frame; ImageError `not_image` for blocks far too many and small."""
    file.seek(0)
    head = file.read(13)
    _skip_palette(file, head[10:11])
    frames = parts = 0
    while kind := file.read(1):
        parts += 1
        if kind == b";" or (kind == b"," and frames):
            return kind == b","
        if kind == b",":
            frames += 1
            _skip_palette(file, file.read(9)[8:9])
        if kind in b",!":
            file.seek(1, 1)  # the size of a code, or the kind of extension
            while (length := file.read(1)) > b"\0":
                file.seek(length[0], 1)
                parts += 1
                if parts > _MOST_PARTS and parts * 64 > file.tell():
                    break
        if parts > _MOST_PARTS and parts * 64 > file.tell():
            raise _too_much("blocks")
    return False


def _skip_palette(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), 1)


def _too_much(what: str) -> ImageError:
    return ImageError("not_image", f"it has too many {what} to be a photograph")
