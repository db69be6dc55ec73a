"""HEIF pictures by macOS's own decoder, ImageIO, where pillow-heif is not installed.

Its C functions are called through ctypes, as Apple's headers declare them, in the thread that
decodes: no process is started and nothing is written. What a function with Create or Copy in its
name returns is released once, before the call of `_open` or `load` that asked for it ends.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageFile

_Reference, _Size, _Index = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long


class _Rect(ctypes.Structure):
    """CGRect where addresses have 64 bits."""

    _fields_ = [(name, ctypes.c_double) for name in ("x", "y", "width", "height")]


# By library what each function returns, then what it takes; None for a constant, a reference.
_FRAMEWORK = "/System/Library/Frameworks/{0}.framework/{0}"
_NAMES: dict[str, dict[str, list[Any] | None]] = {
    "/usr/lib/libobjc.A.dylib": {
        "objc_autoreleasePoolPush": [_Reference],
        "objc_autoreleasePoolPop": [None, _Reference],
    },
    _FRAMEWORK.format("CoreFoundation"): {
        "CFRelease": [None, _Reference],
        "CFDataCreate": [_Reference, _Reference, ctypes.c_char_p, _Index],
        "CFDictionaryGetValue": [_Reference, _Reference, _Reference],
        "CFNumberGetValue": [ctypes.c_ubyte, _Reference, _Index, _Reference],
    },
    _FRAMEWORK.format("ImageIO"): {
        "kCGImagePropertyPixelWidth": None,
        "kCGImagePropertyPixelHeight": None,
        "kCGImagePropertyOrientation": None,
        "CGImageSourceCreateWithData": [_Reference, _Reference, _Reference],
        "CGImageSourceGetCount": [_Size, _Reference],
        "CGImageSourceGetPrimaryImageIndex": [_Size, _Reference],
        "CGImageSourceCopyPropertiesAtIndex": [_Reference, _Reference, _Size, _Reference],
        "CGImageSourceCreateImageAtIndex": [_Reference, _Reference, _Size, _Reference],
    },
    _FRAMEWORK.format("CoreGraphics"): {
        "kCGColorSpaceSRGB": None,
        "CGImageGetWidth": [_Size, _Reference],
        "CGImageGetHeight": [_Size, _Reference],
        "CGImageGetColorSpace": [_Reference, _Reference],
        "CGColorSpaceGetModel": [ctypes.c_int32, _Reference],
        "CGColorSpaceCreateWithName": [_Reference, _Reference],
        "CGBitmapContextCreate": [_Reference] * 2 + [_Size] * 4 + [_Reference, ctypes.c_uint32],
        "CGContextDrawImage": [None, _Reference, _Rect, _Reference],
    },
}
_INT64 = 4  # kCFNumberSInt64Type
_RGB = 1  # kCGColorSpaceModelRGB
_RGBA = 1 | 4 << 12  # kCGImageAlphaPremultipliedLast | kCGBitmapByteOrder32Big

_ORIENTATION = 0x0112
_FAILED = "macOS could not decode it; pillow-heif may: pip install 'aim-mlx[heif]'"


class SystemHeif(ImageFile.ImageFile):
    """The primary image of a HEIF, as stored, with its orientation as EXIF; or OSError."""

    format = "HEIF"
    is_animated = False

    def _open(self) -> None:
        """Reads the header; nothing is decoded."""
        assert self.fp is not None
        self._data = self.fp.read()
        with _owning() as own:
            source, index = _source(self._data, own)
            properties = own(_macos().CGImageSourceCopyPropertiesAtIndex(source, index, None))
            names = ("PixelWidth", "PixelHeight", "Orientation")
            width, height, turned = (_number(properties, name) for name in names)
            self.is_animated = _macos().CGImageSourceGetCount(source) > 1
        self._size, self._mode = (width, height), "RGB"
        exif = Image.Exif()
        exif[_ORIENTATION] = turned
        self.info["exif"] = exif.tobytes()

    def load(self) -> Any:
        if self._im is None:
            image = _decoded(self._data, self.size)
            self.im, self._mode, self._data = image.im, image.mode, b""
        return super().load()


@cache
def _macos() -> SimpleNamespace:
    """What is in _NAMES."""
    found = SimpleNamespace()
    for path, names in _NAMES.items():
        library = ctypes.CDLL(path)
        for name, types in names.items():
            if types is None:
                setattr(found, name, ctypes.c_void_p.in_dll(library, name).value)
            else:
                function = library[name]
                function.restype, *function.argtypes = types
                setattr(found, name, function)
    return found


@contextmanager
def _owning() -> Iterator[Callable[[int | None], int]]:
    """Gives a function that takes a reference over, to be released as the block ends, or OSError.

    The pool is for what Apple's functions leave to be released later, as these threads have none.
    """
    macos = _macos()
    with ExitStack() as at_end:
        at_end.callback(macos.objc_autoreleasePoolPop, macos.objc_autoreleasePoolPush())

        def own(reference: int | None) -> int:
            if reference is None:
                raise OSError(_FAILED)
            at_end.callback(macos.CFRelease, reference)
            return reference

        yield own


def _source(data: bytes, own: Callable[[int | None], int]) -> tuple[int, int]:
    """A CGImageSource, and the index of its primary image."""
    macos = _macos()
    source = own(
        macos.CGImageSourceCreateWithData(own(macos.CFDataCreate(None, data, len(data))), None)
    )
    if not macos.CGImageSourceGetCount(source):  # so it is with bytes that are no image
        raise OSError(_FAILED)
    return source, macos.CGImageSourceGetPrimaryImageIndex(source)


def _number(properties: int, name: str) -> int:
    """One of an image's properties, 0 where it lacks it."""
    macos, value = _macos(), ctypes.c_int64(0)
    key = getattr(macos, f"kCGImageProperty{name}")
    number = macos.CFDictionaryGetValue(properties, key)
    if number is not None:
        macos.CFNumberGetValue(number, _INT64, ctypes.byref(value))
    return value.value


def _decoded(data: bytes, size: tuple[int, int]) -> Image.Image:
    """The primary image, RGB or RGBA, its numbers as stored, whatever profile they are in.

    Grey becomes sRGB.
    """
    macos, (width, height) = _macos(), size
    pixels = bytearray(4 * width * height)
    with _owning() as own:
        source, index = _source(data, own)
        image = own(macos.CGImageSourceCreateImageAtIndex(source, index, None))
        if (macos.CGImageGetWidth(image), macos.CGImageGetHeight(image)) != size:
            raise OSError(_FAILED)
        space = macos.CGImageGetColorSpace(image)
        if space is None or macos.CGColorSpaceGetModel(space) != _RGB:
            space = own(macos.CGColorSpaceCreateWithName(macos.kCGColorSpaceSRGB))
        layout = (width, height, 8, 4 * width, space, _RGBA)
        memory = ctypes.byref(ctypes.c_ubyte.from_buffer(pixels))
        context = own(macos.CGBitmapContextCreate(memory, *layout))
        macos.CGContextDrawImage(context, _Rect(0, 0, width, height), image)
    drawn = Image.frombuffer("RGBA", size, pixels, "raw", "RGBA", 0, 1).getchannel("A")
    least, most = drawn.getextrema()
    if not most:  # it has no other way to say that the pixels could not be decoded
        raise OSError(_FAILED)
    if least == 255:
        return Image.frombytes("RGB", size, pixels, "raw", "RGBX")
    return Image.frombytes("RGBa", size, pixels).convert("RGBA")
