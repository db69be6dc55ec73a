"""What decoding may take of the machine: pixels of one image, and images at a time."""

import ctypes
import os
import sys
from functools import cache

from aim_mlx.errors import ImageError

# A pixel costs up to 14 bytes while it is decoded (coefficients of a progressive JPEG, pixels,
# upright copy). With so many bytes of RAM for each, what is decoded at a time stays within a half.
_RAM_BYTES = 32
_NEVER_LARGE = 24_000_000  # pixels: most photos have fewer


def default_max_pixels() -> int:
    """The largest image decoded by default: 100 to 1000 megapixels, by the RAM.

    RAM / 64 keeps one such image below a quarter of the memory.
    """
    return min(max(_memory_bytes() // 64, 100_000_000), 1_000_000_000)


def check_pixels(size: tuple[int, int], limit: int) -> None:
    """Raises ImageError `too_large`, with both numbers, above `limit` pixels."""
    pixels = size[0] * size[1]
    if pixels > limit:
        raise ImageError(
            "too_large",
            f"{size[0]} x {size[1]} is {pixels / 1e6:.1f} megapixels, "
            f"the limit is {limit / 1e6:.1f} (--max-megapixels)",
        )


def decoding_threads() -> int:
    """Images decoded at a time: one a core, as far as there is memory for 24 megapixels of each."""
    return max(1, min(_cores(), _memory_bytes() // (_RAM_BYTES * _NEVER_LARGE)))


def large() -> int:
    """Pixels above which an image waits for its turn: all others at a time stay within RAM / 2.

    Those are as many as decoding_threads(), or eight, as callers may have threads of their own.
    """
    return max(_memory_bytes() // (_RAM_BYTES * max(8, decoding_threads())), _NEVER_LARGE)


@cache
def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30


def _cores() -> int:
    """The cores this process may use; of a Mac the performance cores, or up to 8 of any kind."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return max(_performance_cores(), min(os.cpu_count() or 1, 8))


def _performance_cores() -> int:
    """Those of Apple's processors, by the system's count; 0 elsewhere."""
    if sys.platform != "darwin":
        return 0
    count, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    ask = ctypes.CDLL(None).sysctlbyname
    ask.argtypes = [ctypes.c_char_p, *[ctypes.c_void_p] * 3, ctypes.c_size_t]
    name = b"hw.perflevel0.physicalcpu"
    failed = ask(name, ctypes.byref(count), ctypes.byref(size), None, 0)
    return 0 if failed else count.value
