"""Core AI's format, .aimodel: written by Apple's `coreai-core`, and run by its own runtime."""

import asyncio
import importlib
import inspect
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from aim_mlx.graphs.graph import Graph

NOTE = "for macOS 27 and iOS 27"

_PROGRAM = 2**20  # bytes of a function, generously, beside its constants
_ZEROS = bytes(2**20)


class CoreAIOps:
    """Ops on values of `coreai.authoring`: axes and bounds are int32, shapes and orders uint32.

    `sizes` has the bytes of the named constants so far, which lie in the file once.
    """

    def __init__(self):
        self._to = _imported("authoring")
        self.sizes: dict[str, int] = {}

    def constant(self, values: np.ndarray, name: str = "") -> Any:
        if name:
            self.sizes[name] = values.nbytes
        return self._to.constant.constant(values)

    def cast(self, x: Any, dtype: str) -> Any:
        return self._to.cast(x, np.dtype(dtype).type)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return self._to.reshape(x, np.array(shape, np.uint32))

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        return self._to.transpose(x, np.array(axes, np.uint32))

    def slice(self, x: Any, axis: int, start: int, stop: int) -> Any:
        shape = list(x.type.shape)
        first, last = [0] * len(shape), shape
        first[axis], last[axis] = start, stop
        bounds = (np.array(each, np.int32) for each in (first, last, [1] * len(shape)))
        return self._to.slice_(x, *bounds)

    def rows(self, table: np.ndarray, ids: Any, name: str) -> Any:
        return self._to.gather_nd(
            self.constant(table, name), self.reshape(ids, (*ids.type.shape, 1))
        )

    def linear(self, x: Any, weight: np.ndarray, name: str) -> Any:
        return self.matmul(x, self.constant(np.ascontiguousarray(weight.T), name))

    def matmul(self, a: Any, b: Any) -> Any:
        return self._to.broadcasting_batch_matmul(a, b)

    def add(self, a: Any, b: Any) -> Any:
        return self._to.broadcasting_add(a, b)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._to.broadcasting_mul(a, b)

    def mean(self, x: Any, axis: int) -> Any:
        return self._to.reduce_mean(x, np.array([axis], np.int32))

    def largest(self, x: Any, axis: int) -> Any:
        return self._to.reduce_max(x, np.array([axis], np.int32))

    def rsqrt(self, x: Any) -> Any:
        return self._to.rsqrt(x)

    def softmax(self, x: Any) -> Any:
        return self._to.softmax(x, np.array(-1, np.int32))

    def sigmoid(self, x: Any) -> Any:
        return self._to.sigmoid(x)

    def gelu(self, x: Any) -> Any:
        return self._to.gelu(x)

    def equals(self, x: Any, number: int) -> Any:
        same = self._to.broadcasting_equal(self.cast(x, "int32"), np.array(number, np.int32))
        return self.cast(same, "float32")


def write(graph: Graph, path: Path) -> None:
    """Writes a new folder whose name ends with .aimodel."""
    authoring, runtime = _imported("authoring"), _imported("runtime")
    module, ops = authoring.Module.create(), CoreAIOps()
    with module:
        for name, batch in graph.functions.items():
            _add_function(graph, name, batch, ops)
    room = sum(ops.sizes.values()) + _PROGRAM * len(graph.functions)
    for folder in (path.parent, Path(tempfile.gettempdir())):  # run() writes it there once more
        _check_room(folder, room)
    said = runtime.AIModelAssetMetadata()
    said.model_description = graph.title
    for key, value in graph.metadata.items():
        said.set_custom(key, value)
    authoring.AIProgram(module).save_asset(path, said)


def run(graph: Graph, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of each function, by its name, as Core AI computes them on this machine."""
    with ThreadPoolExecutor(1) as thread:  # as a notebook has a loop of its own running in ours
        return thread.submit(asyncio.run, _run(graph, path, inputs)).result()


def _check_room(folder: Path, size: int) -> None:
    """Raises OSError where a folder has no room for so many bytes.

    The compiler's own writing ends the whole process there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(size // len(_ZEROS) + 1):
            file.write(_ZEROS)


async def _run(graph: Graph, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    authoring, runtime = _imported("authoring"), _imported("runtime")
    outputs = {}
    async with authoring.AIModelAsset.load(path).executable() as model:
        for name, values in inputs.items():
            function = model.load_function(name)
            given = await function({graph.input_name: runtime.NDArray(values)})
            outputs[name] = np.array(given[graph.output_name].numpy())
    return outputs


def _add_function(graph: Graph, name: str, batch: int, ops: CoreAIOps) -> None:
    """One function, in the module that is open; its input is named as the parameter is."""
    authoring = _imported("authoring")

    def body(x: Any) -> Any:
        return graph.build(ops, x, batch)

    given = authoring.TensorType(graph.input_shape(batch), np.dtype(graph.input_dtype).type)
    result = authoring.TensorType(graph.output_shape(batch), np.float32, name=graph.output_name)
    body.__annotations__ = {
        graph.input_name: Annotated[authoring.Value, given],
        "return": Annotated[authoring.Value, result],
    }
    only = inspect.Parameter(graph.input_name, inspect.Parameter.POSITIONAL_ONLY)
    body.__signature__ = inspect.Signature([only])  # pyright: ignore[reportFunctionMemberAccess]
    authoring.graph(body, provided_name=name)


def _imported(name: str) -> Any:
    """A module of coreai, which an extra installs."""
    return importlib.import_module(f"coreai.{name}")
