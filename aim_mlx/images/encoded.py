"""Encoded images to decoded Pillow images of their own mode; all failures are ImageErrors.

Pillow gets one format from the allow-list of formats.py at a time, from a regular file only,
with its size checked before pixels are decoded, and none of its global switches is touched.
"""

import importlib
import io
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

from PIL import Image

from aim_mlx.errors import ImageError
from aim_mlx.images import formats, headers, tiff
from aim_mlx.images.limits import check_pixels
from aim_mlx.images.system_heif import SystemHeif


def check_header(file: BinaryIO, file_size: int, max_pixels: int) -> None:
    """Raises ImageError for a file that decode() refuses by its header."""
    EncodedImage(file, file_size, max_pixels, allow_truncated=True)


def _format_of(file: BinaryIO) -> str:
    """The format, if it is one that is read; raises ImageError."""
    file.seek(0)
    format = formats.identify(file.read(formats.HEAD_BYTES))
    if format not in formats.READABLE:
        known = f"{format} is not among the formats that are read"
        unknown = "the first bytes are not those of an image format that is read"
        raise ImageError("not_image", known if format else unknown)
    return format


@contextmanager
def explained() -> Iterator[None]:
    """Turns whatever a decoder raises into an ImageError: decoders raise nearly anything."""
    try:
        yield
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError("too_large", f"it does not fit into memory: {_one_line(error)}") from error
    except OSError as error:
        if error.errno is not None:
            raise ImageError("unreadable", os.strerror(error.errno)) from error
        raise ImageError("not_image", _one_line(error)) from error
    except Exception as error:
        raise ImageError("not_image", _one_line(error)) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _truncated() -> ImageError:
    hint = "embed and classify take what is there with --allow-truncated"
    return ImageError("truncated", f"the file ends early ({hint})")


