"""Pictures that go wrong and pictures that only look as if they did, as the bytes of their files.

The numbers are those of the kinds of bad input that an image can be: 1 to 15.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.small import photo

PHOTO = Image.fromarray(photo(0))


def encoded(image: Image.Image = PHOTO, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, extra: bytes = b"", data: bytes = bytes(14), depth: int = 8
) -> bytes:
    """A PNG of colour type RGB with any header and further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data, 9))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def turned(orientation: int, format: str) -> bytes:
    """PHOTO stored so that this EXIF orientation makes it upright."""
    # The inverse of what a viewer does: 6 and 8 undo each other, the others themselves.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = PHOTO if undo is None else PHOTO.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    return encoded(stored, format, exif=exif, **exact.get(format, {}))


def film(format: str, **options: Any) -> bytes:
    return encoded(PHOTO, format, save_all=True, append_images=[PHOTO.rotate(90)], **options)


JPEG, PNG, TIFF = encoded(format="JPEG"), encoded(), encoded(format="TIFF")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
BOMB = zlib.compress(bytes(80_000_000), 1)
_SIZE_AT = JPEG.index(b"\xff\xc0") + 5
_GIANT = JPEG[:_SIZE_AT] + struct.pack(">HH", 65_000, 65_000) + JPEG[_SIZE_AT + 4 :]
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n"
_SAMPLES = struct.pack("<HHIH", 277, 3, 1, 3)  # the TIFF tag that says how many to a pixel
_MANY_SAMPLES = TIFF.replace(_SAMPLES, struct.pack("<HHIH", 277, 3, 1, 60))


@dataclass(frozen=True)
class Bad:
    """An image that is skipped: the number of its kind, its bytes, the reason and the hint."""

    row: int
    content: bytes
    reason: str
    hint: str = ""


BAD: dict[str, Bad] = {
    "empty.jpg": Bad(1, b"", "empty", "0 bytes"),
    "line\nfeed \x1b]0;title\x07 \x1b[31m \u202e.jpg": Bad(1, b"", "empty", "0 bytes"),
    "page.jpg": Bad(2, b"<!DOCTYPE html><html></html>", "not_image"),
    "words.png": Bad(2, b"just words\n", "not_image"),
    "crc.png": Bad(2, PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "not_image"),
    "xl.jxl": Bad(2, b"\xff\x0a" + bytes(50), "not_image", "JPEG XL is not among"),
    "cut.jpg": Bad(3, JPEG[:-2], "truncated", "--allow-truncated"),
    "half.jpg": Bad(3, JPEG[: len(JPEG) // 2], "truncated", "--allow-truncated"),
    "cut.png": Bad(3, PNG[:-3], "truncated", "--allow-truncated"),
    "1200 megapixels.png": Bad(4, png(40_000, 30_000), "too_large", "1200.0 megapixels, the limit"),
    "4225 megapixels.jpg": Bad(4, _GIANT, "too_large", "(--max-megapixels)"),
    "text bomb.png": Bad(5, png(2, 2, png_chunk(b"zTXt", b"k\0\0" + BOMB)), "not_image"),
    "profile bomb.png": Bad(5, png(2, 2, png_chunk(b"iCCP", b"k\0\0" + BOMB)), "not_image"),
    "script.eps": Bad(6, _EPS, "not_image", "EPS is not among the formats"),
    "script.jpg": Bad(6, _EPS, "not_image", "EPS is not among the formats"),
    "paper.jpg": Bad(6, b"%PDF-1.4\n", "not_image", "PDF is not among the formats"),
    "drawing.svg": Bad(6, b"<svg/>", "not_image"),
    "phone.heic": Bad(7, HEIC, "heif_unsupported", "pip install 'aim-mlx[heif]'"),
    "float.tif": Bad(10, encoded(Image.new("F", (8, 8)), "TIFF"), "unsupported_mode", "32 bits"),
    "32 bits.tif": Bad(10, encoded(Image.new("I", (8, 8)), "TIFF"), "unsupported_mode"),
    "samples.tif": Bad(10, _MANY_SAMPLES, "not_image"),
}

_ODD_EXIF = b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(4)
_GREY = PHOTO.convert("L")
_NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
_ROWS = np.concatenate([np.zeros((8, 1), np.uint16), _NOISE.reshape(8, 24) * np.uint16(257)], 1)
_DEEP = b"".join(b"\0" + row[1:].astype(">u2").tobytes() for row in _ROWS)
_HOLES = np.dstack([photo(0), np.where(photo(1)[..., :1] > 99, 255, 0).astype(np.uint8)])
_FILLED = np.where(_HOLES[..., 3:] == 255, _HOLES[..., :3], 255).astype(np.uint8)

# Images that are embedded, and the name of the one among them that has the same pixels.
GOOD: dict[str, tuple[bytes, str]] = {
    "plain.png": (PNG, ""),
    "plain.jpg": (JPEG, ""),
    # 8
    **{f"{n} PNG.png": (turned(n, "PNG"), "plain.png") for n in range(1, 9)},
    **{f"{n} WEBP.webp": (turned(n, "WEBP"), "plain.png") for n in range(1, 9)},
    **{f"{n} JPEG.jpg": (turned(n, "JPEG"), "") for n in range(1, 9)},
    "mirrored.png": (encoded(PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), ""),
    "upside down.png": (encoded(PHOTO.transpose(Image.Transpose.ROTATE_180)), ""),
    "odd orientation.png": (turned(99, "PNG"), "plain.png"),
    "damaged exif.jpg": (JPEG[:2] + _ODD_EXIF + JPEG[2:], "plain.jpg"),
    # 9
    "grey.png": (encoded(_GREY), ""),
    "deep grey.png": (
        encoded(Image.fromarray(np.asarray(_GREY).astype(np.uint16) * np.uint16(257))),
        "grey.png",
    ),
    "noise.png": (encoded(Image.fromarray(_NOISE)), ""),
    "deep noise.png": (png(8, 8, data=_DEEP, depth=16), "noise.png"),
    # 11
    "grey in colour.png": (encoded(_GREY.convert("RGB")), "grey.png"),
    "grey with alpha.png": (encoded(_GREY.convert("LA")), "grey.png"),
    "cmyk.jpg": (encoded(PHOTO.convert("CMYK"), "JPEG"), ""),
    "palette.png": (encoded(PHOTO.convert("P")), ""),
    "palette in colour.png": (encoded(PHOTO.convert("P").convert("RGB")), "palette.png"),
    "palette with alpha.png": (encoded(PHOTO.convert("P"), transparency=bytes(range(256))), ""),
    "bilevel.png": (encoded(PHOTO.convert("1")), ""),
    "bilevel in colour.png": (encoded(PHOTO.convert("1").convert("RGB")), "bilevel.png"),
    "holes.png": (encoded(Image.fromarray(_HOLES)), "filled.png"),
    "filled.png": (encoded(Image.fromarray(_FILLED)), ""),
    # 12
    "film.gif": (film("GIF"), "plain.png"),
    "film.webp": (film("WEBP", lossless=True), "plain.png"),
    "pages.tif": (film("TIFF"), "plain.png"),
    # 13
    "dot.png": (encoded(Image.new("RGB", (1, 1))), ""),
    "line.png": (encoded(Image.new("RGB", (20_000, 2))), ""),
    "swollen.png": (png(2, 2, data=bytes(80_000_000)), ""),
    # 14
    "png.jpg": (PNG, "plain.png"),
    "jpeg.png": (JPEG, "plain.jpg"),
}
FILMS = ("film.gif", "film.webp", "pages.tif")
