"""Quantised weights: which tensors, in which form, and back.

The products of the towers' trunks are quantised, 98 of 100 weights of the published models. Patch
embedding, positions, norms, token embeddings, and LiT's pool and projectors stay as they are: they
are small, and their errors reach the embedding undamped. So does a product whose input width is no
multiple of the group size, which no published model has.

The form is MLX's: `X.weight` packed into uint32, `X.scales`, and `X.biases` in the mode "affine".
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aim_mlx.backend import mx, nn
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.weights.strict_json import at, show

# mode -> the bits and the group sizes that MLX has kernels for; the first are the defaults.
MODES = {
    "affine": ((8, 6, 5, 4, 3, 2), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
}
_PRODUCT = re.compile(r"(?:\w+\.)?trunk\.blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[123])\.weight")

Specs = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype as in safetensors, shape


@dataclass(frozen=True)
class Quantization:
    """How weights are quantised: groups of `group_size` along a row share a scale.

    "affine" is linear between a group's extremes; "mxfp4" and "mxfp8" are the microscaling floats
    of the OCP specification. Raises UsageError with what the mode allows.
    """

    bits: int = 8
    group_size: int = 64
    mode: str = "affine"

    def __post_init__(self):
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise UsageError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r:.80}")
        for name, allowed in zip(("bits", "group_size"), MODES[self.mode], strict=True):
            value = getattr(self, name)
            if type(value) is not int or value not in allowed:
                choices = " or ".join(map(str, sorted(allowed)))
                raise UsageError(
                    f"{name} must be {choices} in the mode {self.mode}, got {value!r:.80}"
                )

    @classmethod
    def of(
        cls, mode: str = "affine", bits: int | None = None, group_size: int | None = None
    ) -> "Quantization":
        """A quantisation with the mode's own defaults where nothing is given."""
        defaults = MODES.get(mode, MODES["affine"])
        return cls(
            defaults[0][0] if bits is None else bits,
            defaults[1][0] if group_size is None else group_size,
            mode,
        )


def quantization_from_dict(path: Path, values: Any) -> Quantization:
    """A quantisation as config.json states it; raises CheckpointError."""
    if not isinstance(values, dict) or set(values) != {"bits", "group_size", "mode"}:
        raise CheckpointError(
            f"{at(path)}: quantization must have bits, group_size and mode, got {show(values)}"
        )
    try:
        return Quantization(**values)
    except UsageError as error:
        raise CheckpointError(f"{at(path)}: quantization: {error}") from error


def quantized_names(
    shapes: Mapping[str, tuple[int, ...]], quantization: Quantization | None
) -> list[str]:
    """Those of a model's weights, given by name and shape, that are quantised."""
    if quantization is None:
        return []
    group = quantization.group_size
    return [n for n, shape in shapes.items() if _PRODUCT.fullmatch(n) and shape[-1] % group == 0]


def packed_specs(name: str, shape: tuple[int, ...], how: Quantization, dtype: str) -> Specs:
    """The tensors that one weight (out, in) is stored as; `dtype` is that of affine scales."""
    rows, columns = shape
    groups = (rows, columns // how.group_size)
    specs: Specs = {name: ("U32", (rows, columns * how.bits // 32))}
    if how.mode == "affine":
        return specs | dict.fromkeys(packed_names(name, how)[1:], (dtype, groups))
    return specs | {packed_names(name, how)[1]: ("U8", groups)}


def packed_names(name: str, how: Quantization) -> tuple[str, ...]:
    """X.weight -> X.weight, X.scales, and X.biases in the mode that has them."""
    stem = name.removesuffix("weight")
    return (name, f"{stem}scales", f"{stem}biases")[: 3 if how.mode == "affine" else 2]


def pack(name: str, weight: mx.array, how: Quantization) -> dict[str, mx.array]:
    """A weight (out, in) as the tensors that hold it, scales in float32; computed."""
    parts = mx.quantize(
        weight.astype(mx.float32), group_size=how.group_size, bits=how.bits, mode=how.mode
    )
    mx.eval(parts)
    return dict(zip(packed_names(name, how), parts, strict=True))


def unpack(parts: Iterable[mx.array], how: Quantization, dtype: mx.Dtype) -> mx.array:
    """The weight (out, in) that packed tensors hold, computed in float32, then cast."""
    weight, scales, *biases = parts
    if how.mode == "affine":
        scales, biases = scales.astype(mx.float32), [biases[0].astype(mx.float32)]
    full = mx.dequantize(
        weight,
        scales,
        *(biases or [None]),
        group_size=how.group_size,
        bits=how.bits,
        mode=how.mode,
        dtype=mx.float32,
    )
    return full.astype(dtype)


def quantize_modules(model: nn.Module, names: Iterable[str], how: Quantization) -> None:
    """Turns the linear layers of these weights into quantised ones, still without their weights."""
    paths = {name.removesuffix(".weight") for name in names}
    nn.quantize(
        model,
        how.group_size,
        how.bits,
        mode=how.mode,
        class_predicate=lambda path, _: path in paths,
    )


def multiplies_packed(
    shapes: Iterable[tuple[int, ...]], how: Quantization, dtype: mx.Dtype
) -> bool:
    """Whether the device has kernels for packed products with weights (out, in) of these shapes.

    MLX's CUDA back end lacks some, which shows only when they are computed.
    """
    form: dict[str, Any] = {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
    try:
        for shape in set(shapes):
            parts = mx.quantize(mx.zeros(shape, dtype), **form)
            for tokens in (256, 257):  # kernels differ for whole tiles and for a rest
                x = mx.zeros((1, tokens, shape[1]), dtype)
                mx.eval(mx.quantized_matmul(x, *parts, transpose=True, **form))
    except RuntimeError:
        return False
    return True
