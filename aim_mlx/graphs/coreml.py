"""Core ML's format, .mlpackage: written with Apple's `coremltools`, and run where macOS is.

- for iOS 16 and macOS 13 on; several functions, which share their weights, need iOS 18 and macOS 15
- pictures come as float32, as Core ML has no uint8 arrays, or in Core ML's own type of images
- 8-bit weights are int8 with a scale for each output channel, which Core ML unpacks
- the same graph gives the same bytes
"""

import importlib
import json
import logging
import platform
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aim_mlx.backend import mx
from aim_mlx.errors import UsageError
from aim_mlx.graphs.coreml_ops import IOS16, IOS18, MilOps, PackedOps
from aim_mlx.graphs.graph import Graph
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.registry import MODELS

NOTE = "for iOS 16 and macOS 13 on, with several functions for iOS 18 and macOS 15"
_MACOS = {IOS16: 13, IOS18: 15}  # that run a version of the specification
_LABEL = "label"  # the output of a classifier, beside the probabilities of all labels
_AUTHOR = "com.apple.CoreML"  # of the parts of a package, and their folder
# Of coremltools' passes those that touch no weights: the others copy or compare them all.
_PASSES = (
    "common::fuse_transpose_matmul",
    "mil_backend::fuse_activation_silu",
    "common::dead_code_elimination",
)