class EncodedImage:
    """An image with only its header read; `load` decodes the pixels.

    `size` is (width, height) as stored; `is_deep` tells samples of 16 bits; `multi_frame` is True
    after loading where further frames or pages are left out.
    """

    def __init__(
        self,
        file: BinaryIO,
        file_size: int,
        max_pixels: int,
        allow_truncated: bool,
    ):
        self._file: Any = headers.Metered(file)
        self._file_size = file_size
        self._allow_truncated = allow_truncated
        self._scan: int | None = None  # where the pixel data of a JPEG begin
        self.multi_frame = False
        self._format = _format_of(self._file)
        self._file.begin_header(self._format, file_size)
        if self._format == "TIFF":
            self._file = self._sound_tiff(file)
            self._file.begin_header(self._format, file_size)
        with explained():
            self._image = self._open(self._file)
        self._file.end_header(self._format)
        self.size, self.mode = self._image.size, self._image.mode
        self._check_size(max_pixels)
        lenient = self._format == "PNG" or isinstance(self._image, SystemHeif)
        if lenient and not allow_truncated and self._is_cut():
            raise _truncated()
        deep = self._format in ("PNG", "TIFF")
        self.is_deep = deep and any(";16" in str(tile.args) for tile in self._image.tile[:1])
        if self._format == "JPEG":
            self._scan = scan = self._file.tell()
            self._check_scans(scan)

    def _sound_tiff(self, file: BinaryIO) -> Any:
        """Without damaged tags, where it is in memory; raises ImageError for one that is cut."""
        if not self._allow_truncated and self._is_cut():
            raise _truncated()
        if not isinstance(file, io.BytesIO):
            return self._file
        sound = tiff.without_damaged_tags(file)
        if sound is None:
            raise _truncated()
        return headers.Metered(sound)

    def _check_size(self, max_pixels: int) -> None:
        """Refuses what is too large; of GIF what Pillow itself refuses, whose limit is lower."""
        if self._format == "GIF":
            max_pixels = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
        check_pixels(self.size, max_pixels)
        headers.check_bytes(self._image, self._format, self._file_size)

    def load(self) -> Image.Image:
        """Decodes the first frame; of a file that was cut, the part that is there if allowed."""
        with explained():
            self.multi_frame = self._has_frames()
            if self._format == "TIFF":
                _make_canvas(self._image)
            try:
                self._image.load()
                if self._format == "JPEG" and not self._allow_truncated and self._is_cut():
                    raise _truncated()  # Pillow may not miss the end marker
            except (OSError, SyntaxError, EOFError, ValueError, struct.error) as error:
                if "truncat" not in str(error).lower() and not self._is_cut(error):
                    raise
                if not self._allow_truncated:
                    raise _truncated() from error
                self._load_part()
            if self._format == "TIFF":
                self._image._size = self._image.im.size  # as stored: Pillow has turned only that
                self._image.info["exif"] = b""  # it is in the tags, which are not read again
            tiff.without_damaged_exif(self._image.info)
            return self._image

    def _check_scans(self, scan: int) -> None:
        """Refuses a JPEG of too many scans, unless its first is all: each goes over all pixels."""
        components = self._image.layers
        self._file.seek(max(0, scan - 4 - 2 * components))
        if not self._image.info.get("progressive") and self._file.read(1) == bytes([components]):
            return
        scans, _ = formats.jpeg_scans(self._file, scan)
        most = headers.most_scans(self.size[0] * self.size[1])
        if scans > most:
            raise ImageError("too_large", f"{scans} scans of a JPEG, the limit is {most}")

    def _is_cut(self, error: Exception | None = None) -> bool:
        """Whether the file ends early, by its structure or by what HEIF's decoder says."""
        if error is not None and "end of file" in str(error):
            return True
        return formats.is_cut(self._format, self._file, self._file_size, self._scan)

    def _open(self, file: BinaryIO) -> Any:
        opener = _opener(self._format)
        if opener is None and self._format == "HEIF":
            raise ImageError(
                "heif_unsupported", "HEIC needs a decoder: pip install 'aim-mlx[heif]'"
            )
        if opener is None:
            raise ImageError("not_image", f"this Pillow was built without {self._format}")
        try:
            file.seek(0)
            # Not Image.open: it warns above 89 megapixels and fails above 178, for the process.
            # The empty name keeps Pillow from mapping a file that may shrink into memory.
            image = opener(file, "")
        except Exception as error:
            if not isinstance(error, ImageError) and self._is_cut(error):
                raise _truncated() from error
            raise
        if self._format == "TIFF" and _is_camera_raw(image):
            raise ImageError("not_image", "camera raw is not among the formats that are read")
        return image

    def _has_frames(self) -> bool:
        """Whether there are further frames or pages.

        Those of an MPO, previews and gain maps of a phone, do not count: Pillow opens it as a JPEG.
        """
        try:
            return bool(getattr(self._image, "is_animated", False))
        except ImageError:
            raise
        except Exception:
            return False  # a damaged second frame does not matter

    def _load_part(self) -> None:
        """What Pillow's switch for cut files does for the whole process, for this one alone."""
        if self._format == "JPEG":
            self._load_part_of_jpeg()
        elif self._image._im is None:
            raise _truncated()
        self._image.tile = []

    def _load_part_of_jpeg(self) -> None:
        """Ends the data with an end marker, so that the decoder fills in what is missing."""
        self._file.seek(0)
        data = self._file.read()
        try:
            self._image = self._open(io.BytesIO(data + b"\xff\xd9"))
            self._image.load()
        except OSError:  # cut within a table between two scans: leave that out
            last = max(data.rfind(marker, self._scan or 0) for marker in (b"\xff\xc4", b"\xff\xda"))
            self._image = self._open(io.BytesIO(data[: max(last, 0)] + b"\xff\xd9"))
            self._image.load()


@cache
def _opener(format: str) -> Any:
    """Pillow's reader of a format, or None; imports that plugin and no other.

    Those of JPEG and TIFF are without the parts that read metadata, and warn of each damaged entry.
    """
    try:
        if format == "HEIF":
            importlib.import_module("pillow_heif").register_heif_opener()
            return Image.OPEN[format][0]
        name = {"WEBP": "WebP"}.get(format, format.capitalize())
        plugin = importlib.import_module(f"PIL.{name}ImagePlugin")
    except ImportError:
        return SystemHeif if format == "HEIF" and sys.platform == "darwin" else None
    if format == "JPEG":
        quiet: dict[str, Any] = {"_read_dpi_from_exif": lambda self: None}
        return type("JpegPixels", (plugin.JpegImageFile,), quiet)
    if format == "TIFF":
        return type("TiffPixels", (plugin.TiffImageFile,), {"load_end": lambda self: None})
    return Image.OPEN[format][0] if format in Image.OPEN else None


def _is_camera_raw(image: Any) -> bool:
    """A TIFF that is a DNG (tag 50706), or whose first directory is a mere preview (tag 254)."""
    return 50706 in image.tag_v2 or image.tag_v2.get(254, 0) == 1


def _make_canvas(image: Any) -> None:
    """Makes a TIFF's pixel memory; made by Pillow it would fall under Pillow's own limit."""
    if image._im is None and hasattr(image, "_tile_size"):
        image.im = Image.core.new(image.mode, image._tile_size)
