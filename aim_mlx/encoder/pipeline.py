"""Sources to rows: decoded ahead, batched by grid, computed, and given out batch by batch.

Batches compute while the next is being gathered; on a CPU as many at a time as there are cores.
What fails in them is computed again: in float32 where half precision overflows, in smaller batches
where memory or the GPU fails.
"""

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from aim_mlx.backend import BLAS, cpu_streams, mx, on_gpu, within_memory
from aim_mlx.config import MLP_PRODUCTS, PreprocessConfig
from aim_mlx.encoder.batches import batches, in_order
from aim_mlx.errors import (
    CheckpointError,
    DarkImageWarning,
    ImageError,
    Interrupted,
    OverflowWarning,
    UsageError,
)
from aim_mlx.failures import failed, is_of_device
from aim_mlx.images import Contents, Embedded, ImageSource, stream
from aim_mlx.models.pooling import ALL_POOLINGS, check_pooling
from aim_mlx.models.vision import VisionEncoder

# Patches in a batch where no size is asked for: 32 images of 224 x 224 on a GPU, four on a CPU,
# where every core has a batch of its own and larger ones gain little.
_GPU_PATCHES = 32 * 256
_CPU_PATCHES = 4 * 256
_MOST_AHEAD = 64  # decoded samples that wait, 0.6 MB each at 224 x 224

# Operations a second that even a slow device of the kind does: the first Macs with Apple silicon, a
# core of a CPU, one without a fast BLAS. They decide how much work a block is, no more.
_GPU_RATE, _CORE_RATE, _SLOW_CORE_RATE = 2e12, 7.5e10, 5e9
_BLOCK_SECONDS = 5.0
_LARGEST_BLOCK = 1024
_NATIVE_PATCHES = 1536  # of a photograph of 640 x 480