def write(graph: Graph, path: Path, bits: int = 16, image_input: bool = False) -> None:
    """Writes a new folder whose name ends with .mlpackage.

    With `bits` 8 the weights of the products of a float16 graph are packed. With `image_input` the
    input is one picture as Core ML has them, and labels make a classifier of the package. Raises
    UsageError for what a package cannot be, and like its writer a RuntimeError for a full disk.
    """
    check(graph, bits, image_input)
    weights = path / "Data" / _AUTHOR / "weights"
    weights.mkdir(parents=True)
    with _coremltools() as ct:
        spec = _specification(ct, graph, weights, bits, image_input)
    weights.with_name("model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    (path / "Manifest.json").write_text(_manifest())


def check(graph: Graph, bits: int = 16, image_input: bool = False) -> None:
    """Raises UsageError for what a package cannot be."""
    if bits not in (8, 16):
        raise UsageError(f"a Core ML package has weights of 8 or 16 bits, got {bits}")
    if bits == 8 and graph.dtype != "float16":
        raise UsageError("8-bit weights go with float16: leave out one of the two")
    if image_input and graph.input_name != "image":
        raise UsageError("the text tower takes ids, not an image: leave out the image input")
    if image_input and graph.batches != (1,):
        raise UsageError("an image input is one picture at a time: leave out the batch sizes")


def run(graph: Graph, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of each function, by its name, as Core ML computes them; without it, none.

    Raises RuntimeError where Core ML refuses the package.
    """
    if not _runs_here(graph):
        return {}
    with _coremltools() as ct:
        return {name: _predicted(ct, graph, path, name, x) for name, x in inputs.items()}


def run_packed(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What MLX gives with 8-bit weights, by the function's name."""
    ops = PackedOps()
    return {name: np.array(graph.build(ops, mx.array(x), len(x))) for name, x in inputs.items()}


def _runs_here(graph: Graph) -> bool:
    """Whether this is a Mac whose macOS is new enough."""
    if sys.platform != "darwin":
        return False
    return int(platform.mac_ver()[0].split(".")[0]) >= _MACOS[_version(graph)]


def _version(graph: Graph) -> int:
    return IOS16 if len(graph.functions) == 1 else IOS18


def _predicted(ct: Any, graph: Graph, path: Path, name: str, x: np.ndarray) -> np.ndarray:
    """One function's output (B, ...)."""
    function = None if _version(graph) == IOS16 else name
    try:
        with warnings.catch_warnings():  # of what makes `predict` fail
            warnings.simplefilter("ignore")
            model = ct.models.MLModel(str(path), function_name=function)
        inputs = model.get_spec().description.input
        as_image = inputs and inputs[0].type.WhichOneof("Type") == "imageType"
        given = Image.fromarray(x[0]) if as_image else x.astype(_input_dtype(graph))
        outputs = model.predict({graph.input_name: given})
    except Exception as error:  # what coremltools raises for most that fails in Core ML
        raise RuntimeError(f"Core ML: {error}") from error
    if graph.output_name in outputs:
        return np.asarray(outputs[graph.output_name])
    of_labels = outputs[f"{_LABEL}_probs"]
    return np.array([[of_labels[label] for label in graph.labels]])


def _input_dtype(graph: Graph) -> type[np.generic]:
    """Core ML has no arrays of uint8."""
    return np.int32 if graph.input_dtype == "int32" else np.float32


def _specification(ct: Any, graph: Graph, weights: Path, bits: int, image_input: bool) -> Any:
    """The program and what is said of it; weight.bin is written."""
    mil = ct.converters.mil
    program, arrays = mil.mil.Program(), {}
    for name, batch in graph.functions.items():
        function = _function(ct, graph, batch, arrays, bits, image_input)
        program.add_function(name, function)
    program.default_function_name = next(iter(graph.functions))
    program.export_as_multifunction = len(graph.functions) > 1
    for name in _PASSES:
        mil.mil.passes.pass_registry.PASS_REGISTRY[name](program)
    classifier = None
    if image_input and graph.labels and not _many_apply(graph):
        classifier = ct.ClassifierConfig(list(graph.labels), _LABEL)
    spec = mil.backend.mil.load.load(
        program,
        str(weights),
        specification_version=_version(graph),
        classifier_config=classifier,
    )
    _describe(spec.description, graph, bits)
    return spec


def _many_apply(graph: Graph) -> bool:
    """Whether several labels may hold of one picture: then no one of them is the answer."""
    return isinstance(graph.head, AttentiveProbe) and graph.head.multi_label


def _function(
    ct: Any,
    graph: Graph,
    batch: int,
    arrays: dict[str, np.ndarray],
    bits: int,
    image_input: bool,
) -> Any:
    mil = ct.converters.mil.mil
    name, shape, version = graph.input_name, graph.input_shape(batch), _version(graph)
    if image_input:
        shape = (1, 3, *shape[1:3])
    dtype = mil.types.numpy_type_to_builtin_type(_input_dtype(graph))
    opset = ct.target.iOS16 if version == IOS16 else ct.target.iOS18
    with mil.Function({name: mil.Builder.placeholder(shape, dtype)}, opset) as function:
        x = function.inputs[name]
        if image_input:
            x = mil.Builder.transpose(x=x, perm=(0, 2, 3, 1))
        output = graph.build(MilOps(mil.Builder, arrays, bits, version), x, batch)
        output.name = graph.output_name
        function.set_outputs([output])
    if image_input:
        image = ct.ImageType(name, shape, color_layout=ct.colorlayout.RGB, channel_first=True)
        function.set_input_types((image,))
    return function


def _describe(description: Any, graph: Graph, bits: int) -> None:
    """What Xcode shows of the model; texts of the metadata as they are, other values as JSON."""
    said, about = {**graph.metadata, "bits": bits}, description.metadata
    about.shortDescription = graph.title
    about.versionString = f"aim-mlx {said['aim_mlx']}"
    published = MODELS.get(said["model"])
    if published is not None:
        about.author, about.license = "Apple", published.licence
    for name, value in said.items():
        about.userDefined[name] = value if isinstance(value, str) else json.dumps(value)


def _manifest() -> str:
    """A package's list of its parts, whose identifiers name them within the package alone."""
    entries, root = {}, ""
    for name, text in {
        "weights": "CoreML Model Weights",
        "model.mlmodel": "CoreML Model Specification",
    }.items():
        root = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{_AUTHOR}"))
        path = f"{_AUTHOR}/{name}"
        entries[root] = {"author": _AUTHOR, "description": text, "name": name, "path": path}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": root,
    }
    return json.dumps(manifest, indent=4) + "\n"


@contextmanager
def _coremltools() -> Iterator[Any]:
    """coremltools, which for the length of a block counts from zero to name what has no name.

    As it is imported it looks for other libraries, which warn, as it does itself.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ct = importlib.import_module("coremltools")
    finally:
        logging.disable(disabled)
    counts = ct.converters.mil.Builder.name_count
    before = dict(counts)
    counts.clear()
    try:
        yield ct
    finally:
        counts.clear()
        counts.update(before)
