"""The Swift package in examples/swift, as far as it can be held to without a Swift compiler."""

import base64
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from aim_mlx import Embedder
from aim_mlx.bridge import Result
from aim_mlx.config import VisionConfig, from_dict
from aim_mlx.graphs.graph import Graph
from aim_mlx.loading import load
from aim_mlx.registry import find_model
from aim_mlx.weights.sizes import expected_shapes

ROOT = Path(__file__).parent.parent / "examples/swift"
GOLDEN = ROOT / "Golden"
SOURCES = sorted(ROOT.rglob("*.swift"))
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
LINES = [line for block in BLOCKS for line in block.splitlines()]
PACKAGES = {".aimodel": "coreai", ".mlpackage": "coremltools"}
# Float32 rounding on vectors of length one, by another BLAS.
ROUNDING = 1e-5


def code_of(path: Path) -> str:
    """Swift without its comments and the contents of its strings."""
    return re.sub(r'""".*?"""|"[^"\n]*"|//[^\n]*', '""', path.read_text(), flags=re.S)


def golden() -> list[dict]:
    return json.loads((GOLDEN / "golden.json").read_text())["photos"]


def image_of(row: dict, name: str, height: int, width: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(row[name]), np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_source_is_ascii_whose_brackets_match(path):
    assert path.read_bytes().isascii()
    closing, stack = {")": "(", "]": "[", "}": "{"}, []
    for letter in code_of(path):
        if letter in closing.values():
            stack.append(letter)
        elif letter in closing:
            assert stack.pop() == closing[letter]
    assert not stack


def test_the_swift_encoder_has_the_tensors_that_a_model_folder_has():
    values = json.loads((GOLDEN / "config.json").read_text())
    config = from_dict(VisionConfig, values["encoder"])
    names = set(tensors(swift_properties(), "VisionEncoder", config.num_blocks))
    assert names == set(expected_shapes(config))


def swift_properties() -> dict[str, list[tuple[str, str]]]:
    """The modules of VisionEncoder.swift: name -> (key, type) of what each holds."""
    text = (ROOT / "Sources/AIMNative/VisionEncoder.swift").read_text()
    modules = {}
    for name, body in re.findall(r"class (\w+): Module \{(.*?)\n\}", text, re.S):
        held = re.findall(r'^    (?:@\w+\(key: "(\w+)"\) var|let) (\w+): (.+)$', body, re.M)
        modules[name] = [(key or own, kind) for key, own, kind in held]
    return modules


def tensors(modules: dict[str, list[tuple[str, str]]], kind: str, blocks: int) -> list[str]:
    # Of the package MLXNN, as its sources have them; no product of the encoder has a bias.
    leaves = {
        "Linear": ["weight"],
        "RMSNorm": ["weight"],
        "Conv2d": ["weight", "bias"],
        "MLXArray": [""],
        "Int": [],
    }
    if kind in leaves:
        return leaves[kind]
    names = []
    for key, held in modules[kind]:
        listed = held.strip("[]")
        keys = [f"{key}.{i}" for i in range(blocks)] if listed != held else [key]
        inner = tensors(modules, listed, blocks)
        names += [".".join(filter(None, [each, name])) for each in keys for name in inner]
    return names


def test_the_golden_is_what_the_library_computes_now(tmp_path):
    subprocess.run([sys.executable, ROOT / "golden.py", tmp_path / "golden"], check=True)
    written = json.loads((tmp_path / "golden/golden.json").read_text())["photos"]
    now, then = (load_file(each / "model.safetensors") for each in (tmp_path / "golden", GOLDEN))
    assert now.keys() == then.keys()
    assert all((now[name] == then[name]).all() for name in now)
    with Image.open(GOLDEN / "photo.png") as photo:
        assert photo.tobytes() == base64.b64decode(golden()[0]["photo"])
    for row, kept in zip(written, golden(), strict=True):
        np.testing.assert_allclose(row.pop("embedding"), kept.pop("embedding"), atol=ROUNDING)
        assert row == kept


def test_the_arithmetic_of_the_swift_encoder_gives_the_golden():
    weights = load_file(GOLDEN / "model.safetensors")
    encoder = load(GOLDEN)
    for row in golden():
        rgb = image_of(row, "pixels", 42, 42).astype(np.float32)
        mean, std = encoder.preprocessing.mean, encoder.preprocessing.std
        pixels = (rgb / 255 - np.array(mean)) / np.array(std)
        means = swift_encoder(pixels, weights, encoder.model.config).mean(axis=0)
        vector = means / np.sqrt(np.square(means).sum())
        np.testing.assert_allclose(vector, row["embedding"], atol=ROUNDING)


def swift_encoder(pixels: np.ndarray, w: dict[str, np.ndarray], config: VisionConfig) -> np.ndarray:
    """VisionEncoder.swift for one image, line by line: (S, S, 3) -> (N, D)."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.rms_norm_eps) * w[name]

    def attention(x: np.ndarray, name: str) -> np.ndarray:
        N, D = x.shape
        parts = (x @ w[f"{name}.qkv.weight"].T).reshape(N, 3, config.num_heads, -1)
        q, k, v = parts.transpose(1, 2, 0, 3)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(config.head_dim)
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        return (shares @ v).transpose(1, 0, 2).reshape(N, D) @ w[f"{name}.proj.weight"].T

    def feed_forward(x: np.ndarray, name: str) -> np.ndarray:
        gate, up = x @ w[f"{name}.fc1.weight"].T, x @ w[f"{name}.fc3.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ w[f"{name}.fc2.weight"].T

    p, start = config.patch_size, "preprocessor.patchifier"
    n = len(pixels) // p
    patches = pixels.reshape(n, p, n, p, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, -1)
    x = patches @ w[f"{start}.proj.weight"].reshape(config.embed_dim, -1).T
    x = norm(x + w[f"{start}.proj.bias"], f"{start}.norm.weight") + w["preprocessor.pos_embed"][0]
    for i in range(config.num_blocks):
        name = f"trunk.blocks.{i}"
        x = x + attention(norm(x, f"{name}.norm_1.weight"), f"{name}.attn")
        x = x + feed_forward(norm(x, f"{name}.norm_2.weight"), f"{name}.mlp")
    return norm(x, "trunk.post_trunk_norm.weight")


def test_the_arithmetic_of_the_swift_resize_gives_the_pixels_of_pillow():
    for row in golden():
        stored = image_of(row, "photo", row["height"], row["width"])
        edge, (height, width) = 42, stored.shape[:2]
        long = int(edge * max(height, width) / min(height, width))
        size = (edge, long) if width >= height else (long, edge)
        axes = (1, 0)
        if size[0] < height and height - size[0] > 2 * (width - size[1]):
            axes = (0, 1)
        for axis in axes:
            stored = swift_pass(stored, size[axis], axis)
        top, left = ((side - edge) // 2 for side in size)
        pixels = stored[top : top + edge, left : left + edge]
        assert (pixels == image_of(row, "pixels", edge, edge)).all()


def swift_pass(image: np.ndarray, new: int, axis: int) -> np.ndarray:
    """One pass of Bicubic.swift along an axis, line by line."""
    rows = np.moveaxis(image, axis, 0).astype(np.int64)
    old = len(rows)
    if new == old:
        return image
    scale = old / new
    stretch = max(scale, 1)
    result = []
    for position in range(new):
        centre = (position + 0.5) * scale
        first = max(0, int(centre - 2 * stretch + 0.5))
        end = min(old, int(centre + 2 * stretch + 0.5))
        x = np.abs((np.arange(first, end) - centre + 0.5) * (1 / stretch))
        outer = np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0)
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, outer)
        scaled = weights / weights.sum() * (1 << 22)
        whole = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64)
        total = np.tensordot(whole, rows[first:end], 1) + (1 << 21)
        result.append(np.clip(total >> 22, 0, 255))
    return np.moveaxis(np.stack(result), 0, axis).astype(np.uint8)


def test_the_swift_embedders_name_inputs_and_outputs_as_exported_files_do():
    names = dict(
        re.findall(
            r'static let (\w+) = "(\w+)"', (ROOT / "Sources/AIMGraphs/GraphNames.swift").read_text()
        )
    )
    graph = Graph(load(GOLDEN))
    assert list(graph.functions) == [names["function"]]
    assert (graph.input_name, graph.output_name) == (names["input"], names["output"])
    assert graph.input_shape(1) == (1, 42, 42, 3)
    said = graph.metadata[names["preprocessing"]]
    read = {"shortest_edge": 42, "crop_size": 42, "crop_rounding": "floor"}
    assert {name: said[name] for name in read} == read


def test_python_is_called_from_swift_by_the_names_of_the_bridge():
    text = (ROOT / "Sources/AIMPython/PythonEmbedder.swift").read_text()
    calls = re.findall(r'answer\("(\w+)"\) \{ \[(.*)\] \}', text)
    assert len(calls) == text.count('answer("') > 4
    for method, arguments in calls:
        signature = inspect.signature(getattr(Embedder, method))
        signature.bind(None, *filter(None, arguments.split(", ")))
    assert set(re.findall(r'result\["(\w+)"\]', text)) == set(Result.__annotations__)


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_readme_runs(line, tmp_path):
    for suffix, package in PACKAGES.items():
        if line.endswith(suffix):
            pytest.importorskip(package, reason=f"writing {suffix} needs {package}")
    if line.startswith("aim-mlx init"):
        assert find_model(line.split()[2]).name == line.split()[2]  # 1.2 GB
        return
    shutil.copytree(GOLDEN, tmp_path / "model", ignore=shutil.ignore_patterns("golden.json"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    line = line.replace("python examples/swift", f"python {ROOT}")
    subprocess.run(
        line, shell=True, cwd=tmp_path, env=os.environ | {"PATH": path}, check=True, timeout=600
    )
    assert (tmp_path / line.split(" --")[0].split()[-1]).is_dir()


def test_the_golden_is_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 200_000
