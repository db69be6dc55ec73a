"""What the bytes of an image file say before a decoder sees them: its format, and if it is whole.

The allow-list of formats lives here. Pillow is only ever handed a file of a format on it.
"""

import struct
import zlib
from typing import BinaryIO

from aim_mlx.errors import ImageError
from aim_mlx.images import tiff

HEAD_BYTES = 64
READABLE = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "PPM")

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"P4": "PPM",
    b"P5": "PPM",
    b"P6": "PPM",
    # Known, but not read: they only make the message better. No camera writes numbers in letters,
    # of which Pillow decodes 3 MB a second.
    b"P1": "PPM in text",
    b"P2": "PPM in text",
    b"P3": "PPM in text",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%PDF": "PDF",
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"<svg": "SVG",
    b"8BPS": "Photoshop",
    b"FUJIFILM": "camera raw",
}
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def identify(head: bytes) -> str:
    """The format that the first HEAD_BYTES bytes announce, "" for none that is known."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _base_media_format(head)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            # "BM" and "P6" also begin words: the byte after them must fit a header.
            if name.startswith("PPM") and not head[2:3].isspace():
                continue
            return "camera raw" if head[8:10] == b"CR" and name == "TIFF" else name
    if head and b"\xff\xd8\xff".startswith(head):
        return "JPEG"  # cut within its first bytes
    return ""


def _base_media_format(head: bytes) -> str:
    """AVIF and HEIF share one container; the brands after `ftyp` say which."""
    length = min(struct.unpack(">I", head[:4])[0], len(head))
    brands = [head[8:12]] + [head[i : i + 4] for i in range(16, length - 3, 4)]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIF_BRANDS for brand in brands):
        return "HEIF"
    return "camera raw" if brands[0] == b"crx " else ""


def is_cut(format: str, file: BinaryIO, size: int, scan: int | None = None) -> bool:
    """Whether the file of `size` bytes stops before its own structure does.

    `scan` is where the pixel data of a JPEG begin, None if its header could not be read. Raises
    ImageError `not_image` for a PNG whose critical chunks are damaged.
    """
    if format == "JPEG":
        file.seek(max(0, size - 2))
        ended = file.read(2) == b"\xff\xd9"
        if ended or scan is None:
            return not ended
        return not jpeg_scans(file, scan)[1]
    if format == "PNG":
        return _png_is_cut(file)
    if format == "WEBP":
        file.seek(4)
        return size < 12 or struct.unpack("<I", file.read(4))[0] + 8 > size
    if format == "TIFF":
        return tiff.is_cut(file)
    if format in ("AVIF", "HEIF"):
        return _boxes_are_cut(file, size)
    return False


def jpeg_scans(file: BinaryIO, scan: int) -> tuple[int, bool]:
    """How many scans there are to the end marker from `scan` on, within the first, and if it ends.

    A trailer may follow that marker, which within pixel data cannot occur, nor that of a scan.
    """
    file.seek(scan)
    scans, before = 1, b""
    while block := file.read(1 << 20):
        block = before + block
        end = block.find(b"\xff\xd9")
        scans += block.count(b"\xff\xda", 0, len(block) if end < 0 else end)
        if end >= 0:
            return scans, True
        before = block[-1:]
    return scans, False


def _png_is_cut(file: BinaryIO) -> bool:
    """Walks the chunks; Pillow itself checks no CRC of pixel data (PNG specification, 5.3)."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        crc = zlib.crc32(kind)
        while length:
            block = file.read(min(length, 1 << 20))
            if not block:
                return True
            crc = zlib.crc32(block, crc)
            length -= len(block)
        stored = file.read(4)
        if len(stored) < 4:
            return True
        critical = not kind[0] & 0x20
        if critical and stored != struct.pack(">I", crc):
            raise ImageError("not_image", f"the PNG chunk {kind!r} is damaged (its CRC is wrong)")
        if kind == b"IEND":
            return False
    return True


def _boxes_are_cut(file: BinaryIO, size: int) -> bool:
    """Whether a top-level box announces more bytes than there are (ISO 14496-12, 4.2)."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, _, longer = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        if length == 0:  # to the end of the file
            return False
        step = longer if length == 1 else length
        if step < 8:
            return False
        position += step
    return position > size
