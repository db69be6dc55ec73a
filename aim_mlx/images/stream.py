"""Image sources -> preprocessed samples, in order, decoded ahead in mlx-data's threads.

mlx-data only ever sees the numbers of the samples: it schedules, keeps the order and bounds how
many are ahead. It hands on numbers only, so the samples wait for their turn beside it. Where it is
not installed, or must leave no thread behind, threads of Python do the same.
"""

import atexit
import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images.contents import Content, Contents, KnownFile, reading
from aim_mlx.images.decode import ImageSource, decoded
from aim_mlx.images.limits import decoding_threads
from aim_mlx.images.preprocess import preprocess

# mlx-data holds every sample of a buffer as a dictionary, near 1 KB each: a long list of sources
# goes through it part by part.
_PART = 4096
_PATIENCE = 1.0  # seconds for threads without work to end


@dataclass(eq=False, slots=True)
class Embedded:
    """One image on its way from its source to its row: each step adds what it knows.

    `path` is empty for an image in memory, `content` what is in the file, where contents are asked
    for; then `repeats` is True where there is no need to compute it. `pixels`, float32 (H,W,3), are
    there from preprocessing to computing, which gives the `output`. `width` and `height` are those
    of the upright original, 0 where it was not decoded. `multi_frame` is True where further frames
    or pages were left out, `dark` where a 16-bit image is nearly black, `overflowed` where half
    precision did not do for it. `failure` says why an image has no pixels, or no output.
    """

    index: int
    path: str = ""
    content: Content | None = None
    repeats: bool = False
    pixels: NDArray[np.float32] | None = None
    width: int = 0
    height: int = 0
    multi_frame: bool = False
    dark: bool = False
    overflowed: bool = False
    output: NDArray[Any] | None = None
    failure: ImageError | None = None

    @property
    def vector(self) -> NDArray[np.float32]:
        """The vector (D,), float32; raises ImageError, the failure, where there is none."""
        if self.output is not None:
            return self.output
        failure = self.failure or ImageError("not_computed", "this image has no vector of its own")
        raise ImageError(failure.reason, failure.detail)


def stream(
    sources: Sequence[ImageSource],
    config: PreprocessConfig,
    *,
    threads: int | None = None,
    prefetch: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    places: Sequence[int] | None = None,
    contents: Contents | None = None,
    in_host: bool = False,
) -> Generator[Embedded, None, None]:
    """Yields one record for each source, in order; a bad image has its failure there.

    With `places`, only for the sources that stand there, in rising order. With `contents` all
    sources are paths; each file is read once, its content digested, and only what is new decoded.

    A source is asked for in the thread that decodes it, so `sources` may make them on demand.
    `threads` decode (default: decoding_threads()), at most `prefetch` samples (default: twice the
    threads) wait to be taken. Close the iterator, or read it to its end, to stop the threads; with
    `in_host`, an app that Python is a guest in, they are Python's, and none of them is left behind.
    Raises UsageError for a number below 1.
    """
    threads = decoding_threads() if threads is None else threads
    prefetch = 2 * threads if prefetch is None else prefetch
    for name, value in (("threads", threads), ("prefetch", prefetch)):
        if type(value) is not int or value < 1:
            raise UsageError(f"{name} must be a whole number from 1, got {value!r}")

    work = _Work(sources, config, max_pixels, allow_truncated, contents, in_host)
    return _samples(work, range(len(sources)) if places is None else places, threads, prefetch)


@dataclass(frozen=True)
class _Work:
    """What a thread does for one image: reads it, decodes it and makes its pixels."""

    sources: Sequence[ImageSource]
    config: PreprocessConfig
    max_pixels: int | None
    allow_truncated: bool
    contents: Contents | None
    in_host: bool

    def sample(self, index: int) -> Embedded:
        source = self.sources[index]
        path = source.path if isinstance(source, KnownFile) else source
        sample = Embedded(index, os.fspath(path) if isinstance(path, (str, Path)) else "")
        try:
            if self.contents is None:
                self._decode(source, sample)
            else:
                with reading(sample.path, self.max_pixels) as (sample.content, data):
                    if self.is_new(sample):
                        self._decode(data, sample)
        except ImageError as failure:
            sample.pixels, sample.failure = None, failure.with_traceback(None)
        except MemoryError:
            sample.failure = ImageError("too_large", "the memory ran out while it was resized")
        return sample

    def is_new(self, sample: Embedded) -> bool:
        """Whether it is to be decoded, as far as its content is known."""
        if self.contents is None or sample.content is None:
            return True
        return self.contents.is_new(sample.content, sample.index)

    def _decode(self, source: Any, sample: Embedded) -> None:
        with decoded(source, self.max_pixels, self.allow_truncated) as image:
            sample.pixels = preprocess(image, self.config)
            sample.width, sample.height = image.size
            sample.multi_frame, sample.dark = image.info["multi_frame"], image.info["dark"]


