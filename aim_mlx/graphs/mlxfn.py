"""MLX's own format, .mlxfn, for apps with mlx-swift and for C++: one function, by input shape."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.graphs.graph import Graph
from aim_mlx.graphs.ops import MlxOps

_VERSION = version("mlx")
# Readers go by the place of each value, and the header changed in 0.32.1.
NOTE = (
    f"written by MLX {_VERSION}, which reads it; MLX before 0.32.1, and so mlx-swift 0.31.6, "
    "does not, and later versions may not"
)


def write(graph: Graph, path: Path) -> None:
    """Writes a new file whose name ends with .mlxfn; its metadata is JSON."""
    ops, said = MlxOps(), {**graph.metadata, "mlx": _VERSION}

    def function(x: mx.array) -> mx.array:
        return graph.build(ops, x, x.shape[0])

    with mx.exporter(str(path), function, metadata=json.dumps(said)) as exporter:
        for batch in graph.batches:
            exporter(mx.array(graph.sample(batch)))


def run(graph: Graph, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of each function, by its name, as MLX computes them on this machine."""
    imported: Any = mx.import_function(str(path))
    return {name: np.array(imported(mx.array(x))[0]) for name, x in inputs.items()}
