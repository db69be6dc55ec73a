"""Every published layout converts to our folder and back; what a conversion cost is said."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.cli import main as cli
from aim_mlx.config import LiTConfig, TextConfig, VisionConfig
from aim_mlx.errors import CheckpointError, OutputError, UntrainedModelWarning, UsageError
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.convert import Conversion, convert_checkpoint, probe_pictures, similarity
from aim_mlx.weights.inspect import describe
from aim_mlx.weights.layouts import layout_named
from aim_mlx.weights.load import load_into, load_weights
from aim_mlx.weights.quantize import Quantization
from aim_mlx.weights.rules import from_ours
from aim_mlx.weights.sizes import expected_shapes
from tests.full_disk import full_from
from tests.weights_files import (
    DATA,
    PEAK,
    as_bfloat16,
    copy_case,
    edit_json,
    read_tensors,
    shard,
    weight_file,
    write_tensors,
)

LIT = LiTConfig(VisionConfig(64, 176, 2, 2, 14, 56), TextConfig(48, 128, 2, 3, 100, 12, 99), 32)
CASES = [
    (case, layout)
    for case in ("vision_absolute", "vision_native_5x3", "lit")
    for layout in ("ml_aim_mlx", "ml_aim_torch", "transformers", "timm")
    if (DATA / case / layout).is_dir()
]
each_case = pytest.mark.parametrize(("case", "layout"), CASES)


def convert(case: str, layout: str, folder: Path, **options: Any) -> Conversion:
    config = LIT if case == "lit" else None
    return convert_checkpoint(DATA / case / layout, folder, config=config, **options)


@each_case
def test_a_layout_becomes_ours_and_back_bit_for_bit(tmp_path: Path, case: str, layout: str):
    done = convert(case, layout, tmp_path / "ours")
    source = read_tensors(weight_file(DATA / case / layout))
    ours = read_tensors(tmp_path / "ours" / "model.safetensors")
    there = layout_named(done.layout, done.kind)
    back = {n: a for name, (_, v) in ours.items() for n, a in from_ours(there, name, v).items()}
    assert back.keys() == source.keys()
    for name, (dtype, values) in source.items():
        assert dtype == "F32" and back[name].tobytes() == values.tobytes(), name
    assert done.cosines == pytest.approx([1.0] * 4, abs=1e-12)


@each_case
def test_eight_bits_keep_the_embeddings(tmp_path: Path, case: str, layout: str):
    done = convert(case, layout, tmp_path / "m", quantization=Quantization())
    assert done.tensors_quantized and done.bytes < done.bytes_before
    # The noise has no structure that rounding could spare: measured 0.9999 at the lowest.
    assert done.cosines is not None and 0.999 < min(done.cosines) < 1 - 1e-7
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.quantization == Quantization()


@pytest.mark.parametrize("case", ["vision_absolute_bf16", "mixed"])
def test_without_a_dtype_each_tensor_keeps_its_own(tmp_path: Path, case: str):
    if case == "mixed":
        source = copy_case(tmp_path, "vision_absolute", "ml_aim_mlx")
        tensors = read_tensors(weight_file(source))
        name = "trunk.post_trunk_norm.weight"
        tensors[name] = ("F16", tensors[name][1].astype(np.float16))
        name = "trunk.blocks.0.norm_1.weight"
        tensors[name] = ("BF16", as_bfloat16(tensors[name][1]))
        write_tensors(weight_file(source), tensors)
    else:
        source = DATA / "vision_absolute" / "transformers_bf16"
    done = convert_checkpoint(source, tmp_path / "m", compare=False)
    assert done.dtype == done.dtype_before and done.cosines is None
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "m")
    for dtype in (mx.float32, mx.bfloat16):
        a, b = load_weights(before, dtype), load_weights(after, dtype)
        assert all(mx.array_equal(a[name], b[name]).item() for name in a)


def test_a_dtype_rounds_and_its_cost_is_said(tmp_path: Path):
    costs = {}
    for dtype in ("float16", "bfloat16"):
        done = convert("vision_absolute", "timm", tmp_path / dtype, dtype=dtype)
        assert done.dtype == dtype and done.bytes * 2 == done.bytes_before
        assert done.cosines is not None
        costs[dtype] = 1 - min(done.cosines)
    # bfloat16 keeps three bits less: errors 8 times as large, their squares 64 times.
    assert 0 < 8 * costs["float16"] < costs["bfloat16"] < 1e-4


def test_a_quantised_folder_converts_to_the_weights_it_stands_for(tmp_path: Path):
    convert("vision_absolute", "transformers", tmp_path / "q", quantization=Quantization())
    done = convert_checkpoint(tmp_path / "q", tmp_path / "full")
    assert done.quantization is None and done.tensors_quantized == 0
    a, b = (load_weights(open_checkpoint(tmp_path / n)) for n in ("q", "full"))
    assert all(mx.array_equal(a[name], b[name]).item() for name in a)


def test_shards_become_one_file_bit_for_bit(tmp_path: Path):
    source = copy_case(tmp_path, "vision_absolute", "transformers")
    whole = load_weights(open_checkpoint(source))
    shard(source, 3)
    convert_checkpoint(source, tmp_path / "m", compare=False)
    assert len(open_checkpoint(tmp_path / "m").provenance["files"]) == 3
    joined = load_weights(open_checkpoint(tmp_path / "m"))
    assert all(mx.array_equal(whole[name], joined[name]).item() for name in whole)


def test_a_quantised_folder_embeds_as_before_within_its_cost(tmp_path: Path):
    source = DATA / "vision_absolute" / "transformers"
    done = convert_checkpoint(source, tmp_path / "q", quantization=Quantization())
    pictures = list(probe_pictures(56))
    a, b = (aim_mlx.load(folder).embed(pictures) for folder in (source, tmp_path / "q"))
    # The same pictures through the whole path: what the conversion said is what embedding shows.
    assert done.cosines == pytest.approx((a * b).sum(axis=1).tolist(), abs=1e-6)


def test_a_quantised_lit_folder_gives_the_same_projections(tmp_path: Path):
    convert("lit", "transformers", tmp_path / "q", quantization=Quantization.of("affine", 8, 32))
    pixels = mx.array(np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32))
    ids = np.array([[5, 7, 99, 0]])
    outputs = []
    for folder, packed in ((DATA / "lit/transformers", False), (tmp_path / "q", True)):
        model = LiTModel(LIT)
        load_into(model, open_checkpoint(folder), mx.float32, packed)
        outputs.append((np.array(model.encode_image(pixels)), np.array(model.encode_text(ids))))
    for exact, rounded in zip(*outputs, strict=True):
        cosine = (exact * rounded).sum() / np.linalg.norm(exact) / np.linalg.norm(rounded)
        assert 0.999 < cosine < 1 - 1e-8, cosine


# That a mistake in the table would show: parts exchanged in a file change what is computed.

NAMES = {
    "ml_aim_mlx": {
        "norms": ("trunk.blocks.0.norm_1.weight", "trunk.blocks.0.norm_2.weight"),
        "gate and up": ("trunk.blocks.0.mlp.fc1.weight", "trunk.blocks.0.mlp.fc3.weight"),
        "q and k": ("trunk.blocks.0.attn.qkv.weight",),
    },
    "transformers": {
        "norms": ("encoder.layers.0.rms_norm1.weight", "encoder.layers.0.rms_norm2.weight"),
        "gate and up": (
            "encoder.layers.0.ffn.gate_proj.weight",
            "encoder.layers.0.ffn.up_proj.weight",
        ),
        "q and k": (
            "encoder.layers.0.attention.q_proj.weight",
            "encoder.layers.0.attention.k_proj.weight",
        ),
    },
    "timm": {
        "norms": ("blocks.0.norm1.weight", "blocks.0.norm2.weight"),
        "gate and up": ("blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.fc1_x.weight"),
        "q and k": ("blocks.0.attn.qkv.weight",),
    },
}
NAMES["ml_aim_torch"] = NAMES["ml_aim_mlx"]


def exchange(folder: Path, names: tuple[str, ...]) -> None:
    """Exchanges two tensors, or the first two thirds of one."""
    tensors = read_tensors(weight_file(folder))
    if len(names) == 1:
        dtype, joined = tensors[names[0]]
        q, k, v = np.split(joined, 3)
        tensors[names[0]] = dtype, np.concatenate([k, q, v])
    else:
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    write_tensors(weight_file(folder), tensors)


def outputs(folder: Path, kind: str, text: bool) -> np.ndarray:
    """What a network computes with a folder's weights, for seeded inputs."""
    checkpoint = open_checkpoint(folder, LIT if kind == "lit" else None)
    pixels = mx.array(np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32))
    if kind == "lit":
        lit = LiTModel(LIT)
        load_into(lit, checkpoint, mx.float32)
        ids = np.array([[5, 7, 11, 99]])
        return np.array(lit.encode_text(ids) if text else lit.encode_image(pixels))
    model = VisionEncoder(checkpoint.vision)
    load_into(model, checkpoint, mx.float32)
    return np.array(model(pixels).tokens)


