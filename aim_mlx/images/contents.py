"""What is in a file, known by its digest, so that what a run meets twice is computed once."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO

from aim_mlx.errors import ImageError
from aim_mlx.images.decode import default_max_pixels
from aim_mlx.images.encoded import check_header
from aim_mlx.images.reading import (
    READ_WHOLE,
    KnownFile,
    contents_of,
    identity,
    size_and_time,
    unreadable,
)


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


def read_content(path: str, max_pixels: int | None = None) -> Content:
    """What is in a file; raises ImageError as reading() does."""
    with reading(path, max_pixels) as (content, _):
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
