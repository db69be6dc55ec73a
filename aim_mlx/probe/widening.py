"""Tokens of some images after the others, float16 to float32, the next while the last are used."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import numpy as np

from aim_mlx.backend import mx, on_gpu

Chunk = Sequence[np.ndarray]  # the tokens of a few images as they are stored, (N, D) each

_NOT_REPEATED_SIGN = ~0x70000000  # three of the bits that widening to 32 filled with the sign


def widened(plan: Sequence[Chunk], pool: Executor) -> Iterator[mx.array]:
    """The chunks of a plan in turn, each float32 (b, N, D), to be done with before the next."""
    if on_gpu():
        return (mx.array(np.stack(chunk)).astype(mx.float32) for chunk in plan)
    return _one_ahead(plan, pool)


def _one_ahead(plan: Sequence[Chunk], pool: Executor) -> Iterator[mx.array]:
    """By turns in one of two pieces of memory: used anew, they stay in the processor's cache."""
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
