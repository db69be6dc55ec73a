"""The bytes of image files: of regular files only, and those that stand there to the end."""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from aim_mlx.errors import ImageError

READ_WHOLE = 64 << 20  # bytes; larger files are decoded from the open file
_TIMES = (-(2**63), 2**63 - 1)  # nanoseconds that 64 bits hold: the years 1677 to 2262


@dataclass(frozen=True)
class KnownFile:
    """A file that is decoded only if its bytes are those read before: `digest` is SHA-256 in hex.

    Digesting the bytes again costs 5 ms for a photograph of 4 MB, which takes 130 ms to decode.
    """

    path: str
    digest: str
    size: int


@contextmanager
def contents_of(
    path: str,
) -> Iterator[tuple[io.BytesIO | io.BufferedReader, os.stat_result]]:
    """The bytes of a regular file, of a large one the open file itself, and its stat.

    Raises ImageError for what cannot be read, and where the file changes during the block.
    """
    with regular_file(path) as (file, before):
        try:
            yield (file if before.st_size > READ_WHOLE else io.BytesIO(file.read())), before
        except (ImageError, OSError) as error:
            _check_unchanged(file, before)
            raise error if isinstance(error, ImageError) else unreadable(path, error) from error
        _check_unchanged(file, before)


def _check_unchanged(file: BinaryIO, before: os.stat_result) -> None:
    if identity(os.fstat(file.fileno())) != identity(before):
        raise ImageError("changed", "the file changed while it was read")


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What stays the same while nobody replaces or writes a file; its times alone can be set."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def size_and_time(status: os.stat_result) -> tuple[int, int]:
    """Bytes and time of change in nanoseconds, the nearest that 64 bits hold."""
    earliest, latest = _TIMES
    return status.st_size, min(max(status.st_mtime_ns, earliest), latest)


def is_beyond_times(mtime_ns: int) -> bool:
    """Whether a time as size_and_time() gives it may stand for one that 64 bits cannot hold."""
    return mtime_ns in _TIMES


@contextmanager
def regular_file(path: Any) -> Iterator[tuple[io.BufferedReader, os.stat_result]]:
    """A regular file, opened without ever waiting for it, and its stat; raises ImageError."""
    check_regular(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    with os.fdopen(descriptor, "rb") as file:
        # Looked at again: what was opened may not be what was looked at before.
        status = os.fstat(descriptor)
        _check_mode(status)
        if status.st_size == 0:
            raise ImageError("empty", "the file has 0 bytes")
        yield file, status


def check_regular(path: Any) -> None:
    """Raises ImageError for what is not a regular file, or no link to one; it is not opened."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    _check_mode(status)


def _check_mode(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("not_regular", "a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not_regular", "a FIFO, socket or device, not a file")


def unreadable(path: Any, error: Exception) -> ImageError:
    """The reason for a file that cannot be opened or read."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        if os.path.islink(path):
            return ImageError("not_regular", "a link to nothing")
        return ImageError("vanished", "the file is not there")
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return ImageError("not_regular", "a link that leads to itself")
        return ImageError("unreadable", os.strerror(error.errno or errno.EIO))
    return ImageError("unreadable", str(error))
