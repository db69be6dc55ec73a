"""The operations of a Core ML program, and the 8-bit weights of its products."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.graphs.ops import MlxOps

IOS16, IOS18 = 7, 9  # versions of the specification
_TYPES = {"float16": "fp16", "float32": "fp32"}


class MilOps:
    """Ops on the variables of one function of a Core ML program.

    `arrays` are the named constants of the whole program, which lie in the file once. With `bits`
    8 the float16 weights of products become int8.
    """

    def __init__(self, builder: Any, arrays: dict[str, np.ndarray], bits: int, version: int):
        self._mb = builder
        self._arrays = arrays
        self._bits = bits
        self._version = version
        self._variables: dict[str, Any] = {}

    def constant(self, values: np.ndarray, name: str = "") -> Any:
        if not name:
            return self._mb.const(val=values)
        if name not in self._variables:
            array = self._arrays.setdefault(name, values)
            variable = self._mb.const(val=array, name=name.replace(".", "_"))
            variable.op.weight_id = name
            self._variables[name] = variable
        return self._variables[name]

    def cast(self, x: Any, dtype: str) -> Any:
        wanted = _TYPES[dtype]
        return x if x.is_tensor_or_scalar_of(wanted) else self._mb.cast(x=x, dtype=wanted)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return self._mb.reshape(x=x, shape=shape)

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        return self._mb.transpose(x=x, perm=axes)

    def slice(self, x: Any, axis: int, start: int, stop: int) -> Any:
        begin, end = [0] * x.rank, list(x.shape)
        begin[axis], end[axis] = start, stop
        return self._mb.slice_by_index(x=x, begin=begin, end=end)

    def rows(self, table: np.ndarray, ids: Any, name: str) -> Any:
        return self._mb.gather(x=self._weight(table, name), indices=ids, axis=0)

    def linear(self, x: Any, weight: np.ndarray, name: str) -> Any:
        # Without one coremltools writes a bias of zeros for each product.
        zeros = np.zeros(len(weight), weight.dtype)
        bias = self.constant(zeros, f"zeros.{weight.dtype}.{len(weight)}")
        return self._mb.linear(x=x, weight=self._weight(weight, name), bias=bias)

    def matmul(self, a: Any, b: Any) -> Any:
        return self._mb.matmul(x=a, y=b)

    def add(self, a: Any, b: Any) -> Any:
        return self._mb.add(x=a, y=b)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._mb.mul(x=a, y=b)

    def mean(self, x: Any, axis: int) -> Any:
        return self._mb.reduce_mean(x=x, axes=[axis], keep_dims=True)

    def largest(self, x: Any, axis: int) -> Any:
        return self._mb.reduce_max(x=x, axes=[axis], keep_dims=True)

    def rsqrt(self, x: Any) -> Any:
        return self._mb.rsqrt(x=x)

    def softmax(self, x: Any) -> Any:
        return self._mb.softmax(x=x, axis=-1)

    def sigmoid(self, x: Any) -> Any:
        return self._mb.sigmoid(x=x)

    def gelu(self, x: Any) -> Any:
        return self._mb.gelu(x=x, mode="EXACT")

    def equals(self, x: Any, number: int) -> Any:
        kind = np.int32 if x.is_tensor_or_scalar_of("int32") else np.float32
        return self._mb.cast(x=self._mb.equal(x=x, y=kind(number)), dtype="fp32")

    def _weight(self, values: np.ndarray, name: str) -> Any:
        """A weight (out, D), packed if it is to be."""
        if self._bits != 8 or values.dtype != np.float16:
            return self.constant(values, name)
        if name not in self._arrays:
            self._arrays[name], self._arrays[f"{name}.scale"] = packed(values)
        data, scale = self._arrays[name], self._arrays[f"{name}.scale"]
        if self._version < IOS18:
            unpacked = self._mb.constexpr_affine_dequantize(
                quantized_data=data, scale=scale, zero_point=np.int8(0), axis=0
            )
            parts = unpacked.op.quantized_data, unpacked.op.scale
        else:
            unpacked = self._mb.constexpr_blockwise_shift_scale(data=data, scale=scale[:, None])
            parts = unpacked.op.data, unpacked.op.scale
        for part, part_name in zip(parts, (name, f"{name}.scale"), strict=True):
            part.op.weight_id = part_name
        return unpacked


class PackedOps(MlxOps):
    """MLX's operations, in float32, on the 8-bit weights of a package, of which it holds one."""

    def constant(self, values: np.ndarray, name: str = "") -> mx.array:
        return mx.array(values.astype(np.float32))

    def cast(self, x: mx.array, dtype: str) -> mx.array:
        return x.astype(mx.float32)

    def rows(self, table: np.ndarray, ids: mx.array, name: str) -> mx.array:
        rows = super().rows(_unpacked(table), ids, name)
        mx.eval(rows)
        return rows

    def linear(self, x: mx.array, weight: np.ndarray, name: str) -> mx.array:
        product = super().linear(x, _unpacked(weight), name)
        mx.eval(product)
        return product


def packed(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float16 weight (out, D) -> int8, and the scale of each row in float16.

    No scale is so small that float16 holds it with fewer digits.
    """
    largest = abs(weight).max(axis=1).astype(np.float32)
    scale = np.maximum(largest / 127, np.finfo(np.float16).smallest_normal).astype(np.float16)
    levels = np.round(weight / scale.astype(np.float32)[:, None])
    return np.clip(levels, -127, 127).astype(np.int8), scale


def _unpacked(weight: np.ndarray) -> np.ndarray:
    if weight.dtype != np.float16:
        return weight
    data, scale = packed(weight)
    return data * scale.astype(np.float32)[:, None]
