"""Tensors of a checked checkpoint as MLX arrays under our names."""

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np

from aim_mlx.backend import machine_bytes, mx, nn, on_gpu
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models.visual_tokens import VisualTokenizer, VisualTokensConfig
from aim_mlx.weights.checkpoint import STORED, Checkpoint
from aim_mlx.weights.quantize import Quantization, multiplies_packed, quantize_modules, unpack
from aim_mlx.weights.reading import read_ahead
from aim_mlx.weights.rules import Rule
from aim_mlx.weights.safetensors_file import all_finite
from aim_mlx.weights.sizes import expected_shapes
from aim_mlx.weights.strict_json import show
from aim_mlx.weights.visual_tokens import visual_layout

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
) -> Generator[tuple[str, mx.array], None, None]:
    """The pairs of `load_weights` one at a time, only of names that start with `prefix`.

    `dtype` None keeps the stored one, of a quantised weight that of its scales or float32.
    """
    how = checkpoint.quantization
    quantized = set(checkpoint.quantized)
    steps = [step for step in checkpoint.steps() if step.ours.startswith(prefix)]
    wanted: list[tuple[Rule, mx.Dtype | None]] = []
    for step in steps:
        if step.ours in quantized:
            wanted += [(Rule(name, (name,)), None) for name in step.sources]
        else:
            wanted.append((step, dtype))
    with closing(read_ahead(wanted, checkpoint.files)) as arrays:
        for step in steps:
            if how is not None and step.ours in quantized:
                parts = [next(arrays) for _ in step.sources]
                yield from _unpacked(step, parts, dtype, how, packed)
            else:
                yield step.ours, next(arrays)


def load_visual_tokens(
    checkpoint: Checkpoint, config: VisualTokensConfig, dtype: mx.Dtype
) -> VisualTokenizer:
    """Ovis2's head and embedding table, in `dtype`; raises as load_weights."""
    tokenizer, rules = VisualTokenizer(config), visual_layout(checkpoint.tower).rules
    wanted = [(rule, dtype) for rule in rules]
    with closing(read_ahead(wanted, checkpoint.files)) as arrays:
        weights = [(rule.ours, array) for rule, array in zip(rules, arrays, strict=True)]
    tokenizer.load_weights(weights, strict=True)
    tokenizer.eval()
    return tokenizer


def _unpacked(
    step: Rule, parts: list[mx.array], dtype: mx.Dtype | None, how: Quantization, packed: bool
) -> Iterator[tuple[str, mx.array]]:
    """One quantised weight: unpacked, or as its parts once it is known to unpack to numbers."""
    scales = parts[1].dtype
    target = dtype or (mx.float32 if scales == mx.uint8 else scales)
    if packed and scales != mx.uint8:  # activations would take the dtype of wider scales
        parts[1:] = [part.astype(target) for part in parts[1:]]
    full = unpack(parts, how, target)
    mx.eval(parts, full)
    # The bits are compared in NumPy: mx.isfinite of 16-bit values takes 30 to 80 times as long.
    bits = full.view(mx.uint32 if target == mx.float32 else mx.uint16)
    if not all_finite(np.asarray(bits), _KINDS[target]):
        raise CheckpointError(
            f"tensor {show(step.ours)} does not unpack to finite weights: download it again, or "
            "load it as float32"
        )
    if packed:
        yield from zip(step.sources, parts, strict=True)
    else:
        yield step.ours, full
