"""A batch of tokens divided among the cores, one lane each, and there into parts and chunks."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from aim_mlx.backend import BLAS, cpu_streams, mx, on_gpu
from aim_mlx.probe.widening import Chunk, widened

_IMAGES_IN_PART = 128
_CPU_CHUNK, _GPU_CHUNK = 6 << 20, 256 << 20  # bytes of a chunk's tokens in float32


@dataclass(eq=False)
class Part:
    """Some images of a batch: their places in it, their chunks, and the lane that they are in.

    Work on them belongs into `stream`.
    """

    rows: np.ndarray
    chunks: list[Chunk]
    lane: int
    stream: mx.Stream
    tokens: Iterator[mx.array] = iter(())  # of the lane's chunks, float32, by turns

    def places(self, number: int) -> slice:
        """Where in the part the images of a chunk are."""
        start = sum(map(len, self.chunks[:number]))
        return slice(start, start + len(self.chunks[number]))


@contextmanager
def rounds(tokens: Sequence[np.ndarray], times: int = 1) -> Iterator[list[list[Part]]]:
    """Divides images, (N, D) each, into parts, in lists of those to do together, one for each lane.

    The chunks are to be gone over in order, those of a part so many times before the next part.
    """
    # One thread widens tokens for all lanes: several would wait for each other's interpreter lock.
    with cpu_streams(BLAS.threads) as streams, ThreadPoolExecutor(1) as pool:
        parts = _parts(tokens, streams)
        for lane in range(len(streams)):
            mine = [part for part in parts if part.lane == lane]
            plan = [chunk for part in mine for chunk in part.chunks * times]
            shared = widened(plan, pool)
            for part in mine:
                part.tokens = shared
        yield [parts[at : at + len(streams)] for at in range(0, len(parts), len(streams))]


def over_chunks(
    parts: Sequence[Part], compute: Callable[[Part, slice, mx.array], Any]
) -> Iterator[tuple[Part, slice, Any]]:
    """What `compute` makes of each chunk of parts that are done together, evaluated.

    It is given the part, the places of the chunk's images in it, and their tokens (b, N, D), which
    are float32.
    """
    for number in range(max(len(part.chunks) for part in parts)):
        here, found = [part for part in parts if number < len(part.chunks)], []
        for part in here:
            with mx.stream(part.stream):
                found.append(compute(part, part.places(number), next(part.tokens)))
        mx.eval(found)
        for part, each in zip(here, found, strict=True):
            yield part, part.places(number), each


def _parts(tokens: Sequence[np.ndarray], streams: Sequence[mx.Stream]) -> list[Part]:
    """Of nearly one size, as many for each stream."""
    B, (N, D) = len(tokens), tokens[0].shape
    count = min(B, -(-B // (_IMAGES_IN_PART * len(streams))) * len(streams))
    size = max(1, (_GPU_CHUNK if on_gpu() else _CPU_CHUNK) // (4 * N * D))
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(B), count)):
        inside = np.array_split(rows, -(-len(rows) // size))
        chunks: list[Chunk] = [[tokens[row] for row in each] for each in inside]
        lane = number % len(streams)
        parts.append(Part(rows, chunks, lane, streams[lane]))
    return parts
