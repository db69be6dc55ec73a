"""A batch of tokens divided among the cores, and there into parts and chunks.

The tokens of a chunk go from float16 to float32 while the chunk before is used. And what is
measured of each image once, as its frozen tokens stay: their moments, for batch normalisation.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from aim_mlx.backend import BLAS, cpu_streams, evaluate_on_cpu, machine_bytes, mx, on_gpu
from aim_mlx.probe.heads import Moments

Chunk = Sequence[np.ndarray]  # the tokens of a few images as they are stored, (N, D) each

_NOT_REPEATED_SIGN = ~0x70000000  # three of the bits that widening to 32 filled with the sign


def widened(plan: Sequence[Chunk], pool: Executor) -> Iterator[mx.array]:
    """The chunks of a plan in turn, each float32 (b, N, D).

    On a CPU, a chunk is to be done with before the next.
    """
    return _by_gpu(plan) if on_gpu() else _one_ahead(plan, pool)


def _by_gpu(plan: Sequence[Chunk]) -> Iterator[mx.array]:
    """Each once, however often it follows itself."""
    for _, same in groupby(plan, key=id):
        chunk, *again = same
        tokens = mx.array(np.stack(chunk)).astype(mx.float32)
        yield from [tokens] * (1 + len(again))


def _one_ahead(plan: Sequence[Chunk], pool: Executor) -> Iterator[mx.array]:
    """By turns in one of two pieces of memory: used again, they stay in the processor's cache."""
    largest, shape = max(map(len, plan)), plan[0][0].shape
    memory = [mx.zeros((largest, *shape)) for _ in plan[:2]]
    mx.eval(memory)
    seen = [np.asarray(each) for each in memory]  # what NumPy writes there, MLX reads
    ahead = pool.submit(widen, plan[0], seen[0])
    for place, chunk in enumerate(plan):
        ahead.result()
        if place + 1 < len(plan):
            ahead = pool.submit(widen, plan[place + 1], seen[(place + 1) % 2])
        yield memory[place % 2][: len(chunk)]


def widen(tokens: Chunk, wide: np.ndarray) -> None:
    """Writes finite tokens (N, D) of images into float32 (at least as many, N, D), exactly."""
    for narrow, into in zip(tokens, wide, strict=False):
        if narrow.dtype != np.float16:
            np.copyto(into, narrow)
            continue
        # In half of the time of NumPy's own conversion, a third of that of MLX's on x86. Sign,
        # exponent and fraction go to where float32 has them, then the exponent gets its own bias.
        bits = into.view(np.int32)
        np.copyto(bits, narrow.view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _NOT_REPEATED_SIGN, out=bits)
        np.multiply(into, np.float32(2.0**112), out=into)


_IMAGES_IN_PART = 128  # on a CPU; on a GPU a part is a chunk
_CPU_CHUNK, _GPU_CHUNK = 6 << 20, 1 << 30  # bytes of a chunk's tokens in float32
_GPU_SHARE = 32  # of a GPU's memory: a chunk takes one part at most, and what is made of it several


@dataclass(eq=False)
class BatchPart:
    """Some images of a batch: their places in it, their chunks, and the core that computes them.

    Work on them belongs into `stream`.
    """

    rows: np.ndarray
    chunks: list[Chunk]
    core: int
    stream: mx.Stream
    tokens: Iterator[mx.array] = iter(())  # of the core's chunks, float32, by turns

    def places(self, number: int) -> slice:
        """Where in the part the images of a chunk are."""
        start = sum(map(len, self.chunks[:number]))
        return slice(start, start + len(self.chunks[number]))


