"""Image sources -> preprocessed samples, in order, decoded ahead in mlx-data's threads.

mlx-data only ever sees the numbers of the samples: it schedules, keeps the order and bounds how
many are ahead. The samples themselves, failures included, wait in a table for their turn.
"""

import atexit
import os
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images.decode import ImageSource, decoded
from aim_mlx.images.preprocess import preprocess

# mlx-data holds every sample of a buffer as a dictionary, near 1 KB each: a long list of sources
# goes through it part by part.
_PART = 4096
_PATIENCE = 1.0  # seconds for threads without work to end


class Omitted(Enum):
    """A source that keeps its place and is not decoded."""

    OMITTED = "omitted"


OMITTED = Omitted.OMITTED


@dataclass(frozen=True)
class Sample:
    """One source, preprocessed: `pixels` is float32 (H,W,3), or None where `failure` says why not.

    Both are None for a source that is OMITTED.

    `width` and `height` are those of the upright original, 0 on failure. `multi_frame` is True
    where further frames or pages were left out, `dark` where a 16-bit image is nearly black.
    """

    index: int
    pixels: np.ndarray | None
    width: int
    height: int
    failure: ImageError | None
    multi_frame: bool = False
    dark: bool = False


def stream(
    sources: Sequence[ImageSource | Omitted],
    config: PreprocessConfig,
    *,
    threads: int | None = None,
    prefetch: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    places: range | None = None,
) -> Generator[Sample, None, None]:
    """Yields one Sample for each source, in order; a bad image is a sample with its failure.

    With `places`, only for the sources that stand there.

    A source is asked for in the thread that decodes it, so `sources` may make them on demand.
    `threads` decode (default: the cores, at most 8), at most `prefetch` samples (default: twice the
    threads) wait to be taken. Close the iterator, or read it to its end, to stop the threads.
    Raises UsageError for a number below 1.
    """
    threads = min(8, _cores()) if threads is None else threads
    prefetch = 2 * threads if prefetch is None else prefetch
    for name, value in (("threads", threads), ("prefetch", prefetch)):
        if type(value) is not int or value < 1:
            raise UsageError(f"{name} must be a whole number from 1, got {value!r}")

    def work(index: int) -> Sample:
        return _sample(index, sources[index], config, max_pixels, allow_truncated)

    return _samples(work, places or range(len(sources)), threads, prefetch)


def _sample(
    index: int,
    source: ImageSource | Omitted,
    config: PreprocessConfig,
    max_pixels: int | None,
    allow_truncated: bool,
) -> Sample:
    if isinstance(source, Omitted):
        return Sample(index, None, 0, 0, None)
    try:
        with decoded(source, max_pixels, allow_truncated) as image:
            pixels = preprocess(image, config)
    except ImageError as failure:
        return Sample(index, None, 0, 0, failure.with_traceback(None))
    except MemoryError:
        failure = ImageError("too_large", "the memory ran out while it was resized")
        return Sample(index, None, 0, 0, failure)
    frames, dark = image.info["multi_frame"], image.info["dark"]
    return Sample(index, pixels, image.width, image.height, None, frames, dark)


def _samples(
    work: Callable[[int], Sample], places: range, threads: int, prefetch: int
) -> Generator[Sample, None, None]:
    for start in range(0, len(places), _PART):
        part = places[start : start + _PART]
        run = _Run(work, part, threads, prefetch)
        try:
            for index in part:
                yield run.take(index)
        finally:
            run.close()


class _Run:
    """mlx-data's threads working through `indices`, at most `prefetch` of them ahead."""

    def __init__(self, work: Callable[[int], Sample], indices: range, threads: int, prefetch: int):
        import mlx.data as dx  # here, for `import aim_mlx` to stay quick

        self._done: dict[int, Sample | BaseException] = {}
        self._under_way: set[int] = set()
        self._state = {"stopped": False}
        self._ending: threading.Thread | None = None
        transform = _transform(work, self._done, self._under_way, self._state)
        buffer_of: Any = dx.buffer_from_vector  # pyright: ignore[reportAttributeAccessIssue]
        buffer = buffer_of([{"index": index} for index in indices])
        buffer = buffer.key_transform("index", transform)
        self._stream: Any = buffer.ordered_prefetch(prefetch, threads)
        _running.add(self)

    def take(self, index: int) -> Sample:
        next(self._stream)  # waits until this sample is done
        result = self._done.pop(index)
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Waits for the samples under way, starts no other and ends the threads."""
        self._state["stopped"] = True
        if self._stream is not None:
            self._end()
        if self._ending is not None:
            self._ending.join(_PATIENCE)
            while self._under_way and self._ending.is_alive():
                self._ending.join(_PATIENCE)
        self._done.clear()
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


def _transform(
    work: Callable[[int], Sample],
    done: dict[int, Sample | BaseException],
    under_way: set[int],
    state: dict[str, bool],
) -> Callable[[np.ndarray], np.ndarray]:
    """What a thread runs; it holds no _Run, so that none is kept alive by its own threads."""

    def transform(index: np.ndarray) -> np.ndarray:
        if not state["stopped"]:
            under_way.add(int(index))
            try:
                done[int(index)] = work(int(index))
            except BaseException as error:  # raised again where the sample is taken
                done[int(index)] = error
            under_way.discard(int(index))
        return np.zeros(1, np.uint8)

    return transform


def _cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
