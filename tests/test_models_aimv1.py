"""AIMv1: the encoder against the reference's numbers, and what differs from AIMv2."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aim_mlx.backend import mx, nn, tree_flatten
from aim_mlx.config import VisionConfig
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models import layers
from aim_mlx.models.positions import sincos_positions
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.probe.head_files import load_head
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.load import load_into
from tests.small import AIMV1, encoder, noisy

CASE = Path(__file__).parent / "data" / "aimv1_probe"
# float32 sums of a few hundred terms in another order than PyTorch's: up to 5e-6 measured.
CLOSE = 5e-5


def golden_config() -> VisionConfig:
    sizes = json.loads((CASE / "case.json").read_text())
    names = ("embed_dim", "num_blocks", "num_heads", "patch_size", "image_size")
    return VisionConfig(
        **{name: sizes[name] for name in names},
        mlp_hidden_dim=sizes["mlp_ratio"] * sizes["embed_dim"],
        rms_norm_eps=sizes["layer_norm_eps"],
        family="aimv1",
    )


@pytest.fixture(scope="module")
def golden() -> Encoder:
    checkpoint = open_checkpoint(CASE / "ml_aim_torch", golden_config())
    model = VisionEncoder(checkpoint.vision)
    load_into(model, checkpoint, mx.float32)
    return Encoder(model, checkpoint.preprocess)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return load_file(CASE / "io.safetensors")


@pytest.fixture(scope="module")
def pixels(expected) -> mx.array:
    return mx.array(expected["pixels_nchw"].transpose(0, 2, 3, 1))


def pixels_of(height: int, width: int) -> mx.array:
    noise = np.random.default_rng(7).normal(size=(1, height, width, 3))
    return mx.array(noise.astype(np.float32))


def apart(a, b) -> float:
    return float(np.abs(np.array(a, np.float64) - np.array(b, np.float64)).max())


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "functions used on a GPU"])
def test_every_block_equals_the_reference(golden, expected, pixels, gpu, monkeypatch):
    monkeypatch.setattr(layers, "on_gpu", lambda: gpu)
    outputs = golden.features(pixels, layers=range(4)).layers
    assert len(outputs) == 4
    for i, output in outputs.items():
        assert apart(output, expected[f"block_{i}"]) < CLOSE


def test_a_published_head_on_the_mean_of_its_blocks_gives_the_references_logits(
    golden, expected, pixels
):
    layers = json.loads((CASE / "case.json").read_text())["probe_layers"]
    head = load_head(CASE / "head.safetensors", heads=2)
    assert apart(head(golden.tokens(pixels, layers)), expected["logits"]) < CLOSE
    assert apart(head(golden.tokens(pixels, [2, 3])), expected["logits"]) > 0.1


@pytest.mark.parametrize(("one", "other"), [("norm_1", "norm_2"), ("mlp.fc1", "mlp.fc2")])
def test_weights_in_each_others_place_change_the_output(one, other):
    model = noisy(replace(AIMV1, mlp_hidden_dim=64))  # so that fc1 and fc2 have one shape
    names = dict(tree_flatten(model.parameters()))
    before = np.array(model(pixels_of(56, 56)).tokens)
    swapped = {
        name.replace(one, "?").replace(other, one).replace("?", other): value
        for name, value in names.items()
    }
    model.load_weights(list(swapped.items()), strict=True)
    assert apart(model(pixels_of(56, 56)).tokens, before) > 0.1


def test_no_position_is_stored_and_another_size_gets_its_own():
    model = noisy(AIMV1)
    assert "pos_embed" not in model.preprocessor
    with pytest.raises(UsageError, match="takes 56 x 56"):
        model(pixels_of(42, 70))
    given = pixels_of(42, 70)
    tokens = model.preprocessor(given, (3, 5)) - model.preprocessor.patchifier(given)
    assert apart(tokens[0], sincos_positions(3, 5, 64)) < 1e-6
    assert model(given, interpolate_positions=True).grid == (3, 5)


def test_the_feed_forward_has_the_exact_gelu():
    x = np.linspace(-8, 8, 4000)
    exact = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x]
    mlp = layers.MLP(replace(AIMV1, embed_dim=4, mlp_hidden_dim=4, num_heads=1))
    mlp.fc1.weight = mlp.fc2.weight = mx.eye(4)
    # The one by tanh is 5e-4 off; a unit of float32 at 8 is 1e-6.
    assert apart(mlp(mx.array(x.astype(np.float32)).reshape(-1, 4)).reshape(-1), exact) < 2e-6


def test_every_norm_has_a_bias_and_the_epsilon_of_the_config():
    norms = [
        module
        for _, module in VisionEncoder(replace(AIMV1, rms_norm_eps=0.25)).named_modules()
        if isinstance(module, nn.LayerNorm)
    ]
    assert len(norms) == 2 * 3 + 2
    assert {norm.eps for norm in norms} == {0.25} and all("bias" in norm for norm in norms)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_stays_in_its_dtype_and_near_float32(dtype):
    model = noisy(AIMV1)
    exact = np.array(model(pixels_of(56, 56)).tokens)
    model.set_dtype(dtype)
    tokens = model(pixels_of(56, 56).astype(dtype)).tokens
    assert tokens.dtype == dtype
    # 11 and 8 bits of mantissa; measured 0.0010 and 0.0077.
    most = 0.01 if dtype == mx.float16 else 0.07
    assert np.abs(np.array(tokens.astype(mx.float32)) - exact).mean() < most


def test_images_are_resized_and_normalised_as_the_reference_does():
    preprocess = encoder(replace(AIMV1, image_size=224)).preprocessing
    assert (preprocess.shortest_edge, preprocess.crop_size) == (256, 224)
    assert preprocess.mean == (0.485, 0.456, 0.406) and preprocess.crop_rounding == "half_even"


def test_a_family_that_there_is_not_is_refused():
    with pytest.raises(CheckpointError, match="family must be one of aimv2, aimv1, got 'aimv3'"):
        replace(AIMV1, family="aimv3")
