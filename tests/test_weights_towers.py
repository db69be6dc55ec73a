"""The AIMv2 tower of a multimodal checkpoint: it alone is found, read, described and converted."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.cli import main as cli
from aim_mlx.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, PreprocessConfig
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.registry import MODELS
from aim_mlx.weights import safetensors_file
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.convert import convert_checkpoint
from aim_mlx.weights.hub import fetch
from aim_mlx.weights.inspect import describe
from aim_mlx.weights.layouts import layout_named
from aim_mlx.weights.load import load_weights
from aim_mlx.weights.rules import Layout
from aim_mlx.weights.strict_json import read_object
from aim_mlx.weights.towers import TOWERS, described
from aim_mlx.weights.transformers_folder import save_for_transformers
from tests.hub_server import serving
from tests.small import photo
from tests.towers import LAYOUTS, TOWER, config_json, save, tower_weights
from tests.weights_files import (
    copy_case,
    edit_json,
    read_tensors,
    weight_file,
    write_index,
    write_tensors,
)

INDEX = "model.safetensors.index.json"
PREFIX = {tower.layout: tower.prefix for tower in TOWERS}
BESIDE = {
    "ovis2": {"llm": 27, "visual_tokenizer.head": 3, "vte": 1},
    "ovis2-transformers": {
        "model.language_model": 26, "model.vision_tower.head_norm": 2, "lm_head": 1,
        "model.vision_tower.head_linear": 1, "model.visual_embeddings_table": 1,
    },
    "sail-vl": {"language_model": 27, "mlp1": 2},
}  # fmt: skip


@pytest.fixture(scope="module", params=LAYOUTS)
def published(tmp_path_factory, request) -> tuple[str, Path]:
    """A layout, and a checkpoint of it in four shards that no test changes."""
    folder = tmp_path_factory.mktemp("towers") / request.param
    return request.param, save(folder, request.param)


@pytest.fixture
def ovis2(tmp_path: Path) -> Path:
    """A checkpoint of Ovis2's own layout in one shard, for tests that change it."""
    return save(tmp_path / "ovis2", "ovis2", shards=1)


def rejected(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def change(folder: Path, **tensors: tuple[str, np.ndarray] | None) -> None:
    """Puts tensors into a checkpoint of one shard, or takes them away; dots are written as __."""
    path, changes = weight_file(folder), {n.replace("__", "."): t for n, t in tensors.items()}
    changed = {n: t for n, t in (read_tensors(path) | changes).items() if t is not None}
    path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    write_tensors(folder / "model.safetensors", changed)


# What is found


def test_the_tower_of_a_multimodal_checkpoint_opens_with_its_sizes(published):
    layout, folder = published
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.layout, checkpoint.kind) == (layout, "vision")
    assert checkpoint.config == TOWER
    assert checkpoint.dtype == "float16" and not checkpoint.heads_assumed
    assert checkpoint.nbytes == 2 * checkpoint.parameters
    assert all(name.startswith(PREFIX[layout]) for name in checkpoint.tensors)


def test_every_tensor_of_the_tower_comes_under_our_name_bit_for_bit(published):
    loaded = load_weights(open_checkpoint(published[1]))
    for name, wanted in tower_weights(TOWER).items():
        assert (np.array(loaded.pop(name)) == wanted).all(), name
    assert not loaded


def test_other_tensors_are_counted_by_how_their_names_begin(published):
    layout, folder = published
    assert open_checkpoint(folder).beside == BESIDE[layout]


def test_a_single_file_without_configs_is_known_by_its_names(published, tmp_path: Path):
    layout, folder = published
    everything = {}
    for shard in sorted(folder.glob("*.safetensors")):
        everything |= read_tensors(shard)
    write_tensors(tmp_path / "x.safetensors", everything)
    checkpoint = open_checkpoint(tmp_path / "x.safetensors", TOWER)
    assert (checkpoint.layout, checkpoint.beside) == (layout, BESIDE[layout])


def test_shards_without_a_part_of_the_tower_need_not_be_there(published, tmp_path: Path):
    layout, folder = published
    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    weight_map = read_object(copy / INDEX)["weight_map"]
    needed = {shard for name, shard in weight_map.items() if name.startswith(PREFIX[layout])}
    unneeded = set(weight_map.values()) - needed
    assert unneeded
    for shard in unneeded:
        (copy / shard).unlink()
    assert open_checkpoint(copy).beside == BESIDE[layout]
    (copy / sorted(needed)[-1]).unlink()
    assert "missing shard" in rejected(copy)


