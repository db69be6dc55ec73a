"""A safetensors file written tensor by tensor, so that a model larger than memory can be saved."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np

from aim_mlx.weights.safetensors_file import NUMPY_DTYPES


class SafetensorsWriter:
    """Writes the header at once, from names, dtypes and shapes, then tensors in any order.

    `specs` maps names to (dtype as in safetensors, shape); `metadata` is stored as it is.
    """

    def __init__(
        self,
        file: BinaryIO,
        specs: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
    ):
        self._file = file
        self._specs = dict(specs)
        self._missing = set(specs)
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        # Wide types first, so that every tensor starts at a multiple of its item size.
        for name, (dtype, shape) in sorted(specs.items(), key=lambda i: -_itemsize(i[1][0])):
            self._offsets[name] = end
            end += math.prod(shape) * _itemsize(dtype)
            offsets = [self._offsets[name], end]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._start = 8 + len(text)

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor, bfloat16 as its uint16 bits; ValueError if it is not as stated."""
        dtype, shape = self._start_of(name)
        if array.shape != shape or array.dtype != np.dtype(NUMPY_DTYPES[dtype]):
            raise ValueError(
                f"tensor {name}: expected {dtype} {shape}, got {array.dtype} {array.shape}"
            )
        self._write(array)
        self._missing.discard(name)

    def write_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
        """Writes one tensor by parts of its first axis; ValueError if they do not make it up."""
        dtype, shape = self._start_of(name)
        rows = 0
        for part in parts:
            if part.shape[1:] != shape[1:] or part.dtype != np.dtype(NUMPY_DTYPES[dtype]):
                raise ValueError(
                    f"tensor {name}: expected parts of {dtype} {shape}, got {part.dtype} "
                    f"{part.shape}"
                )
            self._write(part)
            rows += len(part)
        if rows != shape[0]:
            raise ValueError(f"tensor {name}: expected {shape[0]} rows, got {rows}")
        self._missing.discard(name)

    def _start_of(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Goes to where a tensor begins; its dtype and shape."""
        if name not in self._missing:
            raise ValueError(f"tensor {name} is written twice")
        self._file.seek(self._start + self._offsets[name])
        return self._specs[name]

    def _write(self, array: np.ndarray) -> None:
        # A view of the bytes of a one-dimensional array: no copy if it is contiguous already.
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Raises ValueError unless every tensor was written."""
        if self._missing:
            raise ValueError(f"tensor {sorted(self._missing)[0]} was never written")


def _itemsize(dtype: str) -> int:
    return np.dtype(NUMPY_DTYPES[dtype]).itemsize
