"""Tensors of a checked checkpoint as MLX arrays under our names."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice

import numpy as np

from aim_mlx.backend import device_name, machine_bytes, mx, nn, on_gpu
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models.visual_tokens import VisualTokenizer, VisualTokensConfig
from aim_mlx.weights.checkpoint import DTYPE_NAMES, STORED, Checkpoint
from aim_mlx.weights.layouts import Rule, parts_of, shape_in_ours
from aim_mlx.weights.quantize import Quantization, multiplies_packed, quantize_modules, unpack
from aim_mlx.weights.safetensors_file import NUMPY_DTYPES, TensorReader, all_finite
from aim_mlx.weights.sizes import expected_shapes
from aim_mlx.weights.strict_json import at, show
from aim_mlx.weights.visual_tokens import visual_layout

_KINDS = {dtype: kind for kind, dtype in STORED.items()}
# What tensors are read as, the last two those of packed weights; bfloat16 as bits, as by NumPy.
_AS_READ = STORED | {"BF16": mx.uint16, "U32": mx.uint32, "U8": mx.uint8}
_AHEAD = 4  # tensors


def load_weights(
    checkpoint: Checkpoint, dtype: mx.Dtype = mx.float32, packed: bool = False
) -> dict[str, mx.array]:
    """All tensors in our names and shapes, evaluated, cast to `dtype` one after another.

    Quantised weights are unpacked into `dtype`, or with `packed` kept as MLX's quantised layers
    have them. Memory peaks at the weights in `dtype` and a few copies of the largest tensor. Raises
    CheckpointError for values that are not finite, as stored or after the cast, and for a file that
    changed after it was checked.
    """
    return dict(iter_weights(checkpoint, dtype, packed=packed))


def load_into(
    model: nn.Module, checkpoint: Checkpoint, dtype: mx.Dtype, packed: bool | None = None
) -> bool:
    """Replaces every parameter of a network, none is left as it was made; raises as load_weights.

    Quantised weights are unpacked, as the products of an encoder take longer with packed ones, on
    the CPU 38 times as long. `packed` keeps them as they are; None does where they are too large.
    Returns whether they are packed; raises UsageError where weights or device cannot be.
    """
    how, names = checkpoint.quantization, checkpoint.quantized
    if packed is None:
        packed = too_large_unpacked(checkpoint, dtype, machine_bytes() * 2 // 5)
    elif packed and (how is None or not _multiplies_packed(checkpoint, dtype)):
        why = (
            "these weights are not quantised" if how is None else "this device cannot multiply them"
        )
        raise UsageError(f"packed= (--packed) is for quantised weights, and {why}: leave it out")
    if how is not None and packed:
        quantize_modules(model, names, how)
    weights = iter_weights(checkpoint, dtype, packed=packed)
    model.load_weights(list(weights), strict=True)
    model.eval()
    return packed


def too_large_unpacked(checkpoint: Checkpoint, dtype: mx.Dtype, room: int) -> bool:
    """Whether quantised weights are to stay packed on this device, to fit into so many bytes."""
    unpacked = checkpoint.parameters * dtype.size
    return unpacked > room and on_gpu() and _multiplies_packed(checkpoint, dtype)


def _multiplies_packed(checkpoint: Checkpoint, dtype: mx.Dtype) -> bool:
    if checkpoint.quantization is None:
        return False
    shapes = expected_shapes(checkpoint.config)
    products = [shapes[name] for name in checkpoint.quantized]
    return multiplies_packed(products, checkpoint.quantization, dtype)


def iter_weights(
    checkpoint: Checkpoint,
    dtype: mx.Dtype | None = mx.float32,
    prefix: str = "",
    packed: bool = False,
) -> Iterator[tuple[str, mx.array]]:
    """The pairs of `load_weights` one at a time, only of names that start with `prefix`.

    `dtype` None keeps the stored one, of a quantised weight that of its scales or float32.
    """
    how = checkpoint.quantization
    quantized = set(checkpoint.quantized)
    steps = [step for step in checkpoint.steps() if step.ours.startswith(prefix)]
    rules: list[Rule] = []
    for step in steps:
        parts = [Rule(name, (name,)) for name in step.sources]
        rules += parts if step.ours in quantized else [step]
    with closing(_read_ahead(rules, checkpoint)) as arrays:
        for step in steps:
            if how is not None and step.ours in quantized:
                parts = [next(arrays) for _ in step.sources]
                yield from _load_packed(step, parts, dtype, how, packed)
            else:
                yield step.ours, _cast(step, next(arrays), dtype)


def load_visual_tokens(
    checkpoint: Checkpoint, config: VisualTokensConfig, dtype: mx.Dtype
) -> VisualTokenizer:
    """Ovis2's head and embedding table, in `dtype`; raises as load_weights."""
    tokenizer, rules = VisualTokenizer(config), visual_layout(checkpoint.tower).rules
    with closing(_read_ahead(rules, checkpoint)) as arrays:
        weights = [(rule.ours, _cast(rule, next(arrays), dtype)) for rule in rules]
    tokenizer.load_weights(weights, strict=True)
    tokenizer.eval()
    return tokenizer


