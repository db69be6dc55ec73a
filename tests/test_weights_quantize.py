"""Quantised weights: what is packed, how it is stored, and that nothing else passes for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aim_mlx
from aim_mlx.backend import mx, tree_flatten
from aim_mlx.config import PreprocessConfig, VisionConfig
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.registry import MODELS
from aim_mlx.weights import load
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.inspect import describe
from aim_mlx.weights.load import load_into, load_weights
from aim_mlx.weights.quantize import MODES, Quantization, pack, quantized_names, unpack
from aim_mlx.weights.save import save_checkpoint
from aim_mlx.weights.sizes import expected_shapes
from tests import small
from tests.weights_files import Tensors, edit_json, read_tensors, weight_file, write_tensors

CONFIG = VisionConfig(64, 128, 2, 2, 14, 56)
EVERY = [Quantization.of("affine", b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64)]
EVERY += [Quantization.of("mxfp4"), Quantization.of("mxfp8")]


def noise(config: VisionConfig = CONFIG) -> dict[str, mx.array]:
    rng = np.random.default_rng(0)
    return {
        name: mx.array((rng.normal(0, 0.1, shape) + ("norm" in name)).astype(np.float32))
        for name, shape in expected_shapes(config).items()
    }


def save(folder: Path, how: Quantization | None, dtype: mx.Dtype = mx.float32) -> Path:
    hub = PreprocessConfig.hub(56)
    return save_checkpoint(folder, noise(), CONFIG, hub, dtype=dtype, quantization=how)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return save(tmp_path / "packed", Quantization())


def difference(a: mx.array, b: mx.array) -> float:
    return mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max().item()  # type: ignore


def test_a_mode_has_defaults_of_its_own():
    assert Quantization.of() == Quantization(8, 64, "affine")
    assert Quantization.of("affine", 4) == Quantization(4, 64, "affine")
    assert Quantization.of("mxfp4") == Quantization(4, 32, "mxfp4")
    assert Quantization.of("mxfp8") == Quantization(8, 32, "mxfp8")


@pytest.mark.parametrize(
    ("mode", "bits", "group", "words"),
    [
        ("affine", 7, 64, "bits must be 2 or 3 or 4 or 5 or 6 or 8"),
        ("affine", 1, 64, "bits must be"),
        ("affine", True, 64, "bits must be"),
        ("affine", 8.0, 64, "bits must be"),
        ("affine", 8, 16, "group_size must be 32 or 64 or 128"),
        ("mxfp4", 8, 32, "bits must be 4 in the mode mxfp4"),
        ("mxfp8", 8, 64, "group_size must be 32 in the mode mxfp8"),
        ("nvfp4", 4, 16, "mode must be one of affine, mxfp4, mxfp8"),
        (None, 4, 16, "mode must be"),
        (["affine"], 4, 16, "mode must be"),
    ],
)
def test_what_a_mode_does_not_allow_is_refused_with_what_it_does(
    mode: Any, bits: Any, group: Any, words: str
):
    with pytest.raises(UsageError, match=words):
        Quantization(bits, group, mode)


def test_every_combination_allowed_is_one_that_mlx_computes():
    weight = mx.random.normal((4, 128))
    for mode, (all_bits, groups) in MODES.items():
        for bits in all_bits:
            for group in groups:
                mx.eval(mx.quantize(weight, group_size=group, bits=bits, mode=mode))


def test_the_products_of_the_trunks_are_packed_and_nothing_else():
    config = MODELS["aimv2-large-patch14-224-lit"].config
    shapes = expected_shapes(config)
    names = quantized_names(shapes, Quantization(8, 128))
    assert len(names) == 5 * (24 + 12)
    assert not [n for n in names if "trunk.blocks" not in n or "norm" in n]
    assert quantized_names(shapes, None) == []


def test_all_published_widths_take_every_group_size():
    for spec in (each for each in MODELS.values() if each.folder is None):
        shapes = expected_shapes(spec.config)
        for group in (32, 64, 128):
            names = quantized_names(shapes, Quantization(8, group))
            assert len(names) == sum("attn" in n or "mlp" in n for n in shapes)


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_a_packed_folder_opens_and_unpacks_near_the_weights(tmp_path: Path, how: Quantization):
    checkpoint = open_checkpoint(save(tmp_path / "m", how))
    assert checkpoint.quantization == how and checkpoint.config == CONFIG
    assert len(checkpoint.quantized) == 10 and checkpoint.dtype == "float32"
    loaded, exact = load_weights(checkpoint), noise()
    assert loaded.keys() == exact.keys()
    for name, array in loaded.items():
        assert array.dtype == mx.float32 and array.shape == exact[name].shape
        if name not in checkpoint.quantized:
            assert mx.array_equal(array, exact[name]).item(), name
            continue
        # A step of a group whose extremes lie at most 0.9 apart (noise of deviation 0.1): MLX
        # shifts the steps so that the larger extreme is exact, which cuts off at the other.
        # fp4 has steps of a third of its largest value, fp8 of an eighth of each value.
        bound = {"affine": 0.9 / (2**how.bits - 1), "mxfp4": 0.12, "mxfp8": 0.04}
        worst = difference(array, exact[name])
        assert 0 < worst < bound[how.mode], f"{name}: largest difference {worst}"


@pytest.mark.parametrize("how", [Quantization(), Quantization.of("mxfp4")], ids=str)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_network_computes_the_same_packed_and_unpacked(
    tmp_path: Path, how: Quantization, dtype: mx.Dtype
):
    checkpoint = open_checkpoint(save(tmp_path / "m", how))
    pixels = mx.array(np.random.default_rng(1).normal(size=(1, 56, 56, 3)).astype(np.float32))
    outputs = []
    for packed in (True, False):
        model = VisionEncoder(CONFIG)
        load_into(model, checkpoint, dtype, packed)
        parameters = dict(tree_flatten(model.parameters()))
        assert ("trunk.blocks.1.mlp.fc3.scales" in parameters) == packed
        floats = {a.dtype for a in parameters.values()} - {mx.uint32, mx.uint8}
        assert floats == {dtype}
        outputs.append(model(pixels.astype(dtype)).tokens)
    assert outputs[0].dtype == dtype
    # Tokens of size 3: rounding of the scales and the order of sums, as wide as the dtype's steps.
    tolerance = {mx.float32: 2e-5, mx.float16: 0.02, mx.bfloat16: 0.15}[dtype]
    assert difference(*outputs) < tolerance, difference(*outputs)


def test_on_the_cpu_a_network_is_filled_unpacked(packed: Path):
    model = VisionEncoder(CONFIG)
    load_into(model, open_checkpoint(packed), mx.float32)
    assert not is_packed(model)


def test_on_a_gpu_too_small_for_it_a_network_stays_packed_where_there_are_kernels(
    packed: Path, monkeypatch
):
    monkeypatch.setattr(load, "on_gpu", lambda: True)
    monkeypatch.setattr(load, "machine_bytes", lambda: 1000)
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(mx, "quantized_matmul", no_kernel)
        model = VisionEncoder(CONFIG)
        assert load_into(model, open_checkpoint(packed), mx.float16) == kernels
        assert is_packed(model) == kernels


def test_on_a_gpu_with_room_for_it_a_network_is_unpacked(packed: Path, monkeypatch):
    monkeypatch.setattr(load, "on_gpu", lambda: True)
    model = VisionEncoder(CONFIG)
    assert not load_into(model, open_checkpoint(packed), mx.float16) and not is_packed(model)


def test_packed_weights_can_be_asked_for_and_are_recorded(packed: Path):
    encoder = aim_mlx.load(packed, packed=True)
    assert is_packed(encoder.model) and encoder.identity["packed"] is True
    assert aim_mlx.load(packed).identity["packed"] is False


def test_weights_that_are_not_quantised_cannot_be_kept_packed(tmp_path: Path):
    with pytest.raises(UsageError, match="these weights are not quantised"):
        aim_mlx.load(small.save(tmp_path / "m"), packed=True)


def test_packed_weights_that_the_device_cannot_multiply_are_refused(packed: Path, monkeypatch):
    monkeypatch.setattr(mx, "quantized_matmul", no_kernel)
    with pytest.raises(UsageError, match="this device cannot multiply them"):
        aim_mlx.load(packed, packed=True)


def test_a_packed_network_in_half_precision_computes_float32_pixels_in_float32(packed: Path):
    """What an image that overflows is computed again with."""
    half, exact = VisionEncoder(CONFIG), VisionEncoder(CONFIG)
    load_into(half, open_checkpoint(packed), mx.float16, packed=True)
    load_into(exact, open_checkpoint(packed), mx.float32)
    pixels = mx.array(np.random.default_rng(1).normal(size=(1, 56, 56, 3)).astype(np.float32))
    tokens = half(pixels).tokens
    assert tokens.dtype == mx.float32
    # Weights and scales rounded to float16, 5e-4 of each.
    assert difference(tokens, exact(pixels).tokens) < 0.02


def is_packed(model: VisionEncoder) -> bool:
    return "trunk.blocks.0.mlp.fc1.scales" in dict(tree_flatten(model.parameters()))


def no_kernel(*_: object, **__: object) -> None:
    raise RuntimeError("[quantized_matmul] No implementation for problem shape")


def test_packed_tensors_are_stored_as_mlx_has_them(packed: Path):
    stored = read(packed)
    stem = "trunk.blocks.0.mlp.fc2"
    assert (stored[f"{stem}.weight"][0], stored[f"{stem}.weight"][1].shape) == ("U32", (64, 32))
    assert (stored[f"{stem}.scales"][0], stored[f"{stem}.scales"][1].shape) == ("F32", (64, 2))
    parts = [mx.array(stored[f"{stem}.{part}"][1]) for part in ("weight", "scales", "biases")]
    full = mx.dequantize(*parts, group_size=64, bits=8)
    assert mx.array_equal(full, load_weights(open_checkpoint(packed))[f"{stem}.weight"]).item()


@pytest.mark.parametrize("how", [Quantization(), Quantization(4, 32)], ids=str)
def test_scales_are_computed_in_float32_whatever_the_weights_are_in(how: Quantization):
    weight = mx.array(np.random.default_rng(0).normal(0, 0.1, (64, 128))).astype(mx.float16)
    parts = pack("x.weight", weight, how)
    exact = pack("x.weight", weight.astype(mx.float32), how)
    assert parts["x.scales"].dtype == parts["x.biases"].dtype == mx.float32
    assert all(mx.array_equal(parts[name], exact[name]).item() for name in exact)


def test_scales_of_half_precision_are_multiplied_in_float32():
    weight = mx.array(np.random.default_rng(0).normal(0, 0.1, (64, 128)).astype(np.float32))
    packed, scales, biases = pack("x.weight", weight, Quantization()).values()
    scales, biases = scales.astype(mx.float16), biases.astype(mx.float16)
    steps = np.array(packed).view(np.uint8).reshape(64, 2, 64).astype(np.float32)
    wide = [np.array(x).astype(np.float32)[..., None] for x in (scales, biases)]
    expected = (steps * wide[0] + wide[1]).reshape(64, 128)
    unpacked = np.array(unpack([packed, scales, biases], Quantization(), mx.float32))
    # One rounding of float32 for values below one; in float16 it would be 2e-4.
    np.testing.assert_allclose(unpacked, expected, rtol=0, atol=1e-7)


def test_a_dtype_is_that_of_the_scales_too(tmp_path: Path):
    folder = save(tmp_path / "m", Quantization(), mx.bfloat16)
    assert open_checkpoint(folder).dtype == "bfloat16"
    assert {dtype for dtype, _ in read(folder).values()} == {"U32", "BF16"}


def test_a_packed_folder_is_described(packed: Path):
    facts = describe(packed)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["quantization"] == {"bits": 8, "group_size": 64, "mode": "affine"}
    count = sum(int(np.prod(shape)) for shape in expected_shapes(CONFIG).values())
    assert facts["parameters"] == count
    assert count < facts["bytes"] < 0.55 * 4 * count  # a third of these weights is not packed
    assert facts["dtypes"]["packed"] == 10


# What does not pass for packed weights


def read(folder: Path) -> Tensors:
    return read_tensors(weight_file(folder))


def refused(folder: Path, tensors: Tensors | None = None) -> str:
    if tensors is not None:
        write_tensors(weight_file(folder), tensors)
    with pytest.raises(CheckpointError) as error:
        load_weights(open_checkpoint(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


STEM = "trunk.blocks.1.attn.qkv"


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_a_missing_part_is_refused_by_name(packed: Path, part: str):
    tensors = read(packed)
    del tensors[f"{STEM}.{part}"]
    assert f"missing tensor '{STEM}.{part}'" in refused(packed, tensors)


@pytest.mark.parametrize(
    ("part", "dtype", "shape"),
    [
        ("weight", "I32", (192, 16)),
        ("weight", "F32", (192, 16)),
        ("weight", "U32", (192, 15)),
        ("weight", "U32", (3072,)),
        ("weight", "F32", (192, 64)),
        ("scales", "U8", (192, 1)),
        ("scales", "F64", (192, 1)),
        ("scales", "F32", (192, 2)),
        ("biases", "U32", (192, 1)),
    ],
)
def test_a_part_of_another_dtype_or_shape_is_refused(packed: Path, part: str, dtype: str, shape):
    tensors = read(packed)
    tensors[f"{STEM}.{part}"] = (dtype, np.zeros(shape))
    assert f"{STEM}.{part}" in refused(packed, tensors)


@pytest.mark.parametrize(
    "name", ["trunk.blocks.0.norm_1.weight", "preprocessor.patchifier.proj.weight"]
)
def test_what_is_not_quantised_may_not_be_packed(packed: Path, name: str):
    tensors = read(packed)
    tensors[name] = ("U32", np.zeros(tensors[name][1].shape))
    assert name in refused(packed, tensors)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_scales_that_do_not_give_numbers_are_refused(packed: Path, value: float):
    tensors = read(packed)
    tensors[f"{STEM}.scales"] = ("F32", np.full((192, 1), value, np.float32))
    assert STEM in refused(packed, tensors)


def test_shared_exponents_that_do_not_give_numbers_are_refused(tmp_path: Path):
    folder = save(tmp_path / "m", Quantization.of("mxfp8"))
    tensors = read(folder)
    tensors[f"{STEM}.scales"] = ("U8", np.full((192, 2), 255))
    assert STEM in refused(folder, tensors)


@pytest.mark.parametrize(
    "quantization",
    [
        {"bits": 4, "group_size": 64, "mode": "affine"},
        {"bits": 8, "group_size": 32, "mode": "affine"},
        {"bits": 8, "group_size": 32, "mode": "mxfp8"},
        {"bits": 7, "group_size": 64, "mode": "affine"},
        {"bits": 8, "group_size": 64},
        {"bits": 8, "group_size": 64, "mode": "affine", "extra": 1},
        {"bits": "8", "group_size": 64, "mode": "affine"},
        {},
        [],
        8,
    ],
)
def test_a_statement_that_the_tensors_do_not_bear_out_is_refused(packed: Path, quantization: Any):
    edit_json(packed / "config.json", quantization=quantization)
    refused(packed)


def test_packed_weights_without_their_config_are_refused_with_the_reason(packed: Path):
    edit_json(packed / "config.json", quantization=None)
    refused(packed)
    (packed / "config.json").unlink()
    refused(packed)
    with pytest.raises(CheckpointError, match="need the config.json they were written with"):
        open_checkpoint(packed, CONFIG)


def test_a_null_quantization_is_refused(packed: Path):
    values = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(values | {"quantization": None}))
    assert "quantization must have" in refused(packed)