def test_no_byte_of_another_tensor_is_read(published, monkeypatch):
    read: list[int] = []
    preadv = os.preadv

    def counting(*arguments):
        read.append(preadv(*arguments))
        return read[-1]

    checkpoint = open_checkpoint(published[1])
    monkeypatch.setattr(safetensors_file.os, "preadv", counting)
    load_weights(checkpoint)
    assert sum(read) == checkpoint.nbytes


@pytest.mark.parametrize(
    ("layout", "fit", "mean"),
    [
        ("ovis2", "pad", CLIP_MEAN),
        ("ovis2-transformers", "squash", CLIP_MEAN),
        ("sail-vl", "squash", IMAGENET_MEAN),
    ],
)
def test_images_are_prepared_as_the_models_own_code_does(tmp_path, layout, fit, mean):
    std = {CLIP_MEAN: CLIP_STD, IMAGENET_MEAN: IMAGENET_STD}[mean]
    folder = save(tmp_path / "m", layout)
    assert open_checkpoint(folder).preprocess == PreprocessConfig(70, 70, mean, std, fit=fit)


@pytest.mark.parametrize(
    ("layout", "size", "fit"),
    [
        ("ovis2", {"size": {"shortest_edge": 84}, "do_center_crop": False}, "pad"),
        ("ovis2-transformers", {"size": {"height": 84, "width": 84}}, "squash"),
        ("sail-vl", {"size": {"shortest_edge": 84}, "do_center_crop": True}, "crop"),
    ],
)
def test_what_the_image_processor_states_decides(tmp_path: Path, layout, size, fit):
    values = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    kind = "Ovis2ImageProcessor" if layout == "ovis2-transformers" else "CLIPImageProcessor"
    values |= {"crop_size": {"height": 84, "width": 84}, "image_processor_type": kind} | size
    folder = save(tmp_path / "m", layout)
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    wanted = PreprocessConfig(84, 84, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), fit=fit)
    assert open_checkpoint(folder).preprocess == wanted


# What is refused


@pytest.fixture
def damaged(published, tmp_path: Path) -> tuple[Layout, Path]:
    """The names of a layout, and a checkpoint in shards for tests that damage it."""
    layout, folder = published
    return layout_named(layout), Path(shutil.copytree(folder, tmp_path / "damaged"))


def put(folder: Path, name: str, tensor: tuple[str, np.ndarray] | None) -> str:
    """Replaces a tensor in its shard, or takes it away; the name of the shard."""
    weight_map = read_object(folder / INDEX)["weight_map"]
    shard = folder / weight_map[name]
    changed = read_tensors(shard) | ({} if tensor is None else {name: tensor})
    if tensor is None:
        del changed[name], weight_map[name]
        write_index(folder, weight_map)
    write_tensors(shard, changed)
    return shard.name


WRONG = [
    ("trunk.post_trunk_norm.weight", "F16", (65,)),
    ("trunk.post_trunk_norm.weight", "F16", (64, 1)),
    ("trunk.blocks.1.mlp.fc1.weight", "F16", (175, 64)),
    ("trunk.blocks.1.mlp.fc2.weight", "F16", (176, 64)),
    ("trunk.blocks.2.attn.qkv.weight", "F16", (191, 64)),
    ("preprocessor.pos_embed", "F16", (24, 64)),
    ("preprocessor.pos_embed", "F16", (1, 25, 65)),
    ("preprocessor.patchifier.proj.weight", "F16", (64, 14, 14, 3)),
    ("preprocessor.patchifier.proj.weight", "F16", (64, 588)),
    ("trunk.blocks.0.norm_1.weight", "F64", (64,)),
    ("trunk.blocks.0.norm_1.weight", "I32", (64,)),
    ("trunk.blocks.0.norm_1.weight", "F8_E4M3", (64,)),
]


@pytest.mark.parametrize(("ours", "dtype", "shape"), WRONG)
def test_a_wrong_shape_or_dtype_is_refused_by_name(damaged, ours, dtype, shape):
    layout, folder = damaged
    name = layout.source_names(ours)[0]
    put(folder, name, (dtype, np.ones(shape)))
    text = rejected(folder)
    assert name in text and any(word in text for word in ("shape", "positions", dtype))


