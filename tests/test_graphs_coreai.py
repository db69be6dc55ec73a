"""A .aimodel as Core AI's own runtime, which also runs on Linux, computes it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.graphs.export import export_model
from aim_mlx.graphs.graph import Graph
from tests.small import AIMV1, encoder

authoring: Any = pytest.importorskip("coreai.authoring", reason="extra 'coreai' is not installed")
from aim_mlx.graphs import coreai  # noqa: E402

DATA = Path(__file__).parent / "data"
CASES = [
    ("vision_absolute/transformers", "embedding", None),
    ("vision_native_5x3/transformers", "tokens", (70, 42)),
    ("vision_native_5x3/transformers", "embedding", (56, 98)),
    ("lit/transformers", "embedding", None),
    ("lit_d128/transformers", "text", None),
]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("model", "head", "size"), CASES)
def test_the_reference_cases_keep_their_numbers(model, head, size, dtype, tmp_path):
    done = export_model(DATA / model, tmp_path / "a.aimodel", head=head, dtype=dtype, size=size)
    assert done.difference is not None and done.cosine is not None
    # Measured: 2e-6 in float32.
    assert done.difference < 2e-5 if dtype == "float32" else done.cosine > 0.9999


def test_the_file_names_its_functions_their_shapes_and_what_it_is(tmp_path):
    graph = Graph(encoder(), dtype="float32", batches=(1, 3))
    coreai.write(graph, tmp_path / "a.aimodel")
    asset = authoring.AIModelAsset.load(tmp_path / "a.aimodel")
    summary = asset.summary()
    assert summary is not None and sorted(summary.function_names) == ["batch_1", "batch_3"]
    ((name, kind),) = summary.function_inputs("batch_3")
    assert name == "image" and "3 x 56 x 56 x 3" in kind.replace("×", "x")
    said = json.loads((tmp_path / "a.aimodel/metadata.json").read_text())
    assert said["creatorDefinedMetadata"]["weights"] == graph.encoder.weights_digest


def test_aimv1_keeps_its_numbers(tmp_path):
    graph = Graph(encoder(AIMV1), "tokens", dtype="float32")
    coreai.write(graph, tmp_path / "a.aimodel")
    inputs = {"main": graph.sample(1)}
    found = coreai.run(graph, tmp_path / "a.aimodel", inputs)["main"]
    np.testing.assert_allclose(found, graph.expected(inputs["main"]), atol=2e-5)


def test_it_is_checked_inside_a_notebook_too(tmp_path):
    """A notebook's cells run inside a loop of events, where asyncio.run is not allowed."""
    graph = Graph(encoder(), dtype="float32")
    coreai.write(graph, tmp_path / "a.aimodel")
    inputs = {"main": graph.sample(1)}

    async def cell():
        return coreai.run(graph, tmp_path / "a.aimodel", inputs)

    found = asyncio.run(cell())["main"]
    np.testing.assert_allclose(found, graph.expected(inputs["main"]), atol=5e-6)
