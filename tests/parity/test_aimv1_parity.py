"""AIMv1 against its formulas in PyTorch, live, and the published .pth files end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.config import VisionConfig
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.probe.probe import AttentiveProbe
from convert.__main__ import run
from convert.reference_aimv1 import aimv1_outputs
from tests.small import noisy
from tests.weights_files import DATA, read_tensors

pytestmark = pytest.mark.parity

CASE = DATA / "aimv1_probe"
GOLDEN = VisionConfig(64, 256, 4, 2, 14, 56, 1e-6, "aimv1")
# Heads of 128 channels and a grid of 16 x 16, as published; the width and depth are smaller.
PUBLISHED = VisionConfig(256, 1024, 4, 2, 14, 224, 1e-6, "aimv1")
CLOSE = 1e-4  # float32 sums of up to a thousand terms in another order; 1e-5 measured


def torch_weights(model: VisionEncoder) -> dict:
    import torch

    from aim_mlx.backend import tree_flatten

    named = {n: np.array(value) for n, value in dict(tree_flatten(model.parameters())).items()}
    key = "preprocessor.patchifier.proj.weight"
    named[key] = named[key].transpose(0, 3, 1, 2)
    return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in named.items()}


def test_the_formulas_give_the_numbers_of_the_reference_implementation():
    import torch

    tensors = read_tensors(CASE / "ml_aim_torch" / "model.safetensors")
    weights = {name: torch.from_numpy(values.copy()) for name, (_, values) in tensors.items()}
    case = load_file(CASE / "io.safetensors")
    outputs = aimv1_outputs(GOLDEN, weights, case["pixels_nchw"].transpose(0, 2, 3, 1))
    for i in range(4):
        assert np.abs(outputs[f"block {i}"] - case[f"block_{i}"]).max() < CLOSE


@pytest.mark.parametrize("size", [(224, 224), (98, 210)])
def test_every_block_and_the_final_tokens_equal_the_formulas(size):
    model = noisy(PUBLISHED)
    pixels = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)
    expected = aimv1_outputs(PUBLISHED, torch_weights(model), pixels)
    features = model(mx.array(pixels), layers=range(4), interpolate_positions=True)
    ours = {f"block {i}": value for i, value in features.layers.items()}
    ours["final tokens"] = features.tokens
    for name, value in expected.items():
        scale = np.sqrt((value**2).mean())
        apart = np.abs(np.array(ours[name]) - value).max()
        assert apart < CLOSE * scale, f"{name}: {apart:.1e} of {scale:.2g}"


def published(folder: Path, together: bool) -> tuple[Path, Path]:
    """The golden case in the files of apple/AIM, or with its head in the one of a model's repo."""
    import torch
    from safetensors.torch import load_file

    encoder = load_file(CASE / "ml_aim_torch" / "model.safetensors")
    head = load_file(CASE / "head.safetensors")
    head["head.bn.num_batches_tracked"] = torch.tensor(7)
    sizes = {"img_size": 56, "embed_dim": 64, "num_blocks": 4, "num_heads": 2, "patch_size": 14}
    (folder / "config.json").write_text(json.dumps(sizes | {"probe_layers": [1, 2]}))
    names = folder / "aim_attnprobe_backbone.pth", folder / "aim_attnprobe_head.pth"
    if together:
        torch.save(encoder | head, folder / "pytorch_model.bin")
    else:
        torch.save(encoder, names[0])
        torch.save(head, names[1])
    return names


@pytest.mark.parametrize("together", [False, True])
def test_pth_files_become_a_verified_probe_with_the_references_logits(together, tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    files = published(source, together)
    given = [source] if together else list(files)
    assert run([str(each) for each in (*given, out, "--verify")]) == 0
    assert capsys.readouterr().out.startswith("PASS: float32 differs from PyTorch by")
    assert "the formulas of AIMv1" in (tmp_path / "out.parity.md").read_text()
    probe = AttentiveProbe.load(out, aim_mlx.load(out))
    case = load_file(CASE / "io.safetensors")
    tokens = probe.encoder.tokens(mx.array(case["pixels_nchw"].transpose(0, 2, 3, 1)), probe.layers)
    assert np.abs(np.array(probe.head(tokens)) - case["logits"]).max() < CLOSE
    history = open_history(out)
    assert [file["name"] for file in history["files"]] == [
        "pytorch_model.bin" if together else files[0].name
    ]


def open_history(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["provenance"]