_Array = NDArray[np.float32]
_Outputs = mx.array | list[_Array]  # of a batch: at work, or computed
_Begun = tuple[list[Embedded], _Outputs]
_Done = tuple[list[Embedded], list[_Array]]


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
        if self.pooling is not None:
            check_pooling(self.pooling, ALL_POOLINGS)
        for name in ("batch_size", "max_pixels"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                name = name.replace("_", " ")
                raise UsageError(f"{name} must be a whole number from 1, got {value!r:.80}")


def block_size(model: VisionEncoder, batch_size: int | None) -> int:
    """How many images make a block: some 5 s of work on a slow device, in whole batches.

    Batches do not reach over the end of a block, and only whole blocks are kept: so a run that was
    interrupted gives the same bits as one that was not. On a CPU each core has a batch.
    """
    config = model.config
    patches = config.grid**2 if config.grid else _NATIVE_PATCHES
    products = len(MLP_PRODUCTS[config.family])
    block = config.embed_dim * (4 * config.embed_dim + products * config.mlp_hidden_dim)
    operations = 2 * patches * config.num_blocks * block
    cores = 1 if on_gpu() else BLAS.threads
    rate = _SLOW_CORE_RATE if BLAS.state == "missing" else _CORE_RATE
    images = int(_BLOCK_SECONDS * (_GPU_RATE if on_gpu() else cores * rate) / operations)
    size = min(_LARGEST_BLOCK, 1 << max(1, images).bit_length() - 1)
    whole = cores * (batch_size or 1)
    return -(-size // whole) * whole


class Pipeline:
    """One pass over images: `compute` takes pixels (B, H, W, 3) to lazy outputs, a row for each.

    It gets them in `dtype`, and alone in float32 where the output is not finite. Only the images at
    `places` are computed, all if None. Batches end at every multiple of `block` images of the whole
    list. `known` says of a digest that files with this content need not be
    computed: those, and all but the first with a content, have rows that repeat. `grid` is that of
    a fixed-size model. `stop` is asked before each round of batches whether to end early.
    `in_host` is that of images.stream.
    """

    def __init__(
        self,
        compute: Callable[[mx.array], mx.array],
        images: Sequence[ImageSource],
        preprocessing: PreprocessConfig,
        grid: int | None,
        options: EmbedOptions,
        *,
        dtype: mx.Dtype = mx.float32,
        block: int | None = None,
        places: Sequence[int] | None = None,
        known: Callable[[str], bool] | None = None,
        stop: Callable[[], bool] = lambda: False,
        in_host: bool = False,
    ):
        self._compute, self._images, self._preprocessing = compute, images, preprocessing
        self._options, self._grid, self._stop = options, grid, stop
        self._in_host, self._dtype = in_host, dtype
        self._at_once: int | None = None  # images computed together since the device failed
        self._block = block or max(1, len(images))
        self._places = range(len(images)) if places is None else places
        self._contents = None if known is None else Contents(known)
        self._patches = None  # of a full batch, where the caller gives no size
        if options.batch_size is None:
            self._patches = _GPU_PATCHES if on_gpu() else _CPU_PATCHES

    def rows(self) -> Generator[Embedded, None, None]:
        """A row for each place, in order; CheckpointError if the first batch has no finite output.

        Interrupted where it stopped early: after the rows of all batches that were begun.
        """
        return in_order(self._rows(), self._places)

    def _rows(self) -> Generator[Embedded, None, None]:
        checked = dark = overflowed = False
        done = 0
        most = math.ceil(self._block / (self._options.batch_size or 1))  # batches there can be
        with within_memory(), cpu_streams(most) as streams:
            for samples in self._samples(len(streams)):
                grouped = self._batches(samples, len(streams))
                for rows in self._computed(grouped, streams):
                    checked = checked or _check_finite(rows)
                    dark = dark or _warn_of_dark(rows)
                    overflowed = overflowed or _warn_of_overflow(rows)
                    done += len(rows)
                    yield from rows
        if done < len(self._places):
            raise Interrupted("stopped")

    def _samples(self, streams: int) -> Iterator[Iterator[Embedded]]:
        """Samples, decoded while others compute; on a CPU only if each product has one thread.

        mlx-data has OpenBLAS use one thread while its own are at work, and then as many as they
        found: with more than one, speed and rounding would be a matter of chance. So the images of
        each block are decoded first.
        """
        threads = BLAS.threads // streams
        alone = not on_gpu() and threads > 1
        parts = [self._places]
        if alone:
            parts = (list(part) for _, part in groupby(self._places, self._block_of))
        for number, places in enumerate(parts):
            if number and self._stop():
                return
            samples = stream(
                self._images,
                self._preprocessing,
                prefetch=self._ahead(streams),
                max_pixels=self._options.max_pixels,
                allow_truncated=self._options.allow_truncated,
                places=places,
                contents=self._contents,
                in_host=self._in_host,
            )
            with closing(samples):
                if alone:
                    samples = iter(list(samples))
                    BLAS.use(threads)
                yield samples

    def _block_of(self, index: int) -> int:
        return index // self._block

    def _batches(self, samples: Iterator[Embedded], streams: int) -> Iterator[list[Embedded]]:
        """Batches, block by block; none has more than a stream's share, that none stands idle."""
        for number, part in groupby(samples, key=lambda sample: self._block_of(sample.index)):
            length = min(self._block, len(self._images) - number * self._block)
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
        self, grouped: Iterator[list[Embedded]], streams: list[mx.Stream]
    ) -> Iterator[list[Embedded]]:
        """The rows of each batch; as many batches as there are streams compute together.

        They are set going by one call: on the CPU it returns only when most of its work is done,
        so that a call for each would run them in turn. The next are gathered before any is read.
        """
        running: list[_Begun] = []
        together = self._next(grouped, len(streams))
        while together or running:
            started: list[_Begun] = []
            try:
                for batch, device_stream in zip(together, streams, strict=False):
                    started.append((batch, self._start(batch, device_stream)))
                mx.async_eval([outputs for _, outputs in started if isinstance(outputs, mx.array)])
                done = [(batch, _read(outputs)) for batch, outputs in running]
            except (RuntimeError, MemoryError) as error:
                # One error stands for all that was at work, so all of it is computed again.
                work, before = [batch for batch, _ in running] + together, len(running)
                running, started = [], []  # which would hold their memory
                again = self._again(work, error)
                done = again[:before]
                started.extend(again[before:])
            for batch, outputs in done:
                yield self._finish(batch, outputs)
            running, together = started, together and self._next(grouped, len(streams))

    def _next(self, grouped: Iterator[list[Embedded]], count: int) -> list[list[Embedded]]:
        """The batches to compute next, none if it is to stop, before or after waiting for them."""
        together = [] if self._stop() else list(islice(grouped, count))
        return [] if self._stop() else together

    def _start(self, batch: list[Embedded], device_stream: mx.Stream) -> _Outputs:
        """The outputs of a batch, not yet computed."""
        pixels = _pixels(batch)
        if not pixels or self._at_once is not None:
            return self._in_parts(pixels, self._dtype)
        with mx.stream(device_stream):
            return self._compute(mx.array(np.stack(pixels)).astype(self._dtype))

    def _again(self, work: list[list[Embedded]], error: Exception) -> list[_Done]:
        """Batches with their outputs, after memory or the GPU failed in them.

        Any other error is raised.
        """
        images = max(len(_pixels(batch)) for batch in work)
        self._take_fewer(max(2, images), error)  # one image may have failed beside another's
        return [(batch, self._in_parts(_pixels(batch), self._dtype)) for batch in work]

    def _in_parts(self, pixels: list[_Array], dtype: mx.Dtype) -> list[_Array]:
        """The outputs of images, computed part by part; AimError where a single image fails."""
        outputs: list[_Array] = []
        while len(outputs) < len(pixels):
            part = pixels[len(outputs) :][: self._at_once]
            try:
                outputs.extend(np.array(self._compute(mx.array(np.stack(part)).astype(dtype))))
            except (RuntimeError, MemoryError) as error:
                self._take_fewer(len(part), error)
        return outputs

    def _take_fewer(self, images: int, error: Exception) -> None:
        """From now on computes half as many at a time as failed; AimError if that was one."""
        if not is_of_device(error):
            raise error
        if images == 1:
            raise failed(error, 1) from error
        with suppress(RuntimeError):  # of what was still at work
            mx.synchronize()
        mx.clear_cache()
        self._at_once = images // 2

    def _finish(self, batch: list[Embedded], computed: list[_Array]) -> list[Embedded]:
        """The rows of a batch: outputs in the place of pixels.

        Those that overflowed half precision are computed again in float32.
        """
        outputs = iter(computed)
        for sample in batch:
            if sample.pixels is None:
                continue
            output = next(outputs)
            if self._dtype != mx.float32 and not np.isfinite(output).all():
                (output,) = self._in_parts([sample.pixels], mx.float32)
                sample.overflowed = True
            sample.pixels = None
            if np.isfinite(output).all():
                sample.output = output
            else:
                detail = "the embedding of this image is not finite"
                sample.failure = ImageError("non_finite", detail)
        return batch


def _pixels(batch: list[Embedded]) -> list[_Array]:
    return [sample.pixels for sample in batch if sample.pixels is not None]


def _read(outputs: _Outputs) -> list[_Array]:
    """Outputs, once they are computed."""
    return list(np.array(outputs)) if isinstance(outputs, mx.array) else outputs


def _warn_of_overflow(rows: list[Embedded]) -> bool:
    """Whether any image had to be computed again in float32, with an OverflowWarning."""
    if not any(row.overflowed for row in rows):
        return False
    warnings.warn(
        "some images overflow half precision and are computed again in float32, one at a time; "
        "where there are many, --dtype float32 (dtype=) or bfloat16 is faster",
        OverflowWarning,
        stacklevel=4,  # whoever takes the rows
    )
    return True


def _warn_of_dark(rows: list[Embedded]) -> bool:
    """Whether any image is dark, with a DarkImageWarning.

    They are not made brighter by themselves: of a series some images would be, and others not.
    """
    if not any(row.dark for row in rows):
        return False
    warnings.warn(
        "some 16-bit images use less than an eighth of their range, so that the model sees them "
        "nearly black: where 12 bits are kept in 16, multiply the values by 16 first",
        DarkImageWarning,
        stacklevel=4,  # whoever takes the rows
    )
    return True


def _check_finite(rows: list[Embedded]) -> bool:
    """Whether any vector was computed; CheckpointError if some were and none is finite.

    Where none gives a number, not even in float32, the weights are at fault.
    """
    good = sum(row.output is not None for row in rows)
    bad = sum(row.failure is not None and row.failure.reason == "non_finite" for row in rows)
    if bad and not good:
        raise CheckpointError(
            f"no vector of the first {bad} images is finite, in float32 either: the weights do not "
            "serve; download or convert them again"
        )
    return bool(good)