def _samples(
    work: _Work, places: Sequence[int], threads: int, prefetch: int
) -> Generator[Embedded, None, None]:
    feed = _PlainRun if work.in_host or not _has_mlx_data() else _Run
    for start in range(0, len(places), _PART):
        part = places[start : start + _PART]
        run = feed(work, part, threads, prefetch)
        try:
            for index in part:
                sample = run.take(index)
                # In the order of the list, whichever of several copies was read first.
                if not work.is_new(sample):
                    sample = Embedded(index, sample.path, sample.content, repeats=True)
                yield sample
        finally:
            run.close()


def _has_mlx_data() -> bool:
    try:
        import mlx.data  # noqa: F401 - here, for `import aim_mlx` to stay quick
    except ImportError:
        return False
    return True


class _PlainRun:
    """Python's threads working through `places`, at most `prefetch` of them ahead."""

    def __init__(self, work: _Work, places: Sequence[int], threads: int, prefetch: int):
        self._work, self._waiting = work, iter(places)
        self._threads = ThreadPoolExecutor(threads, "decoding")
        self._ahead = deque(map(self._start, islice(self._waiting, prefetch)))

    def _start(self, place: int) -> Future[Embedded]:
        return self._threads.submit(self._work.sample, place)

    def take(self, index: int) -> Embedded:
        sample = self._ahead.popleft()
        self._ahead.extend(map(self._start, islice(self._waiting, 1)))
        return sample.result()

    def close(self) -> None:
        """Waits for the samples under way, starts no other and ends the threads."""
        self._threads.shutdown(cancel_futures=True)


class _Task:
    """What mlx-data's threads do; it holds no _Run, which its own threads would keep alive."""

    def __init__(self, work: _Work):
        self.work = work
        self.done: dict[int, Embedded | BaseException] = {}
        self.under_way: set[int] = set()
        self.stopped = False

    def __call__(self, place: np.ndarray) -> np.ndarray:
        index = int(place)
        if not self.stopped:
            self.under_way.add(index)
            try:
                self.done[index] = self.work.sample(index)
            except BaseException as error:  # raised again where the sample is taken
                self.done[index] = error
            self.under_way.discard(index)
        return np.zeros(1, np.uint8)


class _Run:
    """mlx-data's threads working through `places`, at most `prefetch` of them ahead."""

    def __init__(self, work: _Work, places: Sequence[int], threads: int, prefetch: int):
        import mlx.data as dx

        self._task = _Task(work)
        self._ending: threading.Thread | None = None
        buffer_of: Any = dx.buffer_from_vector  # pyright: ignore[reportAttributeAccessIssue]
        buffer = buffer_of([{"index": index} for index in places])
        buffer = buffer.key_transform("index", self._task)
        # It begins again at the first sample where more are to be ahead than there are.
        self._stream: Any = buffer.ordered_prefetch(min(prefetch, len(places)), threads)
        _running.add(self)

    def take(self, index: int) -> Embedded:
        next(self._stream)  # waits until this sample is done
        result = self._task.done.pop(index)
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Waits for the samples under way, starts no other and ends the threads."""
        self._task.stopped = True
        if self._stream is not None:
            self._end()
        if self._ending is not None:
            self._ending.join(_PATIENCE)
            while self._task.under_way and self._ending.is_alive():
                self._ending.join(_PATIENCE)
        self._task.done.clear()
        _running.discard(self)

    def _end(self) -> None:
        """Lets go of the stream, in a thread: now and then mlx-data never comes back from that.

        mlx-data 0.1 says "stop" without holding its lock, and a thread of its own that was just
        about to fall asleep misses it (its pull request 112). Such a thread sleeps on, idle, until
        the process ends.
        """
        last = [self._stream]
        self._stream = None
        ending = threading.Thread(target=last.clear, name="end of a stream", daemon=True)
        try:
            ending.start()
        except RuntimeError:  # the interpreter is going, and some versions start no thread then
            last.clear()
        else:
            self._ending = ending


# mlx-data's threads crash the interpreter if they are still at work when it goes.
_running: set[_Run] = set()


@atexit.register
def _close_all() -> None:
    for run in list(_running):
        run.close()
