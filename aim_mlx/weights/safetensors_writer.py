"""Safetensors files, written tensor by tensor: a model may be larger than the memory."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy

from aim_mlx.errors import OutputError
from aim_mlx.files import disk_errors, publish
from aim_mlx.weights.safetensors_file import NUMPY_DTYPES
from aim_mlx.weights.strict_json import at

_STORED = {"float32": "F32", "uint64": "U64", "uint32": "U32", "int32": "I32"}


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
        self._check(name, array, array.shape)
        self.write_parts(name, [array])

    def write_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
        """Writes one tensor by parts of its first axis; ValueError if they do not make it up."""
        if name not in self._missing:
            raise ValueError(f"tensor {name} is written twice")
        shape = self._specs[name][1]
        self._file.seek(self._start + self._offsets[name])
        size = 0
        for part in parts:
            self._check(name, part, shape[:1] + part.shape[1:])
            # A view of the bytes of a one-dimensional array: no copy if it is contiguous already.
            self._file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            size += part.size
        if size != math.prod(shape):
            raise ValueError(f"tensor {name}: expected {math.prod(shape)} values, got {size}")
        self._missing.discard(name)

    def _check(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        dtype, expected = self._specs[name]
        if shape != expected or array.dtype != np.dtype(NUMPY_DTYPES[dtype]):
            raise ValueError(
                f"tensor {name}: expected {dtype} {expected}, got {array.dtype} {array.shape}"
            )

    def finish(self) -> None:
        """Raises ValueError unless every tensor was written."""
        if self._missing:
            raise ValueError(f"tensor {sorted(self._missing)[0]} was never written")


def _itemsize(dtype: str) -> int:
    return np.dtype(NUMPY_DTYPES[dtype]).itemsize


def write_arrays(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a whole file, with no copy of the arrays in memory."""
    specs = {name: (_STORED[str(array.dtype)], array.shape) for name, array in arrays.items()}
    writer = SafetensorsWriter(file, specs, metadata)
    for name, array in arrays.items():
        writer.write(name, array)
    writer.finish()


def write_described(
    folder: Path,
    names: tuple[str, str],
    arrays: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Writes arrays and a record with their digest as two files, `names`, of a folder.

    Raises OutputError where that cannot be done, or where one of them is there already.
    """
    data = safetensors.numpy.save(dict(arrays), {"format": record["format"]})
    values = {**record, "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(values, indent=1).encode() + b"\n"
    weights, described = (folder / name for name in names)
    if not overwrite and (os.path.lexists(weights) or os.path.lexists(described)):
        raise OutputError(f"{at(folder)} has {names[1]} already: choose another folder")
    with disk_errors("write into", folder, "choose another folder"):
        folder.mkdir(exist_ok=True)
        publish({weights: data, described: text})
