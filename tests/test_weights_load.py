"""Weights are loaded exactly, one after another, and only finite ones."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aim_mlx.backend import mx
from aim_mlx.config import VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.weights import reading
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.load import iter_weights, load_weights
from aim_mlx.weights.safetensors_file import all_finite
from aim_mlx.weights.sizes import expected_shapes
from tests.weights_files import (
    DATA,
    PEAK,
    VISION_LAYOUTS,
    as_bfloat16,
    copy_case,
    read_tensors,
    shard,
    weight_file,
    write_tensors,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_case(tmp_path, "vision_absolute", "transformers")


def reference() -> dict[str, np.ndarray]:
    path = weight_file(DATA / "vision_absolute" / "ml_aim_mlx")
    return {name: values for name, (_, values) in read_tensors(path).items()}


def bits(array: mx.array) -> np.ndarray:
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def same(weights: dict[str, mx.array], expected: dict[str, np.ndarray]) -> None:
    assert weights.keys() == expected.keys()
    for name, array in weights.items():
        assert tuple(array.shape) == expected[name].shape, name
        assert bits(array).tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("layout", VISION_LAYOUTS)
def test_every_layout_loads_as_the_same_weights_bit_for_bit(layout: str):
    same(load_weights(open_checkpoint(DATA / "vision_absolute" / layout)), reference())


def test_shards_load_as_the_whole(folder: Path):
    shard(folder, 3)
    same(load_weights(open_checkpoint(folder)), reference())


def test_memory_that_mlx_does_not_share_with_numpy_is_filled_alike(monkeypatch):
    monkeypatch.setattr(reading, "device_name", lambda: "cuda")
    same(load_weights(open_checkpoint(DATA / "vision_absolute" / "transformers")), reference())


def test_bfloat16_weights_stay_bit_for_bit_and_widen_exactly():
    checkpoint = open_checkpoint(DATA / "vision_absolute" / "transformers_bf16")
    narrow = load_weights(checkpoint, mx.bfloat16)
    wide = load_weights(checkpoint, mx.float32)
    for name, array in wide.items():
        assert array.dtype == mx.float32 and narrow[name].dtype == mx.bfloat16
        assert np.array_equal(bits(array).view(np.uint32) >> 16, bits(narrow[name])), name


def test_float32_weights_round_to_the_nearest_float16(folder: Path):
    weights = load_weights(open_checkpoint(folder), mx.float16)
    same(weights, {name: values.astype(np.float16) for name, values in reference().items()})


def test_float16_weights_widen_exactly(folder: Path):
    tensors = read_tensors(weight_file(folder))
    cut = {name: ("F16", values.astype(np.float16)) for name, (_, values) in tensors.items()}
    write_tensors(weight_file(folder), cut)
    expected = {k: v.astype(np.float16).astype(np.float32) for k, v in reference().items()}
    same(load_weights(open_checkpoint(folder)), expected)


def test_weights_loaded_on_one_thread_are_read_on_another(folder: Path):
    checkpoint = open_checkpoint(folder)
    with ThreadPoolExecutor(1) as pool:
        weights = pool.submit(load_weights, checkpoint).result()
    same(weights, reference())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_naming_its_tensor(folder: Path, dtype: str, value):
    name = "encoder.layers.1.attention.k_proj.weight"
    tensors = read_tensors(weight_file(folder))
    values = tensors[name][1].copy()
    values[3, 5] = value
    tensors[name] = ("F32", values)
    narrow = {"F32": lambda v: v, "F16": lambda v: v.astype(np.float16), "BF16": as_bfloat16}[dtype]
    write_tensors(weight_file(folder), {k: (dtype, narrow(v)) for k, (_, v) in tensors.items()})
    with pytest.raises(CheckpointError, match="NaN or infinity") as error:
        load_weights(open_checkpoint(folder))
    assert f"'{name}'" in str(error.value)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_finiteness_is_told_for_every_kind_of_value(dtype: str):
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    edge = np.finfo(kind)
    good = [0.0, -0.0, edge.max, edge.min, edge.tiny, -edge.tiny, edge.smallest_subnormal]
    assert all_finite(np.array(good, kind), dtype)
    assert all_finite(np.array(-1.0, kind), dtype) and all_finite(np.zeros((0, 2), kind), dtype)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        assert not all_finite(np.array([*good, bad], kind), dtype)


@pytest.mark.parametrize("value", [70_000.0, -1e30])
def test_a_cast_that_overflows_is_refused_and_says_what_to_do(folder: Path, value: float):
    tensors = read_tensors(weight_file(folder))
    tensors["rms_norm.weight"] = ("F32", np.full(64, value, np.float32))
    write_tensors(weight_file(folder), tensors)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="'rms_norm.weight' overflows in float16.*bfloat16"):
        load_weights(checkpoint, mx.float16)
    assert load_weights(checkpoint, mx.bfloat16).keys() == reference().keys()


@pytest.mark.parametrize(
    ("dtype", "target", "last"),
    [
        ("F32", mx.float16, 0x477FEFFF),
        ("F32", mx.bfloat16, 0x7F7F7FFF),
        ("BF16", mx.float16, 0x477F),
        ("F16", mx.bfloat16, 0x7BFF),
    ],
)
@pytest.mark.parametrize("sign", [0, 1])
def test_the_last_value_that_a_cast_keeps_finite_is_taken_and_no_other(
    folder: Path, dtype: str, target: mx.Dtype, last: int, sign: int
):
    """Checked against MLX's own cast, of the bits of that value and of the next."""
    kind, wide, narrow = {
        "F32": (mx.float32, np.uint32, np.float32),
        "F16": (mx.float16, np.uint16, np.float16),
        "BF16": (mx.bfloat16, np.uint16, np.uint16),
    }[dtype]
    shapes = {name: values.shape for name, (_, values) in read_tensors(weight_file(folder)).items()}
    tensors = {name: (dtype, np.zeros(shape, narrow)) for name, shape in shapes.items()}
    for bits in (last, last + 1):
        raw = np.full(64, bits | sign << (8 * np.dtype(wide).itemsize - 1), wide)
        finite = mx.isfinite(mx.array(raw).view(kind).astype(target)).all().item()
        assert finite == (bits == last)
        write_tensors(weight_file(folder), tensors | {"rms_norm.weight": (dtype, raw.view(narrow))})
        if finite:
            assert load_weights(open_checkpoint(folder), target)
        else:
            with pytest.raises(CheckpointError, match="'rms_norm.weight' (overflows|.*infinity)"):
                load_weights(open_checkpoint(folder), target)


