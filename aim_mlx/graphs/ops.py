"""The operations that graphs are made of, and MLX's version of them."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from aim_mlx.backend import DTYPES, mx, nn

T = TypeVar("T")


class Ops(Protocol[T]):
    """What a format must be able to write down, with NumPy's meaning; T is its kind of tensor.

    A dtype is "float16" or "float32". Both operands of an operation have the same, and so has the
    result. No tensor has more than four axes.
    """

    def constant(self, values: np.ndarray, name: str = "") -> T:
        """Numbers in their own dtype; those of one `name` are equal in all functions of a file."""
        ...

    def cast(self, x: T, dtype: str) -> T: ...

    def reshape(self, x: T, shape: Sequence[int]) -> T: ...

    def transpose(self, x: T, axes: Sequence[int]) -> T: ...

    def slice(self, x: T, axis: int, start: int, stop: int) -> T: ...

    def rows(self, table: np.ndarray, ids: T, name: str) -> T:
        """Rows (..., D) of a constant table (n, D) by int32 ids (...)."""
        ...

    def linear(self, x: T, weight: np.ndarray, name: str) -> T:
        """x (..., D) times the transpose of a constant weight (out, D) -> (..., out)."""
        ...

    def matmul(self, a: T, b: T) -> T: ...

    def add(self, a: T, b: T) -> T: ...

    def multiply(self, a: T, b: T) -> T: ...

    def mean(self, x: T, axis: int) -> T:
        """The axis stays, of length one."""
        ...

    def largest(self, x: T, axis: int) -> T:
        """The axis stays, of length one."""
        ...

    def rsqrt(self, x: T) -> T: ...

    def softmax(self, x: T) -> T:
        """Over the last axis."""
        ...

    def sigmoid(self, x: T) -> T: ...

    def gelu(self, x: T) -> T:
        """The exact one."""
        ...

    def equals(self, x: T, number: int) -> T:
        """1 where x has this value, 0 elsewhere, in float32; x may be of any dtype."""
        ...


class MlxOps:
    """Ops on MLX's arrays. Constants of one name are one array, however many functions use it."""

    def __init__(self):
        self._named: dict[str, mx.array] = {}

    def constant(self, values: np.ndarray, name: str = "") -> mx.array:
        if name not in self._named:
            array = mx.array(values)
            if not name:
                return array
            mx.eval(array)
            self._named[name] = array
        return self._named[name]

    def cast(self, x: mx.array, dtype: str) -> mx.array:
        return x.astype(DTYPES[dtype])

    def reshape(self, x: mx.array, shape: Sequence[int]) -> mx.array:
        return x.reshape(shape)

    def transpose(self, x: mx.array, axes: Sequence[int]) -> mx.array:
        return x.transpose(axes)

    def slice(self, x: mx.array, axis: int, start: int, stop: int) -> mx.array:
        return x[(*[slice(None)] * axis, slice(start, stop))]

    def rows(self, table: np.ndarray, ids: mx.array, name: str) -> mx.array:
        return self.constant(table, name)[ids]

    def linear(self, x: mx.array, weight: np.ndarray, name: str) -> mx.array:
        return x @ self.constant(weight, name).T

    def matmul(self, a: mx.array, b: mx.array) -> mx.array:
        return a @ b

    def add(self, a: mx.array, b: mx.array) -> mx.array:
        return a + b

    def multiply(self, a: mx.array, b: mx.array) -> mx.array:
        return a * b

    def mean(self, x: mx.array, axis: int) -> mx.array:
        return x.mean(axis=axis, keepdims=True)

    def largest(self, x: mx.array, axis: int) -> mx.array:
        return x.max(axis=axis, keepdims=True)

    def rsqrt(self, x: mx.array) -> mx.array:
        return mx.rsqrt(x)

    def softmax(self, x: mx.array) -> mx.array:
        return mx.softmax(x, axis=-1)

    def sigmoid(self, x: mx.array) -> mx.array:
        return mx.sigmoid(x)

    def gelu(self, x: mx.array) -> mx.array:
        return nn.gelu(x)

    def equals(self, x: mx.array, number: int) -> mx.array:
        return (x == number).astype(mx.float32)
