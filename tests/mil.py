"""A saved .mlpackage evaluated in numpy, operation by operation, where there is no Core ML.

All comes from the files: the program and the types that it states from the specification, weights
from weight.bin by their offsets. What an operation gives must have the type that is stated for it,
and an operation or an argument that is not known here is an error.

Core ML leaves open how sums of float16 are rounded. Here they are added in float32 and rounded
once, as on a GPU; with `narrow` also after every few summands, which is as bad as it gets.
"""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.coreml_imports import coremltools

FeatureTypes_pb2 = coremltools.proto.FeatureTypes_pb2
MIL_pb2 = coremltools.proto.MIL_pb2

# The names of MIL's types, and by which number weight.bin knows them.
_TYPES = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "BOOL": np.bool_,
}
_BLOB_TYPES = {1: np.float16, 2: np.float32, 3: np.uint8, 4: np.int8}
_BLOB_SENTINEL = 0xDEADBEEF
_AT_ONCE = 16  # summands added in float32 before `narrow` rounds

Operation = Callable[..., Any]
OPERATIONS: dict[str, Operation] = {}


def operation(function: Operation) -> Operation:
    OPERATIONS[function.__name__] = function
    return function


class Package:
    """A package on disk: `spec` is its specification."""

    def __init__(self, path: Path, narrow: bool = False):
        manifest = json.loads((path / "Manifest.json").read_text())
        items = manifest["itemInfoEntries"]
        root = path / "Data" / items[manifest["rootModelIdentifier"]]["path"]
        self.spec = coremltools.proto.Model_pb2.Model.FromString(root.read_bytes())
        weights = [each for each in items.values() if each["name"] == "weights"]
        assert len(weights) == 1 and len(items) == 2
        self._weights_folder = path / "Data" / weights[0]["path"]
        self._narrow = narrow

    @property
    def functions(self) -> dict[str, Any]:
        return dict(self.spec.mlProgram.functions)

    def block(self, function: str = "main") -> Any:
        """The operations of a function, in the only version it comes in."""
        program = self.spec.mlProgram.functions[function]
        (block,) = program.block_specializations.values()
        assert set(program.block_specializations) == {program.opset}
        return block

    def description(self, function: str = "main") -> Any:
        """What the package says of a function's inputs and outputs."""
        described = self.spec.description
        if not described.functions:
            return described
        return next(each for each in described.functions if each.name == function)

    def run(self, function: str = "main", **inputs: np.ndarray) -> dict[str, Any]:
        """The outputs by name, as an app gets them from inputs as an app gives them.

        A picture for an input of type image is uint8 (H, W, 3).
        """
        described = self.description(function)
        assert set(inputs) == {each.name for each in described.input}
        program = self.functions[function]
        values: dict[str, Any] = {}
        for feature in described.input:
            given = _as_given(feature, inputs[feature.name])
            (declared,) = [each for each in program.inputs if each.name == feature.name]
            _check(declared.type, given, feature.name)
            values[feature.name] = given
        block = self.block(function)
        for op in block.operations:
            self._evaluate(op, values)
        assert list(block.outputs) == [each.name for each in described.output]
        return {
            feature.name: _as_received(feature, values[feature.name], described)
            for feature in described.output
        }

    def _evaluate(self, op: Any, values: dict[str, Any]) -> None:
        arguments = {name: self.value(value) for name, value in op.attributes.items()}
        arguments.pop("name")
        for name, argument in op.inputs.items():
            given = [
                values[binding.name] if binding.name else self.value(binding.value)
                for binding in argument.arguments
            ]
            (arguments[name],) = given
        results = OPERATIONS[op.type](arguments, self._narrow)
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(op.outputs, results, strict=True):
            assert output.name not in values, f"{output.name} is computed twice"
            _check(output.type, result, output.name)
            values[output.name] = result

    def value(self, value: Any) -> Any:
        """A constant of the program, from the specification or from weight.bin."""
        if value.type.WhichOneof("type") == "listType":
            return [self.value(each) for each in value.immediateValue.list.values]
        name, shape = _type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value.blobFileValue, _TYPES[name]).reshape(shape)
        tensor = value.immediateValue.tensor
        content = getattr(tensor, tensor.WhichOneof("value")).values
        if name == "STRING":
            return content[0]
        if isinstance(content, bytes):
            return np.frombuffer(content, _TYPES[name]).reshape(shape)
        return np.array(content, _TYPES[name]).reshape(shape)

    def _blob(self, place: Any, dtype: type) -> np.ndarray:
        prefix, folder, name = place.fileName.split("/")
        assert (prefix, folder) == ("@model_path", "weights")
        content = np.memmap(self._weights_folder / name, mode="r")
        head = content[place.offset : place.offset + 24].tobytes()
        sentinel, kind, size, offset = struct.unpack("<IIQQ", head)
        assert sentinel == _BLOB_SENTINEL and _BLOB_TYPES[kind] == dtype
        return content[offset : offset + size].view(dtype)


