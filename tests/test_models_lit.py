"""The LiT towers against the reference's numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aim_mlx.backend import mx
from aim_mlx.config import LiTConfig, TextConfig, VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.models import layers, text
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.pooling import AttentionPool

DATA = Path(__file__).parent / "data" / "lit"
CLOSE = 2e-5  # float32 sums in another order than PyTorch's: up to 1.2e-6 measured


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return load_file(DATA / "io.safetensors")


@pytest.fixture(scope="module")
def model() -> LiTModel:
    sizes = json.loads((DATA / "case.json").read_text())
    vision = VisionConfig(**sizes["vision"], image_size=sizes["image_size"])
    lit = LiTModel(LiTConfig(vision, TextConfig(**sizes["text"]), sizes["projection_dim"]))
    weights = load_file(DATA / "ml_aim_mlx" / "mlx_model.safetensors")
    lit.load_weights([(name, mx.array(value)) for name, value in weights.items()], strict=True)
    return lit


def pixels(expected) -> mx.array:
    return mx.array(expected["pixels_nchw"].transpose(0, 2, 3, 1))


def assert_close(actual, wanted, tolerance=CLOSE):
    difference = np.abs(np.array(actual, np.float64) - wanted)
    assert difference.max() <= tolerance, f"{difference.max():.2e}, mean {difference.mean():.2e}"


@pytest.mark.parametrize("gpu_functions", [False, True])
def test_both_towers_and_the_logits_equal_the_reference(
    model, expected, gpu_functions, monkeypatch
):
    monkeypatch.setattr(layers, "on_gpu", lambda: gpu_functions)
    images = model.encode_image(pixels(expected))
    texts = model.encode_text(expected["input_ids"])
    assert_close(images, expected["image_projected"])
    assert_close(texts, expected["text_projected"])
    assert_close(model.logits(images, texts), expected["logits_per_image"], 3e-5)  # 2.4e-6


def test_what_follows_the_end_token_does_not_change_a_text(model, expected):
    ids = expected["input_ids"].copy()
    eos = model.config.text.eos_token_id
    end = int((ids[0] == eos).argmax())
    assert end < ids.shape[1] - 1
    changed = ids.copy()
    changed[0, end + 1 :] = 5
    cut = np.concatenate([ids[:1, :end], [[eos]]], axis=1)
    wanted = np.array(model.encode_text(ids))[0]
    # Sums of the same numbers in batches of other shapes, so in another order: seen 1.1e-6 apart.
    assert_close(model.encode_text(changed)[0], wanted, 1e-5)
    assert_close(model.encode_text(cut)[0], wanted, 1e-5)


@pytest.mark.parametrize("gpu_functions", [False, True])
@pytest.mark.parametrize("shared", [1, 2, 3])
def test_first_tokens_that_texts_share_may_be_computed_once(
    model, expected, shared, gpu_functions, monkeypatch
):
    monkeypatch.setattr(layers, "on_gpu", lambda: gpu_functions)
    ids = expected["input_ids"].copy()
    ids[:, :shared] = ids[0, :shared]
    assert (ids[:, :shared] != model.config.text.eos_token_id).all()
    assert_close(model.encode_text(ids, shared), np.array(model.encode_text(ids)), 1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 13), (32, 40)])
def test_the_gradient_of_token_vectors_on_a_gpu_is_the_sum_for_each_token(shape, monkeypatch):
    monkeypatch.setattr(text, "on_gpu", lambda: True)
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.2, shape), 11)  # some tokens are frequent, others missing
    weights = rng.normal(size=(*shape, 8)).astype(np.float32)
    table = text.TokenEmbedding(TextConfig(8, 16, 1, 1, 12, 40, 11))

    def loss(weight, ids):
        table.weight = weight
        return (table(ids) * mx.array(weights)).sum()

    start = mx.array(rng.normal(size=(12, 8)).astype(np.float32))
    expected = np.zeros((12, 8))
    np.add.at(expected, ids, weights)
    gradient = mx.grad(loss)
    for compute in (gradient, mx.compile(gradient)):
        # Sums of up to 300 numbers of size one in float32: up to 4e-6 is measured.
        assert_close(compute(start, mx.array(ids)), expected, 4e-5)


@pytest.mark.parametrize(("log_scale", "scale"), [(-3.0, 1.0), (2.0, math.e**2), (9.0, 100.0)])
def test_the_logit_scale_is_bounded_on_both_sides(model, log_scale, scale):
    before = model.log_logit_scale
    model.log_logit_scale = mx.array(log_scale)
    try:
        assert float(model.logit_scale) == pytest.approx(scale, rel=1e-5)
    finally:
        model.log_logit_scale = before


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (np.array([[1, 2, 3]]), "no end token"),
        (np.array([[1, 100, 99]]), "from 0 to 99"),
        (np.array([[-1, 99]]), "from 0 to 99"),
        (np.full((1, 13), 99), "1 to 12 tokens"),
        (np.zeros((1, 0), int), "1 to 12 tokens"),
        (np.array([1, 99]), "integer ids"),
        (np.array([[1.0, 99.0]]), "integer ids"),
    ],
)
def test_impossible_ids_are_refused(model, ids, reason):
    with pytest.raises(UsageError, match=reason):
        model.encode_text(ids)


def test_the_folded_pool_equals_attention_with_keys_and_values_for_each_token():
    rng = np.random.default_rng(0)
    pool = AttentionPool(64, 4)
    shapes = {"cls_token": (1, 1, 64), "linear.bias": (64,)}
    shapes |= {f"{name}.weight": (64, 64) for name in ("k", "v", "linear")}
    noise = {name: rng.normal(0, 0.2, shape) for name, shape in shapes.items()}
    pool.load_weights([(name, mx.array(value.astype(np.float32))) for name, value in noise.items()])
    tokens = rng.normal(size=(3, 10, 64))

    keys = (tokens @ noise["k.weight"].T).reshape(3, 10, 4, 16).transpose(0, 2, 1, 3)
    values = (tokens @ noise["v.weight"].T).reshape(3, 10, 4, 16).transpose(0, 2, 1, 3)
    scores = keys @ noise["cls_token"].reshape(4, 16, 1) / 4
    weights = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    pooled = (weights * values).sum(axis=2).reshape(3, 64)
    wanted = pooled @ noise["linear.weight"].T + noise["linear.bias"]
    assert_close(pool(mx.array(tokens.astype(np.float32))), wanted, 1e-5)