def test_parts_of_two_dtypes_are_not_joined(folder: Path):
    name = "encoder.layers.1.attention.k_proj.weight"
    tensors = read_tensors(weight_file(folder))
    tensors[name] = ("F16", tensors[name][1].astype(np.float16))
    write_tensors(weight_file(folder), tensors)
    with pytest.raises(CheckpointError, match="expected one dtype, got F16, F32"):
        load_weights(open_checkpoint(folder))


def test_a_file_that_shrinks_after_opening_is_refused(folder: Path):
    checkpoint = open_checkpoint(folder)
    os.truncate(weight_file(folder), 100_000)
    with pytest.raises(CheckpointError, match="changed after it was checked"):
        load_weights(checkpoint)


def test_a_file_that_is_cut_while_weights_are_read_is_refused_and_no_thread_stays(folder: Path):
    threads, weights = threading.active_count(), iter_weights(open_checkpoint(folder))
    next(weights)
    os.truncate(weight_file(folder), 100_000)
    with pytest.raises(CheckpointError, match="cut short while tensor"):
        list(weights)
    assert threading.active_count() == threads


def test_weights_that_nobody_reads_on_leave_no_thread(folder: Path):
    threads, weights = threading.active_count(), iter_weights(open_checkpoint(folder))
    next(weights)
    assert threading.active_count() > threads
    weights.close()
    assert threading.active_count() == threads


def test_of_two_bad_tensors_the_first_in_the_file_is_named(folder: Path):
    tensors = read_tensors(weight_file(folder))
    first, second = list(tensors)[:2]
    for name in (first, second):
        tensors[name] = ("F32", np.full_like(tensors[name][1], np.nan))
    write_tensors(weight_file(folder), tensors)
    with pytest.raises(CheckpointError, match=f"'{first}'.*NaN"):
        load_weights(open_checkpoint(folder))


def test_a_file_that_vanishes_after_opening_is_refused(folder: Path):
    checkpoint = open_checkpoint(folder)
    weight_file(folder).unlink()
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_weights(checkpoint)


_LOAD = """
from aim_mlx.backend import mx
from aim_mlx.config import VisionConfig
from aim_mlx.weights.load import load_weights
from aim_mlx.weights.checkpoint import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1], VisionConfig(512, 1408, 16, 4, 14, 56))
before = peak()
weights = load_weights(checkpoint, getattr(mx, sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float16", 2)])
def test_memory_peaks_little_above_the_weights(tmp_path: Path, dtype: str, itemsize: int):
    """206 MB as float32, the largest tensor 3 MB: a second copy of the whole would show."""
    config = VisionConfig(512, 1408, 16, 4, 14, 56)
    path = tmp_path / "x.safetensors"
    shapes = expected_shapes(config)
    write_tensors(path, {n: ("F32", np.full(s, 0.5, np.float32)) for n, s in shapes.items()})
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    out = subprocess.run(
        [sys.executable, "-c", PEAK + _LOAD, str(path), dtype],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert out.returncode == 0, out.stderr
    peak, weights = int(out.stdout), itemsize * count
    # 30 MB for the allocator's slack and a few copies of one tensor.
    assert peak < weights + 30e6, f"peak {peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"