@pytest.mark.parametrize(
    "ours",
    [
        "preprocessor.patchifier.proj.weight",
        "preprocessor.patchifier.norm.weight",
        "trunk.blocks.0.attn.qkv.weight",
        "trunk.blocks.1.norm_2.weight",
        "trunk.blocks.2.mlp.fc3.weight",
        "trunk.post_trunk_norm.weight",
    ],
)
def test_a_missing_tensor_is_refused_by_its_name_in_the_file(damaged, ours):
    layout, folder = damaged
    name = layout.source_names(ours)[-1]
    put(folder, name, None)
    assert f"missing tensor '{name}'" in rejected(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_refused_when_it_is_read(damaged, value):
    layout, folder = damaged
    name = layout.source_names("trunk.blocks.1.norm_1.weight")[0]
    put(folder, name, ("F16", np.full(64, value)))
    with pytest.raises(CheckpointError, match="NaN or infinity") as error:
        load_weights(open_checkpoint(folder))
    assert name in str(error.value)


@pytest.mark.parametrize("place", ["../x.safetensors", "/x.safetensors", "x.bin", "", 7, None])
def test_an_index_that_leaves_the_folder_is_refused(damaged, place):
    _, folder = damaged
    weight_map = read_object(folder / INDEX)["weight_map"]
    name = next(iter(weight_map))  # of the language model: its shard is not needed
    write_index(folder, weight_map | {name: place})
    assert f"'{name}'" in rejected(folder)


def test_the_index_must_agree_with_the_shards_that_are_read(damaged):
    layout, folder = damaged
    weight_map = read_object(folder / INDEX)["weight_map"]
    name = layout.source_names("trunk.post_trunk_norm.weight")[0]
    write_index(folder, weight_map | {"ghost": weight_map[name]})
    assert "'ghost'" in rejected(folder)
    other = next(s for n, s in weight_map.items() if n.startswith(PREFIX[layout.name]))
    assert other != weight_map[name]
    write_index(folder, weight_map | {name: other})
    assert f"'{name}'" in rejected(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"\x80\x02}q\x00.", "pickle"),
        ((2**62).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    ],
)
def test_a_shard_with_a_part_of_the_tower_that_is_no_safetensors_file_is_refused(
    damaged, content, words
):
    layout, folder = damaged
    weight_map = read_object(folder / INDEX)["weight_map"]
    shard = weight_map[layout.source_names("trunk.post_trunk_norm.weight")[0]]
    (folder / shard).write_bytes(content)
    text = rejected(folder)
    assert words in text and shard in text


@pytest.mark.parametrize("name", ["trunk.blocks.0.attn.qkv.bias", "trunk.blocks.0.norm_3.weight"])
def test_a_tensor_of_the_tower_that_does_not_fit_is_named(ovis2: Path, name: str):
    change(ovis2, **{f"visual_tokenizer.backbone.{name}": ("F16", np.ones(64))})
    text = rejected(ovis2)
    assert "unexpected tensor" in text and name in text


def test_a_missing_tensor_of_the_tower_is_named(ovis2: Path):
    name = "visual_tokenizer.backbone.trunk.blocks.1.mlp.fc3.weight"
    change(ovis2, **{name: None})
    text = rejected(ovis2)
    assert "missing tensor" in text and name in text


def test_a_dtype_is_refused_in_the_tower_and_passed_over_beside_it(ovis2: Path):
    change(ovis2, llm__scales=("F8_E4M3", np.ones(3)), vte__weight=("F64", np.ones((2, 2))))
    assert open_checkpoint(ovis2).dtype == "float16"
    name = "visual_tokenizer.backbone.trunk.post_trunk_norm.weight"
    change(ovis2, **{name: ("F64", np.ones(64))})
    assert "dtype F64" in rejected(ovis2) and name in rejected(ovis2)


def test_a_checkpoint_with_two_towers_is_refused(ovis2: Path):
    other = "vision_model.trunk.post_trunk_norm.weight"
    change(ovis2, **{other: ("F16", np.ones(64))})
    text = rejected(ovis2)
    assert "more than one AIMv2 tower" in text
    assert other in text and "visual_tokenizer.backbone." in text


def test_a_tower_beside_an_encoder_is_refused(ovis2: Path):
    conv = "preprocessor.patchifier.proj.weight"
    change(ovis2, **{conv: ("F16", np.ones((64, 3, 14, 14)))})
    text = rejected(ovis2)
    assert "more than one AIMv2 tower" in text and f"'{conv}'" in text


def test_a_checkpoint_without_a_tower_is_refused(ovis2: Path):
    tensors = read_tensors(weight_file(ovis2))
    change(ovis2, **{name: None for name in tensors if "backbone" in name})
    text = rejected(ovis2)
    assert "none of its 31 tensors is one of an AIMv2 tower" in text
    (ovis2 / "config.json").unlink()
    assert "no known layout has the tensor" in rejected(ovis2)