def _type(value_type: Any) -> tuple[str, tuple[int, ...]]:
    tensor = value_type.tensorType
    assert tensor.rank == len(tensor.dimensions)
    shape = tuple(each.constant.size for each in tensor.dimensions)
    return MIL_pb2.DataType.Name(tensor.dataType), shape


def _check(declared: Any, value: Any, name: str) -> None:
    """That a value has the type which the program states for it."""
    if declared.WhichOneof("type") != "tensorType":
        assert isinstance(value, dict | list)
        return
    kind, shape = _type(declared)
    if kind == "STRING":
        assert isinstance(value, str)
        return
    assert value.dtype == _TYPES[kind], f"{name}: {value.dtype}, declared {kind}"
    assert value.shape == shape, f"{name}: {value.shape}, declared {shape}"


def _as_given(feature: Any, value: np.ndarray) -> np.ndarray:
    if feature.type.WhichOneof("Type") == "imageType":
        image = feature.type.imageType
        assert image.colorSpace == FeatureTypes_pb2.ImageFeatureType.ColorSpace.Value("RGB")
        assert value.dtype == np.uint8 and value.shape == (image.height, image.width, 3)
        return value.transpose(2, 0, 1)[None].astype(np.float32)
    _check_array(feature.type.multiArrayType, value)
    return value


def _as_received(feature: Any, value: Any, described: Any) -> Any:
    kind = feature.type.WhichOneof("Type")
    if kind == "multiArrayType":
        _check_array(feature.type.multiArrayType, value)
    elif kind == "dictionaryType":
        assert feature.name == described.predictedProbabilitiesName and isinstance(value, dict)
    else:
        assert kind == "stringType" and feature.name == described.predictedFeatureName
    return value


def _check_array(array: Any, value: np.ndarray) -> None:
    kind = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name(array.dataType)
    assert value.dtype == _TYPES[kind], f"{value.dtype}, described as {kind}"
    assert value.shape == tuple(array.shape)