@contextmanager
def rounds(tokens: Sequence[np.ndarray], times: int = 1) -> Iterator[list[list[BatchPart]]]:
    """Divides images, (N, D) each, into parts, in lists of those to do together, one for each core.

    The chunks are to be gone over in order, those of a part so many times before the next part.
    """
    # One thread widens tokens for all cores: several would wait for each other's interpreter lock.
    with cpu_streams(BLAS.threads) as streams, ThreadPoolExecutor(1) as pool:
        parts = _parts(tokens, streams)
        for core in range(len(streams)):
            mine = [part for part in parts if part.core == core]
            plan = [chunk for part in mine for chunk in part.chunks * times]
            shared = widened(plan, pool)
            for part in mine:
                part.tokens = shared
        yield [parts[at : at + len(streams)] for at in range(0, len(parts), len(streams))]


def over_chunks(
    parts: Sequence[BatchPart], compute: Callable[[BatchPart, slice, mx.array], Any]
) -> Iterator[tuple[BatchPart, slice, Any]]:
    """What `compute` makes of each chunk of parts that are done together, evaluated on a CPU.

    It is given the part, the places of the chunk's images in it, and their tokens (b, N, D), which
    are float32.
    """
    for number in range(max(len(part.chunks) for part in parts)):
        here, computed = [part for part in parts if number < len(part.chunks)], []
        for part in here:
            with mx.stream(part.stream):
                computed.append(compute(part, part.places(number), next(part.tokens)))
        evaluate_on_cpu(computed)
        for part, each in zip(here, computed, strict=True):
            yield part, part.places(number), each


def _parts(tokens: Sequence[np.ndarray], streams: Sequence[mx.Stream]) -> list[BatchPart]:
    """Of nearly one size, as many for each stream."""
    B, (N, D) = len(tokens), tokens[0].shape
    chunk = min(_GPU_CHUNK, machine_bytes() // _GPU_SHARE) if on_gpu() else _CPU_CHUNK
    size = max(1, chunk // (4 * N * D))
    at_once = (size if on_gpu() else _IMAGES_IN_PART) * len(streams)
    count = min(B, -(-B // at_once) * len(streams))
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(B), count)):
        inside = np.array_split(rows, -(-len(rows) // size))
        chunks: list[Chunk] = [[tokens[row] for row in each] for each in inside]
        core = number % len(streams)
        parts.append(BatchPart(rows, chunks, core, streams[core]))
    return parts


class ImageMoments:
    """Those of `count` images with tokens (N, D), each measured when it is first asked for.

    They take 8 bytes x D an image.
    """

    def __init__(self, count: int, shape: tuple[int, int]):
        self._tokens, D = shape
        self._measured = np.zeros(count, bool)
        self._values = np.empty((2, count, D), np.float32)

    def of(self, rows: np.ndarray, tokens: Sequence[np.ndarray]) -> Moments:
        """The moments of a batch: images `rows`, whose tokens are (N, D) each."""
        new = np.flatnonzero(~self._measured[rows])
        if len(new):
            self._values[:, rows[new]] = measured([tokens[int(place)] for place in new])
            self._measured[rows] = True
        means, variances = (mx.array(each) for each in self._values[:, rows])
        mean = means.mean(axis=0)
        apart = means - mean
        # Those of equally many tokens each (Chan et al. 1979), without sums of squares that cancel.
        moments = Moments(len(rows) * self._tokens, mean, (variances + apart * apart).mean(axis=0))
        evaluate_on_cpu(moments.mean, moments.variance)
        return moments


def measured(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Means and biased variances, float32 (2, B, D), of images with tokens (N, D) each."""
    values = np.empty((2, len(tokens), tokens[0].shape[1]), np.float32)
    with rounds(tokens) as work:
        for together in work:
            for part, places, moments in over_chunks(together, _of_chunk):
                values[:, part.rows[places]] = np.array(moments)
    return values


def _of_chunk(part: BatchPart, places: slice, tokens: mx.array) -> mx.array:
    mean = tokens.mean(axis=1, keepdims=True)
    apart = tokens - mean
    return mx.stack([mean[:, 0], (apart * apart).mean(axis=1)])
