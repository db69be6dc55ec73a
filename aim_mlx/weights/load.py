"""Tensors of a checked checkpoint as MLX arrays under our names."""

from contextlib import ExitStack

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.finite import all_finite
from aim_mlx.weights.mapping import Step, to_ours
from aim_mlx.weights.opening import DTYPE_NAMES, Checkpoint
from aim_mlx.weights.safety import CheckedFile, TensorReader
from aim_mlx.weights.strict_json import at, show

_Owner = tuple[CheckedFile, TensorReader]


def load_weights(checkpoint: Checkpoint, dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    """All tensors in our names and shapes, evaluated, cast to `dtype` one after another.

    Memory peaks at the weights in `dtype` and a few copies of the largest tensor. Raises
    CheckpointError for values that are not finite, as stored or after the cast, and for a file that
    changed after it was checked.
    """
    with ExitStack() as stack:
        owners: dict[str, _Owner] = {}
        for file in checkpoint.files:
            reader = stack.enter_context(TensorReader(file))
            owners |= dict.fromkeys(file.tensors, (file, reader))
        return {step.ours: _load_step(step, owners, dtype) for step in checkpoint.steps()}


def _load_step(step: Step, owners: dict[str, _Owner], dtype: mx.Dtype) -> mx.array:
    """One of our tensors; whatever was read for it is released on return."""
    stored = {owners[name][0].tensors[name].dtype for name in step.sources}
    if len(stored) > 1:
        raise CheckpointError(
            f"tensors {', '.join(map(show, step.sources))} make one tensor: expected one dtype, "
            f"got {', '.join(sorted(stored))}"
        )
    kind = stored.pop()
    array = to_ours(step, [_read_finite(name, kind, *owners[name]) for name in step.sources])
    exact = mx.array(array)
    del array
    if kind == "BF16":
        exact = exact.view(mx.bfloat16)
    cast = exact.astype(dtype)
    mx.eval(cast)
    if dtype != mx.float32 and exact.dtype not in (dtype, mx.float16):  # others cannot overflow
        _check_cast(step, cast)
    return cast


def _read_finite(name: str, kind: str, file: CheckedFile, reader: TensorReader) -> np.ndarray:
    array = reader.read(name)
    if not all_finite(array, kind):
        raise CheckpointError(
            f"tensor {show(name)} of {at(file.path)} holds NaN or infinity: expected finite "
            f"{DTYPE_NAMES[kind]} weights; download it again"
        )
    return array


def _check_cast(step: Step, cast: mx.array) -> None:
    """Raises CheckpointError for a value too large for the dtype that the user asked for."""
    # The bits are compared in numpy: mx.isfinite of 16-bit values takes 30 to 80 times as long.
    stored = "BF16" if cast.dtype == mx.bfloat16 else "F16"
    if not all_finite(np.asarray(cast.view(mx.uint16)), stored):
        raise CheckpointError(
            f"tensor {show(step.sources[0])} overflows in {DTYPE_NAMES[stored]}: expected finite "
            "weights after the cast; load it as float32 or bfloat16"
        )
