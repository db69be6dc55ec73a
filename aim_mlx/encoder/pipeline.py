"""Sources to rows: decoded ahead, batched by grid, computed, and given out batch by batch.

Batches compute while the next is being gathered; on a CPU as many at a time as there are cores.
"""

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from aim_mlx.backend import BLAS, cpu_streams, mx, on_gpu
from aim_mlx.config import PreprocessConfig
from aim_mlx.encoder.batching import batches
from aim_mlx.errors import (
    AimError,
    CheckpointError,
    DarkImageWarning,
    ImageError,
    Interrupted,
    UsageError,
)
from aim_mlx.images import OMITTED, ImageSource, Omitted, Sample, stream

# Patches in a batch where no size is asked for: 32 images of 224 x 224 on a GPU, four on a CPU,
# where every core has a batch of its own and larger ones gain little.
_GPU_PATCHES = 32 * 256
_CPU_PATCHES = 4 * 256
_MOST_AHEAD = 64  # decoded samples that wait, 0.6 MB each at 224 x 224


@dataclass(frozen=True, eq=False)
class Embedded:
    """One image's row: its vector, or why it has none.

    `outcome` is the vector, the failure, or OMITTED for a source that keeps its place and is not
    computed. `width` and `height` are those of the upright original, 0 where it was not decoded;
    `multi_frame` is True where only the first of several frames or pages was read.
    """

    index: int
    outcome: NDArray[np.float32] | ImageError | Omitted
    width: int = 0
    height: int = 0
    multi_frame: bool = False

    @property
    def failure(self) -> ImageError | None:
        """Why the image has no vector; None where it has one."""
        return self.outcome if isinstance(self.outcome, ImageError) else None

    @property
    def vector(self) -> NDArray[np.float32]:
        """The vector (D,), float32; raises ImageError, the failure, where there is none."""
        if isinstance(self.outcome, np.ndarray):
            return self.outcome
        failure = self.failure or ImageError("omitted", "this source was left out")
        raise ImageError(failure.reason, failure.detail)


