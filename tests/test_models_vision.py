"""The vision encoder against the reference's numbers, and its own promises."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aim_mlx.backend import mx, nn
from aim_mlx.config import VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.models import layers
from aim_mlx.models import query_attention as folded
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.load import load_into
from tests.small import COSTLY, SMALL, SMALL_LIT, costly, noisy, peak_bytes

DATA = Path(__file__).parent / "data"
# float32 sums of a few hundred terms in another order than PyTorch's: up to 6.7e-6 measured, with
# the kernels of SkylakeX, Haswell and Prescott.
CLOSE = 7e-5
CASES = ["vision_absolute", "vision_native_5x3", "vision_d128_native_15x17"]


def golden(case: str) -> tuple[VisionEncoder, dict[str, np.ndarray], mx.array]:
    """The encoder of a case with the published MLX weights, its outputs, its NHWC pixels."""
    sizes = json.loads((DATA / case / "case.json").read_text())
    native = sizes.pop("positions") == "sincos"
    sizes.pop("kind")
    model = VisionEncoder(VisionConfig(**sizes | ({"image_size": None} if native else {})))
    layout = "transformers" if "d128" in case else "ml_aim_mlx"
    load_into(model, open_checkpoint(DATA / case / layout), mx.float32)
    expected = load_file(DATA / case / "io.safetensors")
    return model, expected, mx.array(expected["pixels_nchw"].transpose(0, 2, 3, 1))


def pixels_of(config: VisionConfig, batch: int = 1, size: tuple[int, int] | None = None):
    side = config.image_size or 56
    shape = (batch, *(size or (side, side)), 3)
    return mx.array(np.random.default_rng(7).normal(size=shape).astype(np.float32))


def tokens_of(model: VisionEncoder, pixels: mx.array) -> mx.array:
    tokens = model(pixels).tokens
    assert tokens is not None
    return tokens


def assert_close(actual, expected, tolerance=CLOSE):
    difference = np.abs(np.array(actual, np.float64) - np.array(expected, np.float64))
    assert difference.max() <= tolerance, (
        f"largest difference {difference.max():.2e}, mean {difference.mean():.2e}"
    )


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_every_block_equal_the_reference(case):
    model, expected, pixels = golden(case)
    features = model(pixels, layers=range(model.config.num_blocks))
    assert_close(features.tokens, expected["tokens"])
    for i in range(model.config.num_blocks):
        assert_close(features.layers[i], expected[f"block_{i}"])


@pytest.mark.parametrize("case", CASES)
def test_the_functions_used_on_a_gpu_give_the_same_numbers(case, monkeypatch):
    model, expected, pixels = golden(case)
    monkeypatch.setattr(layers, "on_gpu", lambda: True)
    assert_close(tokens_of(model, pixels), expected["tokens"])


def test_the_grid_is_height_by_width():
    model, _, pixels = golden("vision_native_5x3")
    assert model(pixels).grid == (5, 3)


def test_layers_are_returned_under_the_index_asked_for():
    model = noisy(SMALL)
    features = model(pixels_of(SMALL), layers=[-1, 2, 0])
    assert set(features.layers) == {-1, 2, 0}
    assert_close(features.layers[-1], features.layers[2], 0)


def test_no_block_after_the_last_one_that_is_read_is_computed():
    model, pixels = noisy(SMALL), pixels_of(SMALL)
    model.trunk.blocks[2].mlp.fc2.weight *= costly()
    features = model(pixels, layers=[1])
    assert peak_bytes(features.layers[1]) < COSTLY <= peak_bytes(features.tokens)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_out_of_range_is_refused(layer):
    with pytest.raises(UsageError, match="from -3 to 2"):
        noisy(SMALL)(pixels_of(SMALL), layers=[layer])


@pytest.mark.parametrize("size", [(70, 56), (56, 42)])
def test_another_size_is_refused_unless_positions_are_interpolated(size):
    model = noisy(SMALL)
    with pytest.raises(UsageError, match="takes 56 x 56"):
        model(pixels_of(SMALL, size=size))
    grid = model(pixels_of(SMALL, size=size), interpolate_positions=True).grid
    assert grid == (size[0] // 14, size[1] // 14)


@pytest.mark.parametrize("shape", [(56, 56, 3), (1, 3, 56, 56), (1, 50, 56, 3), (1, 0, 56, 3)])
def test_pixels_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(UsageError, match="expected pixels|multiples of 14"):
        noisy(VisionConfig(64, 176, 1, 2))(mx.zeros(shape))


def test_a_batch_gives_each_image_what_it_gets_alone():
    model, pixels = noisy(SMALL), pixels_of(SMALL, batch=5)
    together = tokens_of(model, pixels)
    alone = mx.concatenate([tokens_of(model, pixels[i : i + 1]) for i in range(5)])
    assert_close(together, alone, 1e-5)


def test_attention_in_slices_equals_attention_at_once(monkeypatch):
    model, pixels = noisy(SMALL), pixels_of(SMALL)
    whole = tokens_of(model, pixels)
    monkeypatch.setattr(layers, "_QUERIES_AT_ONCE", 5)
    assert_close(tokens_of(model, pixels), whole, 1e-5)


def test_large_scores_do_not_overflow_the_softmax():
    q = mx.array(np.random.default_rng(0).normal(0, 60, (1, 1, 8, 128)).astype(np.float32))
    assert np.isfinite(np.array(layers.attend(q, q, q))).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_attends_with_a_softmax_in_float32(dtype, monkeypatch):
    """In half precision e itself is off by 2e-4; the outputs are too coarse to show that alone."""
    seen = []
    power = layers.power_on_cpu
    monkeypatch.setattr(layers, "on_gpu", lambda: False)
    monkeypatch.setattr(
        layers, "power_on_cpu", lambda base, x: (seen.append(x.dtype), power(base, x))[1]
    )
    q = mx.array(np.random.default_rng(0).normal(size=(1, 2, 8, 16))).astype(dtype)
    assert layers.attend(q, q, q).dtype == dtype
    assert seen == [mx.float32]
    monkeypatch.setattr(folded, "on_gpu", lambda: True)
    _, weights = folded.attend_folded(q[0], q[0, 0, :3])
    assert weights.dtype == mx.float32


@pytest.mark.parametrize(
    "network",
    [VisionEncoder(replace(SMALL, rms_norm_eps=0.25)), LiTModel(
        replace(SMALL_LIT, vision=replace(SMALL_LIT.vision, rms_norm_eps=0.25),
                text=replace(SMALL_LIT.text, rms_norm_eps=0.25)))],
    ids=["vision", "lit"],
)  # fmt: skip
def test_every_norm_has_the_epsilon_of_the_config(network):
    norms = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.RMSNorm)]
    assert len(norms) >= 2 * 2 + 2 and {m.eps for _, m in norms} == {0.25}, norms


def test_the_published_epsilon_is_1e_5_and_counts_for_small_values():
    assert {SMALL.rms_norm_eps, SMALL_LIT.text.rms_norm_eps} == {1e-5}
    trunk = VisionEncoder(SMALL).trunk
    x = mx.full((1, 1, SMALL.embed_dim), 3e-3)  # x^2 = 9e-6: of the size of the epsilon
    expected = 3e-3 / (9e-6 + 1e-5) ** 0.5
    np.testing.assert_allclose(trunk.post_trunk_norm(x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "most"),  # measured 0.0010 and 0.0073
    [(mx.float16, 0.01), (mx.bfloat16, 0.07)],
)
def test_half_precision_stays_in_its_dtype_and_near_float32(dtype, most):
    model, pixels = noisy(SMALL), pixels_of(SMALL)
    exact = np.array(tokens_of(model, pixels))
    model.set_dtype(dtype)
    tokens = tokens_of(model, pixels.astype(dtype))
    assert tokens.dtype == dtype
    difference = np.abs(np.array(tokens.astype(mx.float32)) - exact)
    # 11 and 8 bits of mantissa; three blocks of unit-size values add up a few roundings.
    assert difference.mean() < most, f"mean {difference.mean():.3f}, max {difference.max():.3f}"


def test_silu_is_right_and_finite_far_from_zero():
    x = np.concatenate([np.linspace(-100, 100, 2001), [-3e4, 3e4]]).astype(np.float32)
    expected = x.astype(np.float64) / (1 + np.exp(np.minimum(-x.astype(np.float64), 700)))
    np.testing.assert_allclose(
        layers.gated(mx.array(x), mx.ones(x.shape)), expected, atol=2e-6, rtol=1e-6
    )


@pytest.mark.parametrize("x", [-1e4, -90.0, -79.0, -5.0, 0.0, 5.0, 90.0, 1e4])
def test_the_gradient_of_silu_is_right_and_finite_far_from_zero(x):
    gradient = mx.grad(lambda v: layers.gated(v, mx.ones(1)).sum())(mx.array([x]))
    gate = 1 / (1 + np.exp(min(-x, 700.0)))
    np.testing.assert_allclose(gradient, [gate * (1 + x * (1 - gate))], atol=2e-6)


def test_the_gradient_of_attention_equals_that_of_the_function_used_on_a_gpu():
    rng = np.random.default_rng(0)
    q, k, v, weights = (mx.array(rng.normal(size=(2, 3, 7, 8)), mx.float32) for _ in range(4))
    causal = mx.array(np.tri(7, dtype=bool))

    def fused(q, k, v):
        outputs = mx.fast.scaled_dot_product_attention(q, k, v, scale=8**-0.5, mask=causal)
        return (outputs * weights).sum()

    def spelled_out(q, k, v):
        return (layers.attend(q, k, v, causal) * weights).sum()

    wanted = mx.grad(fused, (0, 1, 2))(q, k, v)
    ours = mx.grad(spelled_out, (0, 1, 2))(q, k, v)
    for each, expected in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(each, expected, atol=1e-5)  # sums in another order
