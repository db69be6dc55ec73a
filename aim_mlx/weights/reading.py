"""Tensors of checked files as MLX arrays: read and checked by several threads, a few ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice

import numpy as np

from aim_mlx.backend import device_name, mx
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.checkpoint import DTYPE_NAMES, STORED
from aim_mlx.weights.rules import Rule, parts_of, shape_in_ours
from aim_mlx.weights.safetensors_file import (
    NUMPY_DTYPES,
    CheckedFile,
    TensorReader,
    all_below,
    all_finite,
)
from aim_mlx.weights.strict_json import at, show

_AHEAD = 4  # tensors
# What tensors are read as, the last two those of packed weights; bfloat16 as bits, as by NumPy.
_AS_READ = STORED | {"BF16": mx.uint16, "U32": mx.uint32, "U8": mx.uint8}
# From a stored dtype to another: the bits of the smallest value that rounds to infinity.
_OVERFLOWS = {
    ("F32", "F16"): 0x477FF000,
    ("F32", "BF16"): 0x7F7F8000,
    ("BF16", "F16"): 0x4780,
}
_KINDS = {dtype: kind for kind, dtype in STORED.items()}


def read_ahead(
    wanted: Iterable[tuple[Rule, mx.Dtype | None]], files: Iterable[CheckedFile]
) -> Generator[mx.array, None, None]:
    """The tensors that rules make, each cast to a dtype or None as stored, evaluated.

    The next few are read while one is used. Raises CheckpointError for values that are not finite
    or would not be after the cast, for parts of two dtypes, and for a file that changed.
    """
    with ExitStack() as stack:
        readers: dict[str, TensorReader] = {}
        for file in files:
            readers |= dict.fromkeys(file.tensors, stack.enter_context(TensorReader(file)))
        pool = stack.enter_context(ThreadPoolExecutor(_AHEAD))
        started = (_start(rule, dtype, readers, pool) for rule, dtype in wanted)
        ahead = deque(islice(started, _AHEAD))
        while ahead:
            yield ahead.popleft()()
            ahead.extend(islice(started, 1))


def _start(
    rule: Rule, dtype: mx.Dtype | None, readers: Mapping[str, TensorReader], pool: Executor
) -> Callable[[], mx.array]:
    """Has threads read a tensor, none of which uses MLX; returns what waits for it."""
    infos = [readers[name].checked.tensors[name] for name in rule.sources]
    kinds = {info.dtype for info in infos}
    if len(kinds) > 1:
        raise CheckpointError(
            f"tensors {', '.join(map(show, rule.sources))} make one tensor: expected one dtype, "
            f"got {', '.join(sorted(kinds))}"
        )
    kind = kinds.pop()
    memory, view = _memory(shape_in_ours(rule, [info.shape for info in infos]), kind)
    target = kind if dtype is None else _KINDS[dtype]
    filled = [
        pool.submit(_fill, readers[name], name, part, target)
        for name, part in zip(rule.sources, parts_of(rule, view), strict=True)
    ]

    def finished() -> mx.array:
        for part in filled:
            part.result()
        array = mx.asarray(memory)
        array = array.view(mx.bfloat16) if kind == "BF16" else array
        array = array if dtype is None else array.astype(dtype)
        mx.eval(array)
        return array

    return finished


def _memory(shape: tuple[int, ...], kind: str) -> tuple[mx.array | np.ndarray, np.ndarray]:
    """Memory for a tensor and NumPy's view of it: MLX's own on the CPU and on Metal.

    On CUDA a view would move the array out of the GPU's memory for good.
    """
    if device_name() == "cuda":
        memory = np.empty(shape, NUMPY_DTYPES[kind])
        return memory, memory
    memory = mx.zeros(shape, _AS_READ[kind])
    return memory, np.asarray(memory)


def _fill(reader: TensorReader, name: str, place: np.ndarray, target: str) -> None:
    """Reads a tensor into its place and checks its values, as stored and as cast to `target`."""
    reader.read_into(name, place)
    kind = reader.checked.tensors[name].dtype
    overflow = _OVERFLOWS.get((kind, target))
    if kind not in DTYPE_NAMES or overflow and all_below(place, kind, overflow):
        return
    if not all_finite(place, kind):
        raise CheckpointError(
            f"tensor {show(name)} of {at(reader.checked.path)} holds NaN or infinity: expected "
            f"finite {DTYPE_NAMES[kind]} weights; download it again"
        )
    if overflow:
        raise CheckpointError(
            f"tensor {show(name)} overflows in {DTYPE_NAMES[target]}: expected finite weights "
            "after the cast; load it as float32 or bfloat16"
        )
