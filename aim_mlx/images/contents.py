"""The content of files, known by its digest before it is decoded, so that it is decoded once."""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from aim_mlx.errors import ImageError
from aim_mlx.images.decode import default_max_pixels
from aim_mlx.images.reading import (
    READ_WHOLE,
    KnownFile,
    check_header,
    identity,
    regular_file,
    size_and_time,
    unreadable,
)
from aim_mlx.images.stream import OMITTED, Omitted

_THREADS = 2
_AHEAD = 64  # files read before they are decoded; by then they are in the system's cache


@dataclass(frozen=True)
class Content:
    """A file as it was read: SHA-256 in hex, bytes, time of change in nanoseconds, identity().

    `repeats` is True where the same bytes are known already, from before or from an earlier file.
    """

    digest: str
    size: int
    mtime_ns: int
    identity: tuple[int, ...]
    repeats: bool = False

    def at(self, path: str) -> KnownFile:
        """The file as a source that gives this content or fails."""
        return KnownFile(path, self.digest, self.size)


class Contents(Sequence[KnownFile | Omitted]):
    """Paths as sources of `stream`: item i is the file, or OMITTED if it needs no decoding.

    It needs none where its content repeats or cannot be read. `known` says whether a digest is
    known from before, `max_pixels` is that of decode(). Files are read ahead in threads and judged
    strictly in order, so that the same files always give the same answer. A context manager, which
    ends the threads.
    """

    def __init__(
        self, paths: Sequence[str], known: Callable[[str], bool], max_pixels: int | None = None
    ):
        self._paths = paths
        self._max_pixels = max_pixels
        self._known = known
        self._seen: set[str] = set()
        self._pool = ThreadPoolExecutor(_THREADS)
        self._reading: dict[int, Future[Content]] = {}
        self._submitted = 0
        self._judged: dict[int, Content | ImageError] = {}
        self._next = 0
        self._turn = threading.Lock()

    def __enter__(self) -> "Contents":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> KnownFile | Omitted:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Waits until file `index` was read and judged."""
        with self._turn:
            while self._next <= index:
                self._judge_next()
            content = self._judged[index]
        if isinstance(content, ImageError) or content.repeats:
            return OMITTED
        return content.at(self._paths[index])

    def take(self, index: int) -> Content | ImageError:
        """What was found of file `index`, once; it has been asked for before."""
        with self._turn:
            return self._judged.pop(index)

    def _judge_next(self) -> None:
        last = min(self._next + _AHEAD, len(self._paths))
        for index in range(self._submitted, last):
            self._reading[index] = self._pool.submit(
                read_content, self._paths[index], self._max_pixels
            )
        self._submitted = max(self._submitted, last)
        try:
            content = self._reading.pop(self._next).result()
        except ImageError as failure:
            self._judged[self._next] = failure.with_traceback(None)
        else:
            repeats = content.digest in self._seen or self._known(content.digest)
            self._seen.add(content.digest)
            self._judged[self._next] = replace(content, repeats=repeats)
        self._next += 1


def read_content(path: str, max_pixels: int | None = None) -> Content:
    """Reads a file for its digest; raises ImageError for one that is no readable regular file.

    So it does for a large one whose header says that decode() will refuse it: a sparse terabyte
    takes hours to digest. Below READ_WHOLE bytes that is a moment.
    """
    limit = default_max_pixels() if max_pixels is None else max_pixels
    with regular_file(path) as (file, found):
        try:
            if found.st_size > READ_WHOLE:
                check_header(file, found.st_size, limit)
                file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error
    return Content(digest, *size_and_time(found), identity(found))


def changed(path: str, content: Content) -> ImageError | None:
    """Why a path no longer has the content that was digested; None where it has."""
    try:
        if identity(os.stat(path)) == content.identity:
            return None
        now = read_content(path)  # linked or touched, or on a disk that numbers files anew
    except OSError as error:
        return unreadable(path, error)
    except ImageError as failure:
        return failure.with_traceback(None)
    if now.digest != content.digest:
        return ImageError("changed", "the file changed while it was read")
    return None