def _read_ahead(rules: Iterable[Rule], checkpoint: Checkpoint) -> Generator[mx.array, None, None]:
    """The tensors that the rules make, as stored; the next few are read while one is used."""
    with ExitStack() as stack:
        readers: dict[str, TensorReader] = {}
        for file in checkpoint.files:
            reader = stack.enter_context(TensorReader(file))
            readers |= dict.fromkeys(file.tensors, reader)
        pool = stack.enter_context(ThreadPoolExecutor(_AHEAD))
        started = (_start(rule, readers, pool) for rule in rules)
        ahead = deque(islice(started, _AHEAD))
        while ahead:
            yield _finished(*ahead.popleft())
            ahead.extend(islice(started, 1))


def _start(
    rule: Rule, readers: Mapping[str, TensorReader], pool: Executor
) -> tuple[mx.array | np.ndarray, str, list[Future[None]]]:
    """Memory for one tensor, its stored dtype, and the readings that fill it.

    The threads that read never use MLX. Where MLX computes on the CPU or Metal the memory is its
    own; on CUDA, NumPy's view would move an array out of the GPU's memory for good.
    """
    infos = [readers[name].checked.tensors[name] for name in rule.sources]
    kinds = {info.dtype for info in infos}
    if len(kinds) > 1:
        raise CheckpointError(
            f"tensors {', '.join(map(show, rule.sources))} make one tensor: expected one dtype, "
            f"got {', '.join(sorted(kinds))}"
        )
    kind = kinds.pop()
    shape = shape_in_ours(rule, [info.shape for info in infos])
    if device_name() == "cuda":
        memory = view = np.empty(shape, NUMPY_DTYPES[kind])
    else:
        memory = mx.zeros(shape, _AS_READ[kind])
        view = np.asarray(memory)
    places = zip(rule.sources, parts_of(rule, view), strict=True)
    return memory, kind, [pool.submit(_fill, readers[name], name, part) for name, part in places]


def _finished(memory: mx.array | np.ndarray, kind: str, filled: list[Future[None]]) -> mx.array:
    """A tensor that has been read, bfloat16 from its bits."""
    for part in filled:
        part.result()
    exact = mx.asarray(memory)
    exact = exact.view(mx.bfloat16) if kind == "BF16" else exact
    mx.eval(exact)
    return exact


def _fill(reader: TensorReader, name: str, place: np.ndarray) -> None:
    """Reads a tensor into its place; raises CheckpointError for weights that are not finite."""
    reader.read_into(name, place)
    kind = reader.checked.tensors[name].dtype
    if kind in DTYPE_NAMES and not all_finite(place, kind):
        raise CheckpointError(
            f"tensor {show(name)} of {at(reader.checked.path)} holds NaN or infinity: expected "
            f"finite {DTYPE_NAMES[kind]} weights; download it again"
        )


def _load_packed(
    step: Rule, parts: list[mx.array], dtype: mx.Dtype | None, how: Quantization, packed: bool
) -> Iterator[tuple[str, mx.array]]:
    """One quantised weight: unpacked, or as its parts once it is known to unpack to numbers."""
    scales = parts[1].dtype
    target = dtype or (mx.float32 if scales == mx.uint8 else scales)
    if packed and scales != mx.uint8:  # activations would take the dtype of wider scales
        parts[1:] = [_cast(step, part, target) for part in parts[1:]]
    full = unpack(parts, how, target)
    mx.eval(full)
    if not _is_finite(full):
        raise CheckpointError(
            f"tensor {show(step.ours)} does not unpack to finite weights: download it again, or "
            "load it as float32"
        )
    if packed:
        yield from zip(step.sources, parts, strict=True)
    else:
        yield step.ours, full


def _cast(step: Rule, exact: mx.array, dtype: mx.Dtype | None) -> mx.array:
    """Raises CheckpointError for a value too large for the dtype that the user asked for."""
    if dtype is None:
        return exact
    cast = exact.astype(dtype)
    mx.eval(cast)
    may_overflow = dtype != mx.float32 and exact.dtype not in (dtype, mx.float16)
    if may_overflow and not _is_finite(cast):
        name = DTYPE_NAMES[_KINDS[dtype]]
        raise CheckpointError(
            f"tensor {show(step.sources[0])} overflows in {name}: expected finite weights after "
            "the cast; load it as float32 or bfloat16"
        )
    return cast


def _is_finite(array: mx.array) -> bool:
    # The bits are compared in numpy: mx.isfinite of 16-bit values takes 30 to 80 times as long.
    bits = array.view(mx.uint32 if array.dtype == mx.float32 else mx.uint16)
    return all_finite(np.asarray(bits), _KINDS[array.dtype])