@each_case
@pytest.mark.parametrize("parts", ["norms", "gate and up", "q and k"])
def test_parts_exchanged_in_a_file_change_the_output(
    tmp_path: Path, case: str, layout: str, parts: str
):
    prefixes = {"": False}
    if case == "lit":
        towers = ("vision_model.", "text_model.")
        ours = ("image_encoder.", "text_encoder.")
        prefixes = dict(zip(towers if layout == "transformers" else ours, (0, 1), strict=True))
    for prefix, text in prefixes.items():
        kind = "lit" if case == "lit" else "vision"
        expected = outputs(DATA / case / layout, kind, bool(text))
        folder = copy_case(tmp_path / (prefix or "x"), case, layout)
        exchange(folder, tuple(prefix + name for name in NAMES[layout][parts]))
        largest = np.abs(outputs(folder, kind, bool(text)) - expected).max()
        assert largest > 1e-3, f"{prefix}: largest difference {largest}"


# What goes with the weights


def test_the_history_names_the_source_its_layout_and_its_digest(tmp_path: Path):
    source = DATA / "vision_absolute" / "timm"
    convert_checkpoint(source, tmp_path / "a", dtype="float16", compare=False)
    facts = open_checkpoint(tmp_path / "a").provenance
    file = weight_file(source)
    assert facts["source"] == str(source) and facts["layout"] == "timm"
    assert facts["dtype"] == "float16" and facts["quantization"] is None
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    stated = {"name": file.name, "bytes": file.stat().st_size, "sha256": digest}
    assert facts["files"] == [stated]
    convert_checkpoint(tmp_path / "a", tmp_path / "b", compare=False)
    assert open_checkpoint(tmp_path / "b").provenance["earlier"] == facts


