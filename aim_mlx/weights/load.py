"""Tensors of a checked checkpoint as MLX arrays under our names."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import numpy as np

from aim_mlx.backend import mx, nn, on_gpu
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.checkpoint import DTYPE_NAMES, STORED, Checkpoint
from aim_mlx.weights.layouts import Rule, to_ours
from aim_mlx.weights.quantize import Quantization, multiplies_packed, quantize_modules, unpack
from aim_mlx.weights.safetensors_file import TensorReader, all_finite
from aim_mlx.weights.sizes import expected_shapes
from aim_mlx.weights.strict_json import at, show

_KINDS = {dtype: kind for kind, dtype in STORED.items()}


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
) -> None:
    """Replaces every parameter of a network, none is left as it was made; raises as load_weights.

    Quantised weights stay packed on a GPU that multiplies them so. On the CPU, where a packed
    product takes 38 times as long, they are unpacked once. `packed` overrides this.
    """
    how, names = checkpoint.quantization, checkpoint.quantized
    if how is not None and packed is None:
        shapes = expected_shapes(checkpoint.config)
        packed = on_gpu() and multiplies_packed([shapes[n] for n in names], how, dtype)
    if how is not None and packed:
        quantize_modules(model, names, how)
    weights = iter_weights(checkpoint, dtype, packed=bool(packed))
    model.load_weights(list(weights), strict=True)
    model.eval()


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
    with ExitStack() as stack:
        readers: dict[str, TensorReader] = {}
        for file in checkpoint.files:
            reader = stack.enter_context(TensorReader(file))
            readers |= dict.fromkeys(file.tensors, reader)
        for step in checkpoint.steps():
            if not step.ours.startswith(prefix):
                continue
            if how is not None and step.ours in quantized:
                yield from _load_packed(step, readers, dtype, how, packed)
            else:
                yield step.ours, _load_step(step, readers, dtype)


def _load_step(step: Rule, readers: Mapping[str, TensorReader], dtype: mx.Dtype | None) -> mx.array:
    """One of our tensors; whatever was read for it is released on return."""
    kinds = {readers[name].checked.tensors[name].dtype for name in step.sources}
    if len(kinds) > 1:
        raise CheckpointError(
            f"tensors {', '.join(map(show, step.sources))} make one tensor: expected one dtype, "
            f"got {', '.join(sorted(kinds))}"
        )
    array = to_ours(step, [_read(readers[name], name) for name in step.sources])
    exact = _as_mx(array, kinds.pop())
    del array
    return exact if dtype is None else _cast(step, exact, dtype)


def _load_packed(
    step: Rule,
    readers: Mapping[str, TensorReader],
    dtype: mx.Dtype | None,
    how: Quantization,
    packed: bool,
) -> Iterator[tuple[str, mx.array]]:
    """One quantised weight: unpacked, or as its parts once it is known to unpack to numbers."""
    parts = []
    for name in step.sources:
        reader = readers[name]
        parts.append(_as_mx(_read(reader, name), reader.checked.tensors[name].dtype))
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


def _read(reader: TensorReader, name: str) -> np.ndarray:
    """A tensor as stored; raises CheckpointError for weights that are not finite."""
    array, kind = reader.read(name), reader.checked.tensors[name].dtype
    if kind in DTYPE_NAMES and not all_finite(array, kind):
        raise CheckpointError(
            f"tensor {show(name)} of {at(reader.checked.path)} holds NaN or infinity: expected "
            f"finite {DTYPE_NAMES[kind]} weights; download it again"
        )
    return array


def _as_mx(array: np.ndarray, kind: str) -> mx.array:
    """A stored tensor as MLX has it, bfloat16 from its bits."""
    exact = mx.array(array)
    exact = exact.view(mx.bfloat16) if kind == "BF16" else exact
    mx.eval(exact)
    return exact


def _cast(step: Rule, exact: mx.array, dtype: mx.Dtype) -> mx.array:
    """Raises CheckpointError for a value too large for the dtype that the user asked for."""
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
