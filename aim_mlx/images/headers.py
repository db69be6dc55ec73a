"""How much a decoder may read of an image file, known from its header.

No header of a photograph is near a limit, while decoders spend minutes on headers made to be slow,
and hours on a sparse terabyte.
"""

import math
from typing import Any, BinaryIO

from aim_mlx.errors import ImageError

# Segments of a JPEG, chunks of a PNG, blocks of a GIF and tags of a TIFF cost two or three reads
# each. Encoders fill them: blocks of a GIF, the smallest, make 128 bytes a read.
_MOST_READS, _LEAST_BYTES = 10_000, 32
_MOST_BYTES = 64 << 20  # of a header: depth maps and thumbnails in a JPEG take 10 MB
_TAGS_BYTES = 1 << 30  # of a TIFF: Photoshop keeps its layers in one
_AT_ONCE = 256 << 20  # of a file that Pillow reads whole to open it
_READ_AT_ONCE = ("WEBP", "AVIF", "HEIF")

# No format needs more than 8 bytes a pixel (four samples of 16 bits), and JPEG less. What else is
# in a file is for others: previews, profiles, the film that a phone appends to its photograph. GIF,
# TIFF, AVIF and HEIF hold many pages of which one is read; a TIFF that is no BigTIFF ends at 4 GiB.
# Two of Pillow's decoders are in Python: a second for 5 MB of a BMP in runs, or 3 MB of a PPM whose
# white is not 255.
_PIXEL_BYTES = 8
_OTHER_BYTES = 64 << 20
_SLOW_BYTES = {"bmp_rle": 16 << 20, "ppm": 128 << 20}
_FILE_BYTES = {"TIFF": 4 << 30, "GIF": 1 << 30, "AVIF": _AT_ONCE, "HEIF": _AT_ONCE}


class Metered:
    """A file for Pillow; raises ImageError where its header is far longer than it need be."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._reads = self._bytes = 0
        self._most_bytes: float = _MOST_BYTES
        self._in_parts = True

    def begin_header(self, format: str, file_size: int) -> None:
        """Raises ImageError `too_large` for a file of which Pillow would read too much."""
        if format == "TIFF":
            self._most_bytes = _TAGS_BYTES
        if format in _READ_AT_ONCE:
            self._most_bytes = math.inf
            if file_size > _AT_ONCE:
                raise _too_large(f"an image of {format}", file_size, _AT_ONCE)

    def end_header(self, format: str) -> None:
        """From here on only formats whose pixels are in parts are metered.

        Decoders of others may read pixel by pixel.
        """
        self._most_bytes = math.inf
        self._in_parts = format in ("PNG", "GIF")

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._reads += 1
        self._bytes += len(data)
        if self._reads > _MOST_READS and self._reads * _LEAST_BYTES > self._bytes:
            if self._in_parts:
                raise ImageError("not_image", "it has too many small parts to be a photograph")
        if self._bytes > self._most_bytes:
            raise ImageError("not_image", "its header is too long to be that of a photograph")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_bytes(image: Any, format: str, file_size: int) -> None:
    """Raises ImageError `too_large` for more bytes than an image of this size can need."""
    width, height = image.size
    most = _FILE_BYTES.get(format, _OTHER_BYTES) + _PIXEL_BYTES * width * height
    for tile in image.tile[:1]:
        most = min(most, _SLOW_BYTES.get(tile[0], most))
    if file_size > most:
        raise _too_large(f"{width} x {height} pixels", file_size, most)


def _too_large(what: str, file_size: int, most: int) -> ImageError:
    detail = f"the file has {file_size:,} bytes, {what} can need {most:,} at most"
    return ImageError("too_large", detail)


def most_scans(pixels: int) -> int:
    """How many scans of a JPEG are decoded; encoders make 10 at most, or 20 to save bytes.

    Each goes over all pixels, 3 to 8 s for a thousand million of them.
    """
    return min(500, max(20, 500_000_000 // max(1, pixels)))