def test_untrained_weights_stay_untrained(tmp_path: Path):
    source = copy_case(tmp_path, "vision_absolute", "timm")
    path = weight_file(source)
    write_tensors(path, read_tensors(path), {"aim_mlx_trained": "false"})
    with pytest.warns(UntrainedModelWarning, match="mean little"):
        convert_checkpoint(source, tmp_path / "m", compare=False)
    assert not open_checkpoint(tmp_path / "m").trained
    with pytest.warns(UntrainedModelWarning):
        assert describe(tmp_path / "m")["trained"] is False


def test_a_model_from_the_hubs_cache_keeps_its_name(tmp_path: Path):
    commit = tmp_path / "models--apple--aimv2-large-patch14-224" / "snapshots" / ("a" * 40)
    shutil.copytree(DATA / "vision_absolute" / "timm", commit)
    for source, copy in (commit, tmp_path / "one"), (tmp_path / "one", tmp_path / "two"):
        done = convert_checkpoint(source, copy, compare=False)
        assert done.model == describe(copy)["model"] == "aimv2-large-patch14-224"
    other = commit.parents[1].with_name("models--owner--its-own")
    commit.parents[1].rename(other)
    assert describe(other / "snapshots" / commit.name)["model"] == "owner/its-own"
    assert describe(DATA / "vision_absolute" / "timm")["model"] is None