def test_an_encoder_beside_the_config_of_a_multimodal_model_is_refused(tmp_path: Path):
    folder = copy_case(tmp_path, "vision_absolute", "transformers")
    (folder / "config.json").write_text(json.dumps(config_json("ovis2")))
    assert "is one of an AIMv2 tower" in rejected(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_config_with_another_tower_is_refused(tmp_path: Path, layout: str):
    folder = save(tmp_path / "m", layout)
    text = (folder / "config.json").read_text()
    for known in ("aimv2", "ovis2_vision"):
        text = text.replace(f'"model_type": "{known}"', '"model_type": "siglip2_navit"')
    (folder / "config.json").write_text(text)
    assert "'siglip2_navit'" in rejected(folder) and "no AIMv2 tower" in rejected(folder)


def test_a_config_that_contradicts_the_tower_is_refused(ovis2: Path):
    tokenizer = config_json("ovis2")["visual_tokenizer_config"]
    tokenizer["backbone_config"]["num_hidden_layers"] = 4
    edit_json(ovis2 / "config.json", visual_tokenizer_config=tokenizer)
    assert "states num_blocks 4, the weights have 3" in rejected(ovis2)


# What is done with it


def test_vectors_are_those_of_the_tower_by_itself(published, tmp_path: Path):
    layout, folder = published
    encoder = aim_mlx.load(folder)
    done = convert_checkpoint(folder, tmp_path / "tower", compare=False)
    assert (done.layout, done.dtype) == (layout, "float16")
    alone = aim_mlx.load(tmp_path / "tower")
    assert alone.preprocessing == encoder.preprocessing
    assert alone.weights_digest == encoder.weights_digest
    images = [photo(0), photo(1, 90, 30)]
    # The same weights and pixels through the same kernels.
    assert (alone.embed(images) == encoder.embed(images)).all()


def test_the_converted_tower_is_an_ordinary_folder(published, tmp_path: Path):
    convert_checkpoint(published[1], tmp_path / "tower", compare=False)
    checkpoint = open_checkpoint(tmp_path / "tower")
    assert checkpoint.layout == "ml-aim-mlx" and checkpoint.tower is None
    assert {path.name for path in (tmp_path / "tower").iterdir()} == {
        "model.safetensors", "config.json",
    }  # fmt: skip


def test_a_folder_for_transformers_states_that_images_are_squashed(tmp_path: Path):
    weights = {name: mx.array(values) for name, values in tower_weights(TOWER).items()}
    squash = replace(PreprocessConfig.hub(70), fit="squash")
    save_for_transformers(tmp_path / "m", weights, TOWER, squash)
    assert open_checkpoint(tmp_path / "m").preprocess == squash
    with pytest.raises(UsageError, match="does not pad"):
        save_for_transformers(tmp_path / "n", weights, TOWER, replace(squash, fit="pad"))
    assert not (tmp_path / "n").exists()


def test_inspect_says_what_the_checkpoint_and_its_tower_are(published, capsys):
    layout, folder = published
    assert cli._run(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    family = "a SAIL-VL" if layout == "sail-vl" else "an Ovis2"
    tower = f"{family} checkpoint: its tower is AIMv2 of width 64 and 3 blocks at 70 pixels"
    assert any(line.split(maxsplit=1) == ["tower", tower] for line in lines)
    beside = ", ".join(f"{name} {count}" for name, count in BESIDE[layout].items())
    assert any(line.split(maxsplit=1) == ["beside", beside] for line in lines)
    assert json.loads(json.dumps(describe(folder)))["beside"] == BESIDE[layout]


@pytest.mark.parametrize("size", ["large", "huge", "1B"])
def test_a_tower_of_published_sizes_is_called_by_its_name(size: str):
    config = MODELS[f"aimv2-{size}-patch14-448"].vision
    wanted = f"an Ovis2 checkpoint: its tower is AIMv2-{size} at 448 pixels"
    assert described(TOWERS[0], config) == wanted
    assert "at native resolution" in described(TOWERS[0], replace(config, image_size=None))


def test_only_the_files_that_hold_the_tower_are_downloaded(published, monkeypatch, tmp_path: Path):
    layout, folder = published
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"tokenizer.json": b"{}", "vocab.json": b"{}", "README.md": b"x"}
    weight_map = json.loads(files[INDEX])["weight_map"]
    needed = {shard for name, shard in weight_map.items() if name.startswith(PREFIX[layout])}
    with serving(monkeypatch, tmp_path / "home") as hub:
        commit = hub.add("owner/model", files)
        got = fetch("owner/model")
        assert sorted(hub.paths("GET")) == sorted({"config.json", INDEX} | needed)
        assert open_checkpoint(got).config == TOWER
        asked = len(hub.log)
        assert fetch("owner/model", commit) == fetch("owner/model", commit, offline=True) == got
        assert len(hub.log) == asked