def _product(a: np.ndarray, b: np.ndarray, narrow: bool) -> np.ndarray:
    """A matrix product, rounded as `narrow` says where its values are float16."""
    if a.dtype != np.float16:
        return a @ b
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    if not narrow:
        return (wide_a @ wide_b).astype(np.float16)
    total = np.zeros((), np.float16)
    for start in range(0, a.shape[-1], _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        total = total + (wide_a[..., some] @ wide_b[..., some, :]).astype(np.float16)
    return total


def _sum(x: np.ndarray, axes: Any, keep_dims: Any, narrow: bool) -> np.ndarray:
    axes = tuple(int(axis) for axis in axes)
    if not narrow or x.dtype != np.float16:
        return x.sum(axis=axes, keepdims=bool(keep_dims), dtype=np.float32).astype(x.dtype)
    (axis,) = axes
    parts = np.array_split(x, range(_AT_ONCE, x.shape[axis], _AT_ONCE), axis)
    total = np.zeros((), np.float16)
    for part in parts:
        total = total + part.sum(axis=axis, keepdims=bool(keep_dims), dtype=np.float32).astype(
            np.float16
        )
    return total


@operation
def const(given, narrow):
    return given["val"]


@operation
def constexpr_affine_dequantize(given, narrow):
    data, axis = given["quantized_data"], int(given["axis"])
    shape = [-1 if i == axis else 1 for i in range(data.ndim)]
    scale = given["scale"].reshape(shape if given["scale"].ndim else [])
    zero = given["zero_point"].reshape(shape if given["zero_point"].ndim else [])
    return ((data.astype(np.float32) - zero) * scale.astype(np.float32)).astype(scale.dtype)


@operation
def constexpr_blockwise_shift_scale(given, narrow):
    assert set(given) == {"data", "scale"}
    data, scale = given["data"], given["scale"]
    for axis, (whole, blocks) in enumerate(zip(data.shape, scale.shape, strict=True)):
        scale = np.repeat(scale, whole // blocks, axis)
    return (data.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype)


def elementwise(name: str, compute: Callable[..., np.ndarray]) -> None:
    """An operation whose arguments x, y ... broadcast and have one type."""

    def evaluate(given, narrow):
        assert len({value.dtype for value in given.values()}) == 1
        return compute(*(given[each] for each in sorted(given)))

    OPERATIONS[name] = evaluate


for _name, _compute in {
    "add": np.add,
    "mul": np.multiply,
    "equal": np.equal,
}.items():
    elementwise(_name, _compute)


@operation
def rsqrt(given, narrow):
    x = given["x"]
    return 1 / np.sqrt(x + given["epsilon"].astype(x.dtype))


@operation
def sigmoid(given, narrow):
    x = given["x"].astype(np.float32)
    return (1 / (1 + np.exp(-x))).astype(given["x"].dtype)


@operation
def silu(given, narrow):
    x = given["x"].astype(np.float32)
    return (x / (1 + np.exp(-x))).astype(given["x"].dtype)


@operation
def gelu(given, narrow):
    assert given["mode"] == "EXACT"
    x = given["x"].astype(np.float64)
    return (x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2).astype(given["x"].dtype)


@operation
def cast(given, narrow):
    names = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}
    return given["x"].astype(names[given["dtype"]])


@operation
def linear(given, narrow):
    return _product(given["x"], given["weight"].T, narrow) + given["bias"]


@operation
def matmul(given, narrow):
    x, y = given["x"], given["y"]
    x = x.swapaxes(-1, -2) if given["transpose_x"] else x
    y = y.swapaxes(-1, -2) if given["transpose_y"] else y
    return _product(x, y, narrow)


@operation
def softmax(given, narrow):
    x, axis = given["x"], int(given["axis"])
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    if narrow:
        return powers / _sum(powers, [axis], True, narrow)
    powers = np.exp((x - x.max(axis=axis, keepdims=True)).astype(np.float32))
    return (powers / powers.sum(axis=axis, keepdims=True)).astype(x.dtype)


@operation
def reduce_mean(given, narrow):
    x = given["x"]
    count = np.prod([x.shape[int(axis)] for axis in given["axes"]])
    return _sum(x / x.dtype.type(count), given["axes"], given["keep_dims"], narrow)


@operation
def reduce_max(given, narrow):
    axes = tuple(int(axis) for axis in given["axes"])
    return given["x"].max(axis=axes, keepdims=bool(given["keep_dims"]))


@operation
def reshape(given, narrow):
    return given["x"].reshape(given["shape"])


@operation
def transpose(given, narrow):
    return given["x"].transpose(given["perm"])


@operation
def slice_by_index(given, narrow):
    x = given["x"]
    masks = {name: given.get(name, np.zeros(x.ndim, bool)) for name in ("begin_mask", "end_mask")}
    strides = given.get("stride", np.ones(x.ndim, int))
    parts = [
        slice(
            None if masks["begin_mask"][i] else int(given["begin"][i]),
            None if masks["end_mask"][i] else int(given["end"][i]),
            int(strides[i]),
        )
        for i in range(x.ndim)
    ]
    squeezed = np.flatnonzero(given.get("squeeze_mask", np.zeros(x.ndim, bool)))
    return x[tuple(parts)].squeeze(tuple(squeezed))


@operation
def gather(given, narrow):
    assert int(given["batch_dims"]) == 0
    return np.take(given["x"], given["indices"], axis=int(given["axis"]))


@operation
def classify(given, narrow):
    (probabilities,) = given["probabilities"]
    classes = given["classes"]
    best = classes[int(probabilities.argmax())]
    return best, dict(zip(classes, probabilities, strict=True))