def test_a_source_that_is_no_path_names_no_model_and_takes_no_time(tmp_path: Path):
    convert_checkpoint(DATA / "vision_absolute" / "timm", tmp_path / "m", compare=False)
    odd = "/models--a--\x1b[2J/snapshots/"
    for source in ("/models--" + "a--" * 200_000, odd, ["x"], None):
        edit_json(tmp_path / "m" / "config.json", provenance={"source": source})
        assert describe(tmp_path / "m")["model"] is None


def test_a_lit_folder_keeps_its_tokenizer_and_an_overwrite_takes_it_away(tmp_path: Path):
    source = copy_case(tmp_path, "lit", "transformers")
    (source / "merges.txt").write_bytes(b"a b\n")
    (source / "tokenizer.json").write_bytes(b"{}")
    (source / "notes.txt").write_text("not ours")
    convert_checkpoint(source, tmp_path / "m", compare=False)
    names = {"config.json", "model.safetensors", "merges.txt", "tokenizer.json"}
    assert {p.name for p in (tmp_path / "m").iterdir()} == names
    assert (tmp_path / "m" / "merges.txt").read_bytes() == b"a b\n"
    again = {"overwrite": True, "compare": False}
    convert("vision_absolute", "timm", tmp_path / "m", **again)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}


def test_a_huge_tokenizer_file_is_refused(tmp_path: Path):
    source = copy_case(tmp_path, "lit", "transformers")
    with open(source / "vocab.json", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match="vocab.json"):
        convert_checkpoint(source, tmp_path / "m")
    assert not (tmp_path / "m").exists()


# What cannot be done


def test_a_quantised_source_is_not_quantised_again(tmp_path: Path):
    convert("vision_absolute", "timm", tmp_path / "q", quantization=Quantization())
    with pytest.raises(UsageError, match="quantised already"):
        convert_checkpoint(tmp_path / "q", tmp_path / "r", quantization=Quantization(4))
    assert not (tmp_path / "r").exists()


def test_a_group_that_fits_no_weight_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="smaller group size"):
        convert("vision_absolute", "timm", tmp_path / "q", quantization=Quantization(8, 128))


