"""What is in image files, known by its digest, so that what a run meets twice is computed once.

Of regular files only, and of those that stand there to the end.
"""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import Any, BinaryIO

from aim_mlx.errors import ImageError
from aim_mlx.images.encoded import check_header
from aim_mlx.images.limits import default_max_pixels
from aim_mlx.images.parquet_images import ParquetImage

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


@dataclass(frozen=True)
class Content:
    """A file as it was read: SHA-256 in hex, bytes, time of change in nanoseconds, identity()."""

    digest: str
    size: int
    mtime_ns: int
    identity: tuple[int, ...]

    def at(self, path: str) -> KnownFile:
        """The file as a source that gives this content or fails."""
        return KnownFile(path, self.digest, self.size)


class Contents:
    """The contents of the images of a list; `known` says of a digest that none is to be computed.

    Threads may ask in any order. Once all images before one were asked for, the answer for it is
    final, and the same however they came.
    """

    def __init__(self, known: Callable[[str], bool]):
        self._known = known
        self._first: dict[str, int] = {}
        self._turn = threading.Lock()

    def is_new(self, content: Content, index: int) -> bool:
        """Whether image `index` is the first with a content that is not known."""
        digest = content.digest
        with self._turn:
            first = self._first[digest] = min(index, self._first.get(digest, index))
        return first == index and not self._known(digest)


@contextmanager
def reading(
    path: str, max_pixels: int | None = None
) -> Iterator[tuple[Content, BytesIO | BufferedReader]]:
    """A file's content and its bytes, to be decoded during the block.

    Raises ImageError for one that is no readable regular file, and for a large one whose header
    says that decode() will refuse it: a sparse terabyte takes hours to digest. Below READ_WHOLE
    bytes that is a moment.
    """
    limit = default_max_pixels() if max_pixels is None else max_pixels
    with contents_of(path) as (data, status):
        if status.st_size > READ_WHOLE:
            check_header(data, status.st_size, limit)
            data.seek(0)
        digest = hashlib.file_digest(data, "sha256").hexdigest()
        yield Content(digest, *size_and_time(status), identity(status)), data


def read_content(path: str) -> Content:
    """What is in a file; raises ImageError as reading() does."""
    with reading(path) as (content, _):
        return content


def changed(path: str, content: Content) -> ImageError | None:
    """Why a path no longer has the content that was digested; None where it has."""
    try:
        if identity(os.stat(path)) == content.identity:
            return None
        now = read_content(path)  # linked or touched, or on a disk that renumbers
    except OSError as error:
        return unreadable(path, error)
    except ImageError as failure:
        return failure.with_traceback(None)
    if now.digest != content.digest:
        return ImageError("changed", "the file changed while it was read")
    return None


@contextmanager
def contents_of(
    path: str,
) -> Iterator[tuple[BytesIO | BufferedReader, os.stat_result]]:
    """The bytes of a regular file, of a large one the open file itself, and its stat.

    Of an image in a Parquet file its own bytes, and the stat of a file that had no others. Raises
    ImageError for what cannot be read, and where a file changes during the block.
    """
    if isinstance(path, ParquetImage):
        yield _cell(path)
        return
    with regular_file(path) as (file, before):
        try:
            yield (file if before.st_size > READ_WHOLE else BytesIO(file.read())), before
        except (ImageError, OSError) as error:
            _check_unchanged(file, before)
            raise error if isinstance(error, ImageError) else unreadable(path, error) from error
        _check_unchanged(file, before)


def _cell(image: ParquetImage) -> tuple[BytesIO, os.stat_result]:
    check_regular(image.column.file)
    status = os.stat(image.column.file)
    data = image.column.read(image.row, identity(status))
    values = list(status)
    values[stat.ST_SIZE] = len(data)
    times = {name: getattr(status, name) for name in ("st_mtime_ns", "st_ctime_ns")}
    return BytesIO(data), os.stat_result(values, times)


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
def regular_file(path: Any) -> Iterator[tuple[BufferedReader, os.stat_result]]:
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
