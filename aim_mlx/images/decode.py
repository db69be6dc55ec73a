"""One image file, or image in memory, to upright 8-bit RGB; every failure is an ImageError.

EXIF orientation is applied once, transparency is laid on white, 16-bit grey is scaled to 8 bits,
and of animations and multi-page files the first frame is taken.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aim_mlx.errors import ImageError
from aim_mlx.images.contents import KnownFile, contents_of
from aim_mlx.images.encoded import EncodedImage, explained
from aim_mlx.images.limits import check_pixels, default_max_pixels, large

ImageSource = str | Path | KnownFile | bytes | Image.Image | np.ndarray

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_DARK = 32  # of 255
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_turn_of_large_images = threading.RLock()
_turn_of_loading = threading.Lock()


def decode(
    source: ImageSource, max_pixels: int | None = None, allow_truncated: bool = False
) -> Image.Image:
    """A path, encoded bytes, PIL image or uint8 (H,W,3) array -> upright PIL image, mode RGB.

    `max_pixels` None means `default_max_pixels()`. `allow_truncated` keeps what is there of a file
    that was cut; the missing part is black or grey. `info["multi_frame"]` of the result is True
    where further frames or pages were left out, `info["dark"]` where a 16-bit image uses less than
    an eighth of its range. Raises ImageError.
    """
    with decoded(source, max_pixels, allow_truncated) as image:
        return image


@contextmanager
def decoded(
    source: ImageSource | io.BytesIO | io.BufferedReader,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
) -> Iterator[Image.Image]:
    """decode() for the length of a block, in which a large image has the machine to itself.

    Otherwise threads decoding at once would need the memory of as many large images. Takes what
    contents_of() gives, too.
    """
    limit = default_max_pixels() if max_pixels is None else max_pixels
    with ExitStack() as turn:
        if isinstance(source, (Image.Image, np.ndarray)):
            given = source if isinstance(source, Image.Image) else from_array(source, limit)
            _check(given.size, given.mode, limit, turn)
            image = _upright_rgb(_load(given), _orientation(given), False)
        else:
            with _opened(source, limit, allow_truncated) as encoded:
                _check(encoded.size, encoded.mode, limit, turn)
                stored = encoded.load()
                image = _upright_rgb(stored, _orientation(stored), encoded.multi_frame)
                image.info["dark"] = encoded.is_deep and _is_dark(image)
        yield image


@contextmanager
def _opened(source: Any, max_pixels: int, allow_truncated: bool) -> Iterator[EncodedImage]:
    """A path, KnownFile, encoded bytes or what contents_of() gives, opened for a block.

    Raises ImageError.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError("empty", "there are no bytes")
        source = io.BytesIO(source)
    if isinstance(source, (io.BytesIO, io.BufferedReader)):
        size = source.seek(0, io.SEEK_END)
        yield EncodedImage(source, size, max_pixels, allow_truncated)
        return
    if not isinstance(source, (str, os.PathLike, KnownFile)):
        raise ImageError(
            "not_image",
            "expected a path, bytes, a PIL image or a uint8 (H,W,3) array, "
            f"got {type(source).__name__}",
        )
    path = source.path if isinstance(source, KnownFile) else os.fspath(source)
    with contents_of(path) as (data, status):
        if isinstance(source, KnownFile):
            _check_known(data, status.st_size, source)
        yield EncodedImage(data, status.st_size, max_pixels, allow_truncated)


def _check_known(data: io.BufferedReader | io.BytesIO, size: int, known: KnownFile) -> None:
    """Raises ImageError `changed` where these are not the bytes that were read before."""
    if size != known.size or hashlib.file_digest(data, "sha256").hexdigest() != known.digest:
        raise ImageError("changed", "the file has other content than when it was read before")
    data.seek(0)


def from_array(pixels: np.ndarray, max_pixels: int | None = None) -> Image.Image:
    """A uint8 (H,W,3) array as PIL image; raises ImageError for another, and for a large one."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            "unsupported_mode",
            f"expected a uint8 array of shape (H, W, 3), got {pixels.dtype} {pixels.shape}",
        )
    if not pixels.size:
        raise ImageError("empty", f"an array of shape {pixels.shape} has no pixels")
    if max_pixels is not None:
        check_pixels((pixels.shape[1], pixels.shape[0]), max_pixels)  # before it is copied
    return Image.fromarray(np.ascontiguousarray(pixels))


def _check(size: tuple[int, int], mode: str, limit: int, turn: ExitStack) -> None:
    """Refuses what cannot be decoded before decoding it, and takes a turn for a large image."""
    if not size[0] or not size[1]:
        raise ImageError("empty", f"an image of {size[0]} x {size[1]} has no pixels")
    check_pixels(size, limit)
    if mode in ("I", "F"):
        raise ImageError("unsupported_mode", f"expected 8 or 16 bits, got mode {mode} of 32 bits")
    if size[0] * size[1] > large():
        turn.enter_context(_turn_of_large_images)


def _load(image: Image.Image) -> Image.Image:
    with _turn_of_loading, explained():  # one lazy image may be listed twice
        image.load()
    return image


def _upright_rgb(image: Image.Image, turned: int, multi_frame: bool) -> Image.Image:
    """A new image of mode RGB, orientation applied, transparency on white."""
    with explained():
        method = _UPRIGHT.get(turned)
        try:
            image = _to_rgb(image)
        except ValueError as error:
            detail = f"mode {image.mode} has no way to RGB"
            raise ImageError("unsupported_mode", detail) from error
        result = image.transpose(method) if method is not None else image._new(image.im)
    result.readonly = 1  # it may share the caller's pixels: Pillow copies before it writes
    result.info = {"multi_frame": multi_frame, "dark": False}
    return result


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, or that of XMP where EXIF says none; 1 where it is damaged."""
    try:
        value = getattr(image, "tag_v2", {}).get(_ORIENTATION)
        if value is None:
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata must not cost the image
        return 1
    return value if isinstance(value, int) else 1


def _is_dark(image: Image.Image) -> bool:
    """Whether no pixel reaches an eighth of white, as where 12 bits are kept in 16."""
    extrema: Any = image.getextrema()
    return all(high < _DARK for _, high in extrema)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GREY_16:
        return _scale_grey(image)
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _scale_grey(image: Image.Image) -> Image.Image:
    """16-bit grey v -> round(v / 257) as RGB; TIFF may hold 12 bits, and white as 0."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]
    largest = 4095 if bits == 12 else 65535
    grey = np.asarray(image).astype(np.uint32)
    grey = np.minimum((grey * 510 + largest) // (2 * largest), 255).astype(np.uint8)
    if tags.get(262) == 0:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[np.asarray(image) == key] = 255
    return Image.fromarray(grey).convert("RGB")


def thumbnail(source: ImageSource, side: int) -> bytes:
    """An upright JPEG whose longer edge has at most `side` pixels. Raises ImageError."""
    image = decode(source, allow_truncated=True)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    # Without the profile and EXIF of the photograph, place included.
    image.info.clear()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()