def test_the_source_is_never_the_target(tmp_path: Path):
    source = copy_case(tmp_path, "vision_absolute", "timm")
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path / "link"):
        with pytest.raises(UsageError, match="source itself"):
            convert_checkpoint(source, target, overwrite=True)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            convert("vision_absolute", "timm", tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_cast_that_overflows_leaves_nothing(tmp_path: Path):
    source = copy_case(tmp_path, "vision_absolute", "timm")
    tensors = read_tensors(weight_file(source))
    tensors["norm.weight"] = ("F32", np.full(64, 1e5, np.float32))
    write_tensors(weight_file(source), tensors)
    with pytest.raises(CheckpointError, match="'norm.weight' overflows in float16"):
        convert_checkpoint(source, tmp_path / "m", dtype="float16")
    assert not (tmp_path / "m").exists()


def test_models_of_other_sizes_are_not_compared():
    a = open_checkpoint(DATA / "vision_absolute" / "timm")
    b = open_checkpoint(DATA / "vision_native_5x3" / "transformers")
    with pytest.raises(UsageError, match="same sizes"):
        similarity(a, b)


def test_the_probe_pictures_are_always_the_same_and_differ_from_each_other():
    pictures = probe_pictures(56)
    assert pictures.shape == (4, 56, 56, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures, probe_pictures(56))
    assert all(picture.std() > 20 for picture in pictures)


# Memory

_CONVERT = """
from aim_mlx.weights.convert import convert_checkpoint
from aim_mlx.weights.quantize import Quantization
import numpy, aim_mlx.backend
how = Quantization() if sys.argv[3] == "q" else None
before = peak()
convert_checkpoint(sys.argv[1], sys.argv[2], quantization=how)
print(peak() - before)
"""


@pytest.mark.parametrize("how", ["as it is", "q"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, how: str):
    """210 MB in 16 blocks of 13 MB: what is held is a block and a few pictures."""
    config = VisionConfig(512, 1408, 16, 4, 14, 56)
    path = tmp_path / "x.safetensors"
    rng = np.random.default_rng(0)
    tensors = {
        name: ("F32", rng.standard_normal(shape, np.float32) * np.float32(0.05))
        for name, shape in expected_shapes(config).items()
    }
    write_tensors(path, tensors)
    done = subprocess.run(
        [sys.executable, "-c", PEAK + _CONVERT, str(path), str(tmp_path / "m"), how],
        capture_output=True,
        text=True,
        timeout=100,
    )
    path.unlink()
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100e6, f"peak {int(done.stdout) / 1e6:.0f} MB over 210 MB of weights"


# The command


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli._run(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_says_on_stderr_what_the_conversion_cost(capsys, tmp_path: Path):
    source = DATA / "vision_absolute" / "timm"
    code, out, err = run(capsys, source, tmp_path / "m", "-q", "--q-bits", 4)
    assert (code, out) == (0, "") and len(err.splitlines()) == 1
    assert "affine 4 bits in groups of 64" in err and "cosine of 4 embeddings" in err


def test_the_lowest_cosine_is_that_of_the_worst_picture(capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("aim_mlx.weights.convert.similarity", lambda *_: [0.875, 0.5, 1.0, 0.625])
    err = run(capsys, DATA / "vision_absolute" / "timm", tmp_path / "m")[2]
    assert "mean 0.750000, lowest 0.500000" in err


def test_the_command_prints_one_summary_object(capsys, tmp_path: Path):
    source = DATA / "vision_absolute" / "timm"
    code, out, _ = run(capsys, source, tmp_path / "m", "--dtype", "float16", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["event"] == "summary" and facts["exit_code"] == 0
    assert facts["dtype"] == "float16" and facts["layout"] == "timm"
    assert len(facts["cosines"]) == 4
    code, out, _ = run(capsys, source, tmp_path / "n", "--no-compare", "--json")
    assert code == 0 and json.loads(out)["cosines"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--q-bits", 4], "need -q"),
        (["-q", "--q-bits", 7], "bits must be"),
        (["-q", "--q-mode", "nvfp4"], "mode must be one of"),
        (["-q", "--q-mode", "mxfp4", "--q-bits", 8], "bits must be 4"),
        (["--dtype", "int8"], "dtype must be one of"),
    ],
)
def test_what_the_command_cannot_do_is_a_usage_error(capsys, tmp_path, arguments, words):
    source = DATA / "vision_absolute" / "timm"
    code, out, err = run(capsys, source, tmp_path / "m", *arguments)
    assert (code, out) == (2, "") and words in err and not (tmp_path / "m").exists()


def test_a_full_disk_ends_the_command_with_5_and_leaves_nothing(capsys, tmp_path: Path):
    with full_from(300_000):
        code, out, err = run(capsys, DATA / "vision_absolute" / "timm", tmp_path / "m")
    assert (code, out) == (5, "") and "cannot write" in err
    assert not (tmp_path / "m").exists()


def test_an_unsound_source_and_a_taken_target_have_their_exit_codes(capsys, tmp_path: Path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_text("<html>")
    assert run(capsys, tmp_path / "bad", tmp_path / "m")[0] == 4
    assert run(capsys, DATA / "vision_absolute" / "timm", tmp_path / "bad")[0] == 5