@dataclass(frozen=True)
class EmbedOptions:
    """How tokens become a vector, and how many images run at a time.

    `pooling` None is the model's own: "attention" where it has such a pool, else "mean". `layers`
    takes the mean of those blocks' outputs (before the final norm) in place of the final tokens.
    `batch_size` None fits the batch to the device and the patch grid.
    """

    pooling: str | None = None
    layers: tuple[int, ...] = ()
    normalize: bool = True
    batch_size: int | None = None
    max_pixels: int | None = None
    allow_truncated: bool = False

    def __post_init__(self):
        for name in ("batch_size", "max_pixels"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                name = name.replace("_", " ")
                raise UsageError(f"{name} must be a whole number from 1, got {value!r:.80}")


class Pipeline:
    """One pass over images: `compute` takes pixels (B, H, W, 3) to lazy vectors (B, D).

    Batches end at every multiple of `block` images. `grid` is that of a fixed-size model. `stop` is
    asked before each round of batches whether to end early.
    """

    def __init__(
        self,
        compute: Callable[[mx.array, EmbedOptions], mx.array],
        preprocessing: PreprocessConfig,
        options: EmbedOptions,
        block: int,
        grid: int | None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self._stop = stop
        self._compute, self._preprocessing = compute, preprocessing
        self._options, self._block, self._grid = options, block, grid
        self._patches = None  # of a full batch, where the caller gives no size
        if options.batch_size is None:
            self._patches = _GPU_PATCHES if on_gpu() else _CPU_PATCHES

    def rows(self, images: Sequence[ImageSource | Omitted]) -> Generator[Embedded, None, None]:
        """Rows as they are finished; CheckpointError if no vector of the first batch is finite.

        Interrupted where it stopped early: after the rows of all batches that were begun.
        """
        checked = False
        done = 0
        most = math.ceil(self._block / (self._options.batch_size or 1))  # batches there can be
        with cpu_streams(most) as streams:
            for samples in self._samples(images, len(streams)):
                grouped = self._batches(_warned(samples), len(images), len(streams))
                for rows in self._computed(grouped, streams):
                    checked = checked or _check_finite(rows)
                    done += len(rows)
                    yield from rows
        if done < len(images):
            raise Interrupted("stopped")

    def _samples(
        self, images: Sequence[ImageSource | Omitted], streams: int
    ) -> Iterator[Iterator[Sample]]:
        """Samples, decoded while others compute; on a CPU only if each product has one thread.

        mlx-data has OpenBLAS use one thread while its own are at work, and then as many as they
        found: with more than one, speed and rounding would be a matter of chance. So the images of
        each block are decoded first.
        """
        threads = BLAS.threads // streams
        alone = not on_gpu() and threads > 1
        step = self._block if alone else max(1, len(images))
        for start in range(0, len(images), step):
            if start and self._stop():
                return
            samples = stream(
                images,
                self._preprocessing,
                prefetch=self._ahead(streams),
                max_pixels=self._options.max_pixels,
                allow_truncated=self._options.allow_truncated,
                places=range(start, min(start + step, len(images))),
            )
            with closing(samples):
                if alone:
                    samples = iter(list(samples))
                    BLAS.use(threads)
                yield samples

    def _batches(
        self, samples: Iterator[Sample], count: int, streams: int
    ) -> Iterator[list[Sample]]:
        """Batches, block by block; none has more than a stream's share, that none stands idle."""
        for number, part in groupby(samples, key=lambda sample: sample.index // self._block):
            length = min(self._block, count - number * self._block)
            size = self._options.batch_size or math.ceil(length / streams)
            yield from batches(part, self._preprocessing.patch_size, size, self._patches)

    def _ahead(self, streams: int) -> int | None:
        """Samples to decode ahead: those of the next batches, while the present ones compute."""
        if self._grid is None:  # up to 10 MB each, and few to a batch
            return None
        full = self._options.batch_size or self._block
        if self._patches is not None:
            full = min(full, max(1, self._patches // self._grid**2))
        return min(full * streams, _MOST_AHEAD)

    def _computed(
        self, grouped: Iterator[list[Sample]], streams: list[mx.Stream]
    ) -> Iterator[list[Embedded]]:
        """The rows of each batch; as many batches as there are streams compute together.

        They are set going by one call: on the CPU it returns only when most of its work is done,
        so that a call for each would run them in turn. The next are gathered before any is read.
        """
        running: list[tuple[list[Sample], mx.array | None]] = []
        while together := self._next(grouped, len(streams)):
            started = [
                (batch, self._start(batch, device_stream))
                for batch, device_stream in zip(together, streams, strict=False)
            ]
            with explained(max(map(len, together))):
                mx.async_eval([vectors for _, vectors in started if vectors is not None])
            yield from (_finish(*each) for each in running)
            running = started
        yield from (_finish(*each) for each in running)

    def _next(self, grouped: Iterator[list[Sample]], count: int) -> list[list[Sample]]:
        """The batches to compute next, none if it is to stop, before or after waiting for them."""
        together = [] if self._stop() else list(islice(grouped, count))
        return [] if self._stop() else together

    def _start(self, batch: list[Sample], device_stream: mx.Stream) -> mx.array | None:
        """The vectors (B, D) of a batch, not yet computed; None where all of it failed."""
        pixels = [sample.pixels for sample in batch if sample.pixels is not None]
        if not pixels:
            return None
        with mx.stream(device_stream):
            return self._compute(mx.array(np.stack(pixels)), self._options)


def _warned(samples: Iterator[Sample]) -> Iterator[Sample]:
    """The same samples; DarkImageWarning at the first that is dark.

    They are not made brighter by themselves: of a series some images would be, and others not.
    """
    said = False
    for sample in samples:
        if sample.dark and not said:
            said = True
            warnings.warn(
                "some 16-bit images use less than an eighth of their range, so that the model sees "
                "them nearly black: where 12 bits are kept in 16, multiply the values by 16 first",
                DarkImageWarning,
                stacklevel=2,
            )
        yield sample


def _finish(batch: list[Sample], computing: mx.array | None) -> list[Embedded]:
    """Waits for a batch; its rows, failures of decoding included."""
    with explained(len(batch)):
        vectors = iter([] if computing is None else np.array(computing))
    return [_row(sample, vectors) for sample in batch]


def _check_finite(rows: list[Embedded]) -> bool:
    """Whether any vector was computed; CheckpointError if some were and none is finite.

    One image may overflow half precision; where none gives a number, the weights are at fault.
    """
    good = sum(isinstance(row.outcome, np.ndarray) for row in rows)
    bad = sum(row.failure is not None and row.failure.reason == "non_finite" for row in rows)
    if bad and not good:
        raise CheckpointError(
            f"no vector of the first {bad} images is finite: the weights or the dtype do not "
            "serve; try --dtype float32"
        )
    return bool(good)


def _row(sample: Sample, vectors: Iterator[np.ndarray]) -> Embedded:
    if sample.pixels is None:
        return Embedded(sample.index, sample.failure or OMITTED)
    outcome = next(vectors)
    if not np.isfinite(outcome).all():
        outcome = ImageError("non_finite", "the embedding of this image is not finite")
    return Embedded(sample.index, outcome, sample.width, sample.height, sample.multi_frame)


@contextmanager
def explained(batch: int) -> Iterator[None]:
    """Turns MLX's out-of-memory error into one that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise AimError(
            f"out of memory with {batch} images at a time: try --batch-size {max(1, batch // 2)}"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "alloc" in text or "memory" in text
