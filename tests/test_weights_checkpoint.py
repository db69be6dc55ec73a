"""A checkpoint is opened only when its files, names, shapes and config.json all agree."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aim_mlx.config import LiTConfig, PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.convert import convert_checkpoint
from aim_mlx.weights.quantize import Quantization
from aim_mlx.weights.sizes import expected_shapes
from tests.weights_files import (
    DATA,
    VISION_LAYOUTS,
    copy_case,
    edit_json,
    read_tensors,
    shard,
    weight_file,
    write_index,
    write_tensors,
)

ABSOLUTE = VisionConfig(64, 176, 3, 2, 14, 56)
NATIVE = VisionConfig(64, 176, 3, 2, 14, None)
LIT = LiTConfig(VisionConfig(64, 176, 2, 2, 14, 56), TextConfig(48, 128, 2, 3, 100, 12, 99), 32)


def rejected(path: Path, config: VisionConfig | LiTConfig | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path, config)
    text = str(error.value)
    assert "\n" not in text and len(text) < 900
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reference case as transformers publishes it: the layout with the most operations."""
    return copy_case(tmp_path, "vision_absolute", "transformers")


# What is accepted


@pytest.mark.parametrize("layout", VISION_LAYOUTS)
def test_a_published_folder_opens_with_its_sizes(layout: str):
    checkpoint = open_checkpoint(DATA / "vision_absolute" / layout)
    assert checkpoint.layout == VISION_LAYOUTS[layout]
    assert checkpoint.kind == "vision"
    assert checkpoint.config == ABSOLUTE
    rounding = "half_even" if layout == "timm" else "floor"  # as their own code crops
    assert checkpoint.preprocess == replace(PreprocessConfig.hub(56), crop_rounding=rounding)
    assert checkpoint.dtype == "float32"
    assert checkpoint.parameters == 189_760
    assert checkpoint.nbytes == 4 * 189_760
    assert checkpoint.trained and checkpoint.provenance == {}


@pytest.mark.parametrize("layout", ["ml_aim_mlx", "ml_aim_torch", "transformers"])
def test_no_position_tensor_means_native_resolution(layout: str):
    checkpoint = open_checkpoint(DATA / "vision_native_5x3" / layout)
    assert checkpoint.config == NATIVE
    assert checkpoint.preprocess == PreprocessConfig.hub(None)


@pytest.mark.parametrize("layout", ["ml_aim_mlx", "ml_aim_torch", "transformers"])
def test_a_lit_folder_opens_with_the_sizes_of_both_towers(layout: str):
    given_sizes = None if layout == "transformers" else LIT
    checkpoint = open_checkpoint(DATA / "lit" / layout, given_sizes)
    assert (checkpoint.kind, checkpoint.config) == ("lit", LIT)
    assert checkpoint.vision == LIT.vision
    assert checkpoint.preprocess == PreprocessConfig.hub(56)


def test_a_bare_lit_file_counts_heads_of_128_channels_and_ends_texts_with_the_last_token(
    tmp_path: Path,
):
    config = LiTConfig(VisionConfig(256, 24, 1, 2, 4, 8), TextConfig(128, 24, 1, 1, 50, 9, 49), 16)
    tensors = {n: ("F32", np.ones(s, np.float32)) for n, s in expected_shapes(config).items()}
    write_tensors(tmp_path / "x.safetensors", tensors)
    assert open_checkpoint(tmp_path / "x.safetensors").config == config


def test_bfloat16_weights_open_and_say_so():
    assert open_checkpoint(DATA / "vision_absolute" / "transformers_bf16").dtype == "bfloat16"


def test_weights_of_two_dtypes_are_mixed(folder: Path):
    tensors = read_tensors(weight_file(folder))
    tensors["rms_norm.weight"] = ("F16", tensors["rms_norm.weight"][1].astype(np.float16))
    write_tensors(weight_file(folder), tensors)
    assert open_checkpoint(folder).dtype == "mixed"


def test_a_single_file_uses_the_configs_beside_it(folder: Path):
    checkpoint = open_checkpoint(weight_file(folder))
    assert checkpoint.config == ABSOLUTE
    assert checkpoint.preprocess.crop_size == 56


def test_a_bare_file_takes_its_sizes_from_config(tmp_path: Path):
    source = weight_file(DATA / "vision_absolute" / "ml_aim_torch")
    bare = Path(shutil.copy(source, tmp_path / "any-name.safetensors"))
    assert open_checkpoint(bare, ABSOLUTE).config == ABSOLUTE
    assert open_checkpoint(bare, ABSOLUTE).preprocess == PreprocessConfig.hub(56)
    assert "128 channels" in rejected(bare)


def test_a_bare_file_counts_heads_of_128_channels(tmp_path: Path):
    config = VisionConfig(256, 24, 1, 2, 4, 8)
    tensors = {n: ("F32", np.ones(s, np.float32)) for n, s in expected_shapes(config).items()}
    write_tensors(tmp_path / "x.safetensors", tensors)
    assert open_checkpoint(tmp_path / "x.safetensors").config == config


def test_sizes_given_take_the_place_of_config_json(folder: Path):
    (folder / "config.json").write_text("not JSON")
    assert open_checkpoint(folder, ABSOLUTE).config == ABSOLUTE


def test_the_mlx_file_is_preferred_to_the_other(tmp_path: Path):
    folder = copy_case(tmp_path, "vision_absolute", "ml_aim_mlx")
    shutil.copy(weight_file(DATA / "vision_absolute" / "transformers"), folder)
    assert open_checkpoint(folder).layout == "ml-aim-mlx"


def test_shards_open_as_the_whole(folder: Path):
    whole = open_checkpoint(folder)
    shard(folder, 3)
    sharded = open_checkpoint(folder)
    assert len(sharded.files) == 3
    assert sharded.config == whole.config and sharded.parameters == whole.parameters


def test_a_hub_snapshot_whose_blobs_are_links_into_a_shared_store_opens(
    folder: Path, tmp_path: Path
):
    shard(folder)
    repo, store = tmp_path / "models--o--n", tmp_path / "blobs" / "ab"
    for made in (repo / "blobs", repo / "snapshots" / "abc", store):
        made.mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(store / str(i))
        (repo / "blobs" / str(i)).symlink_to(f"../../blobs/ab/{i}")
        (repo / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{i}")
    assert open_checkpoint(repo / "snapshots" / "abc").kind == "vision"


def test_a_hub_snapshot_of_links_into_its_blobs_opens(folder: Path, tmp_path: Path):
    shard(folder)
    repo = tmp_path / "models--apple--x"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / "abc").mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(repo / "blobs" / str(i))
        (repo / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{i}")
    assert open_checkpoint(repo / "snapshots" / "abc").config == ABSOLUTE


def test_class_defaults_that_mislead_and_remote_code_are_passed_over(folder: Path):
    edit_json(folder / "config.json", use_head=True, projection_dim=512, num_queries=256)
    edit_json(folder / "config.json", auto_map={"AutoModel": "evil.Model"})
    assert open_checkpoint(folder).config == ABSOLUTE


def test_a_native_config_may_repeat_the_default_image_size(tmp_path: Path):
    folder = copy_case(tmp_path, "vision_native_5x3", "transformers")
    edit_json(folder / "config.json", image_size=224)
    assert open_checkpoint(folder).vision.image_size is None


def test_silent_configs_leave_the_sizes_to_the_tensors(folder: Path):
    text = {"model_type": "aimv2", "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(text))
    config = open_checkpoint(folder).config
    assert config == VisionConfig(64, 176, 3, 4, 14, 56)


def test_the_epsilon_comes_from_config_json(folder: Path):
    edit_json(folder / "config.json", rms_norm_eps=1e-6)
    assert open_checkpoint(folder).vision.rms_norm_eps == 1e-6


def test_timm_states_the_preprocessing_where_no_other_file_does(tmp_path: Path):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    (folder / "preprocessor_config.json").unlink()
    edit_json(
        folder / "config.json",
        pretrained_cfg={"input_size": [3, 56, 56], "crop_pct": 0.875, "mean": [0.5] * 3},
    )
    preprocess = open_checkpoint(folder).preprocess
    assert (preprocess.shortest_edge, preprocess.crop_size) == (64, 56)
    assert preprocess.mean == (0.5, 0.5, 0.5) and preprocess.crop_rounding == "half_even"


def nest_processor(folder: Path, **changes: Any) -> Path:
    """Moves the image processor's values to where transformers 5 writes them."""
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text()) | changes
    path.unlink()
    nested = folder / "processor_config.json"
    nested.write_text(json.dumps({"image_processor": values, "processor_class": "CLIPProcessor"}))
    return nested


def test_the_image_processor_within_processor_config_json_decides(folder: Path):
    nest_processor(folder, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    expected = replace(PreprocessConfig.hub(56), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert open_checkpoint(folder).preprocess == expected


def test_two_files_on_preprocessing_must_agree(folder: Path):
    once = (folder / "preprocessor_config.json").read_bytes()
    nested = nest_processor(folder)
    (folder / "preprocessor_config.json").write_bytes(once)
    assert open_checkpoint(folder).preprocess == PreprocessConfig.hub(56)
    edit_json(nested, image_processor=json.loads(once) | {"image_mean": [0.5] * 3})
    assert "different preprocessing" in rejected(folder)
    nested.write_text('{"processor_class": "CLIPProcessor"}')  # as transformers 4 wrote it
    assert open_checkpoint(folder).preprocess == PreprocessConfig.hub(56)


@pytest.mark.parametrize("values", [[], "x", {}, {"image_mean": 5}])
def test_an_unsound_image_processor_is_refused_with_its_file(folder: Path, values):
    nested = nest_processor(folder)
    edit_json(nested, image_processor=values)
    assert "processor_config.json: expected" in rejected(folder)


def test_the_published_preprocessing_is_used_where_no_file_states_one(folder: Path):
    (folder / "preprocessor_config.json").unlink()
    assert open_checkpoint(folder).preprocess == PreprocessConfig.hub(56)


# Tensors that do not make an encoder


def change(folder: Path, name: str, dtype: str = "F32", shape: tuple[int, ...] | None = None):
    """Takes a tensor away (shape None) or puts in one of a dtype and shape."""
    tensors = read_tensors(weight_file(folder))
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = (dtype, np.zeros(shape))
    write_tensors(weight_file(folder), tensors)


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "I32", "I64"])
def test_a_weight_of_another_dtype_is_refused(folder: Path, dtype: str):
    change(folder, "rms_norm.weight", dtype, (64,))
    text = rejected(folder)
    assert "'rms_norm.weight'" in text and dtype in text and "BF16" in text


@pytest.mark.parametrize(
    "name",
    [
        "rms_norm.weight",
        "embeddings.patch_embed.bias",
        "embeddings.patch_embed.weight",
        "embeddings.rms_norm.weight",
        "encoder.layers.0.ffn.gate_proj.weight",
        "encoder.layers.1.rms_norm2.weight",
        "encoder.layers.2.attention.v_proj.weight",
    ],
)
def test_a_missing_tensor_is_refused_by_its_name_in_the_file(folder: Path, name: str):
    change(folder, name)
    text = rejected(folder)
    assert f"missing tensor '{name}'" in text


def test_missing_positions_contradict_a_config_that_states_a_size(folder: Path):
    change(folder, "embeddings.position_embedding.weight")
    edit_json(folder / "config.json", is_native=None)
    assert "image_size 56" in rejected(folder)


def test_a_missing_block_is_refused_naming_its_first_tensor(folder: Path):
    tensors = read_tensors(weight_file(folder))
    kept = {k: v for k, v in tensors.items() if "layers.1." not in k}
    write_tensors(weight_file(folder), kept)
    text = rejected(folder)
    assert "layers.1.attention.q_proj" in text and "6 others" in text


@pytest.mark.parametrize("name", ["head.weight", "rms_norm.bias", "encoder.layers.0.extra"])
def test_an_unexpected_tensor_is_refused_by_name(folder: Path, name: str):
    change(folder, name, shape=(64,))
    assert f"unexpected tensor '{name}'" in rejected(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rms_norm.weight", (65,)),
        ("rms_norm.weight", (64, 1)),
        ("encoder.layers.1.ffn.down_proj.weight", (176, 64)),
        ("encoder.layers.1.ffn.gate_proj.weight", (175, 64)),
        ("encoder.layers.1.attention.q_proj.weight", (63, 64)),
        ("embeddings.position_embedding.weight", (1, 16, 64)),
        ("embeddings.position_embedding.weight", (16, 65)),
        ("embeddings.patch_embed.weight", (64, 14, 14, 3)),
        ("embeddings.patch_embed.weight", (64, 588)),
    ],
)
def test_a_wrong_shape_is_refused_with_both_shapes(folder: Path, name: str, shape):
    change(folder, name, shape=shape)
    text = rejected(folder)
    assert "shape" in text and name in text


def test_positions_that_make_no_square_are_refused(folder: Path):
    change(folder, "embeddings.position_embedding.weight", shape=(15, 64))
    assert "15 positions" in rejected(folder)


def test_an_absurd_block_number_is_refused(folder: Path):
    change(folder, "encoder.layers.9999.rms_norm1.weight", shape=(64,))
    assert "num_blocks" in rejected(folder)


def test_tensors_of_two_layouts_are_refused(folder: Path):
    change(folder, "trunk.post_trunk_norm.weight", shape=(64,))
    assert "two layouts" in rejected(folder)


@pytest.mark.parametrize(
    "name", ["text_projection.weight", "logit_scale", "vision_model.head.k_proj.weight"]
)
def test_a_lit_model_that_lacks_a_tensor_is_refused(tmp_path: Path, name: str):
    folder = copy_case(tmp_path, "lit", "transformers")
    change(folder, name)
    assert f"missing tensor '{name}'" in rejected(folder)


# Files of a folder


def test_a_folder_without_weights_says_what_was_expected(tmp_path: Path):
    assert "mlx_model.safetensors" in rejected(tmp_path)


def test_a_missing_path_is_refused(tmp_path: Path):
    assert "does not exist" in rejected(tmp_path / "absent")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.pkl"])
def test_a_folder_of_pickles_is_refused_naming_the_converter(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    assert "python -m convert" in rejected(tmp_path)


def test_an_unsound_preferred_file_does_not_fall_back_to_another(folder: Path):
    (folder / "mlx_model.safetensors").write_text("<html></html>")
    assert "web page" in rejected(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        ".hidden.safetensors",
        "shard.bin",
        "nul\0.safetensors",
        "",
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_an_index_that_leaves_the_folder_is_refused(folder: Path, name: Any):
    weight_map: dict[str, Any] = dict(shard(folder))
    weight_map["rms_norm.weight"] = name
    write_index(folder, weight_map)
    assert "'rms_norm.weight'" in rejected(folder)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path):
    name = shard(folder)["rms_norm.weight"]
    (folder / name).rename(tmp_path / "outside.safetensors")
    (folder / name).symlink_to(tmp_path / "outside.safetensors")
    assert "leaves" in rejected(folder)


def test_a_shard_that_is_a_link_to_itself_is_refused(folder: Path):
    name = shard(folder)["rms_norm.weight"]
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    assert "cannot be opened" in rejected(folder)


def test_a_shard_that_is_a_link_within_the_folder_is_accepted(folder: Path):
    name = shard(folder)["rms_norm.weight"]
    (folder / name).rename(folder / "real.safetensors")
    (folder / name).symlink_to("real.safetensors")
    assert open_checkpoint(folder).config == ABSOLUTE


def test_a_missing_shard_is_named(folder: Path):
    name = shard(folder)["rms_norm.weight"]
    (folder / name).unlink()
    assert f"missing shard '{name}'" in rejected(folder)


def test_a_tensor_in_two_shards_is_named(folder: Path):
    weight_map = shard(folder)
    name, other = (
        "rms_norm.weight",
        next(s for s in weight_map.values() if s != weight_map["rms_norm.weight"]),
    )
    tensors = read_tensors(folder / other)
    write_tensors(folder / other, tensors | {name: ("F32", np.zeros(64, np.float32))})
    text = rejected(folder)
    assert f"'{name}' is in two shards" in text


def test_a_tensor_that_its_shard_lacks_is_named(folder: Path):
    weight_map = shard(folder)
    write_index(folder, weight_map | {"ghost": next(iter(weight_map.values()))})
    assert "'ghost'" in rejected(folder)


def test_a_tensor_that_the_index_lacks_is_named(folder: Path):
    weight_map = shard(folder)
    del weight_map["rms_norm.weight"]
    write_index(folder, weight_map)
    assert "'rms_norm.weight'" in rejected(folder)


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_an_index_without_a_map_is_refused(folder: Path, weight_map: Any):
    shard(folder)
    text = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    assert "weight_map" in rejected(folder)


# config.json


@pytest.mark.parametrize("layout", ["ml_aim_mlx", "transformers"])
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 128},
        {"intermediate_size": 177},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 24},
        {"patch_size": 16},
        {"image_size": 224},
        {"is_native": True},
        {"hidden_act": "gelu"},
        {"num_channels": 1},
        {"qkv_bias": True},
        {"use_bias": True},
        {"mlp_bias": True},
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path: Path, layout: str, changes):
    folder = copy_case(tmp_path, "vision_absolute", layout)
    edit_json(folder / "config.json", **changes)
    assert "config.json" in rejected(folder)


def test_heads_that_do_not_divide_the_width_are_refused(folder: Path):
    edit_json(folder / "config.json", num_attention_heads=3)
    assert "num_heads 3" in rejected(folder)


@pytest.mark.parametrize(
    "arguments",
    [{"embed_dim": 65}, {"depth": 2}, {"img_size": 224}, {"patch_size": 16}, {"mlp_ratio": 4.0}],
)
def test_timm_arguments_that_contradict_the_weights_are_refused(tmp_path: Path, arguments):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    edit_json(folder / "config.json", model_args=arguments | {"num_heads": 2})
    assert "config.json" in rejected(folder)


def test_a_ratio_that_timm_rounds_agrees_with_the_weights(tmp_path: Path):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    edit_json(folder / "config.json", model_args={"mlp_ratio": 2.76, "num_heads": 2})  # 176 / 64
    assert open_checkpoint(folder).config == ABSOLUTE


@pytest.mark.parametrize(
    "pretrained",
    [
        {"input_size": [3, 224, 224]},
        {"input_size": [1, 56, 56]},
        {"input_size": [3, 56, 28]},
        {"input_size": 56},
        {"input_size": [3, 56, 56], "interpolation": "bilinear"},
        {"input_size": [3, 56, 56], "crop_pct": 0},
        {"input_size": [3, 56, 56], "crop_pct": 1e-5},
        {"input_size": [3, 56, 56], "std": [0, 1, 1]},
        {"input_size": [3, 56, 56], "mean": "x"},
    ],
)
def test_timm_preprocessing_that_cannot_be_kept_is_refused(tmp_path: Path, pretrained):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    (folder / "preprocessor_config.json").unlink()
    edit_json(folder / "config.json", pretrained_cfg=pretrained, model_args={"num_heads": 2})
    rejected(folder)


def test_the_config_of_a_text_tower_alone_is_named(folder: Path):
    edit_json(folder / "config.json", model_type="aimv2_text_model")
    assert "both of its towers" in rejected(folder)


def test_a_vision_config_beside_lit_weights_is_refused(lit: Path, folder: Path):
    shutil.copy(folder / "config.json", lit)
    assert "vision encoder" in rejected(lit)


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"]
)
@pytest.mark.parametrize("value", [0, -1, 10**12, 10**400, 1.5, "64", True, [64, 32], {}, 1e308])
def test_an_absurd_size_is_refused(folder: Path, name: str, value: Any):
    edit_json(folder / "config.json", **{name: value})
    rejected(folder)


@pytest.mark.parametrize("value", [0, -1e-5, 2, "1e-5", True, 1e400])
def test_an_absurd_epsilon_is_refused(folder: Path, value: Any):
    edit_json(folder / "config.json", rms_norm_eps=value)
    rejected(folder)


@pytest.mark.parametrize(
    "model_type", ["clip", "siglip_vision_model", "aimv2_text_model", "", 7, ["aimv2"], None]
)
def test_a_wrong_model_type_is_refused(folder: Path, model_type: Any):
    edit_json(folder / "config.json", model_type=model_type)
    assert "model_type" in rejected(folder)


def test_a_wrong_timm_architecture_is_refused(tmp_path: Path):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    edit_json(folder / "config.json", architecture="vit_large_patch14")
    assert "vit_large_patch14" in rejected(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b'\xff\xfe{\x00"\x00', "byte-order mark"),
        (b"", "not valid JSON"),
        (b"hidden_size: 64", "not valid JSON"),
        (b"\x80\x81", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"7", "must be a JSON object"),
        (b'{"model_type":"aimv2","model_type":"aimv2"}', "twice"),
        (b'{"model_type":"aimv2","rms_norm_eps":NaN}', "NaN"),
        (b'{"a":' * 10_000, "nested too deeply"),
        (b"[" * 10_000, "nested too deeply"),
        (b'{"hidden_size":' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_config_that_is_no_plain_json_object_is_refused(folder: Path, content: bytes, words: str):
    (folder / "config.json").write_bytes(content)
    text = rejected(folder)
    assert words in text and "config.json" in text


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_json_file_of_100_megabytes_is_refused_before_it_is_read(folder: Path, name: str):
    os.truncate(folder / name, 100_000_000)
    assert "100000000 bytes" in rejected(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_json_file_that_is_a_pipe_or_broken_link_is_refused(folder: Path, name: str):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    rejected(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("absent")
    rejected(folder)


def test_sizes_given_that_contradict_the_weights_are_refused(folder: Path):
    text = rejected(folder, VisionConfig(64, 176, 2, 2, 14, 56))
    assert text == "config= states num_blocks 2, the weights have 3: correct config="
    rejected(folder, VisionConfig(64, 176, 3, 2, 14, 70))
    rejected(folder, NATIVE)


@pytest.fixture
def lit(tmp_path: Path) -> Path:
    return copy_case(tmp_path, "lit", "transformers")


def edit_tower(folder: Path, tower: str, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())[tower]
    edit_json(folder / "config.json", **{tower: values | changes})


@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 128},
        {"intermediate_size": 177},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 5},
        {"hidden_act": "gelu"},
        {"qkv_bias": True},
    ],
)
def test_a_lit_config_that_contradicts_either_tower_is_refused(lit: Path, tower: str, changes):
    edit_tower(lit, tower, **changes)
    rejected(lit)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 101},
        {"max_position_embeddings": 77},
        {"eos_token_id": 100},
        {"eos_token_id": -1},
        {"eos_token_id": [99]},
        {"eos_token_id": True},
    ],
)
def test_a_text_config_that_contradicts_the_weights_is_refused(lit: Path, changes):
    edit_tower(lit, "text_config", **changes)
    rejected(lit)


def test_each_tower_takes_what_tensors_cannot_state_from_its_own_config(lit: Path):
    edit_tower(lit, "text_config", num_attention_heads=6, rms_norm_eps=1e-6, eos_token_id=0)
    edit_json(lit / "config.json", max_logit_scale=50.0)
    config = open_checkpoint(lit).config
    assert isinstance(config, LiTConfig)
    assert config.vision == LIT.vision and config.max_logit_scale == 50
    assert config.text == TextConfig(48, 128, 2, 6, 100, 12, 0, 1e-6)


def test_a_projection_dim_is_believed_unless_it_is_the_class_default(lit: Path):
    edit_json(lit / "config.json", projection_dim=512)
    assert open_checkpoint(lit).config == LIT
    edit_json(lit / "config.json", projection_dim=64)
    assert "projection_dim 64" in rejected(lit)


@pytest.mark.parametrize("value", [0.5, 1e5, "100", True])
def test_an_absurd_bound_of_the_logit_scale_is_refused(lit: Path, value: Any):
    edit_json(lit / "config.json", max_logit_scale=value)
    rejected(lit)


@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
@pytest.mark.parametrize("value", [[], "x", 7])
def test_a_tower_that_is_no_object_is_refused(lit: Path, tower: str, value: Any):
    edit_json(lit / "config.json", **{tower: value})
    assert tower in rejected(lit)


def test_sizes_given_for_the_other_kind_are_refused(lit: Path, folder: Path):
    assert "config= states a vision encoder" in rejected(lit, LIT.vision)
    assert "config= states a LiT model" in rejected(folder, LIT)


# AIMv1

AIMV1 = VisionConfig(64, 256, 4, 2, 14, 56, 1e-6, "aimv1")
# As the reference code states the sizes.
ML_AIM = {"img_size": 56, "patch_size": 14, "embed_dim": 64, "num_blocks": 4, "num_heads": 2}


@pytest.fixture
def aimv1(tmp_path: Path) -> Path:
    folder = copy_case(tmp_path, "aimv1_probe", "ml_aim_torch")
    (folder / "config.json").write_text(json.dumps(ML_AIM | {"probe_layers": [1, 2]}))
    return folder


def test_an_aimv1_folder_opens_with_its_sizes_and_the_preprocessing_of_its_paper(aimv1: Path):
    checkpoint = open_checkpoint(aimv1)
    assert (checkpoint.kind, checkpoint.layout) == ("vision", "ml-aim-torch")
    assert checkpoint.config == AIMV1 and not checkpoint.heads_assumed
    assert checkpoint.preprocess == PreprocessConfig.imagenet(56)


def test_a_bare_aimv1_file_is_for_224_pixels_and_heads_of_128_channels(tmp_path: Path):
    config = VisionConfig(256, 24, 1, 2, 14, 224, 1e-6, "aimv1")
    tensors = {n: ("F32", np.ones(s, np.float32)) for n, s in expected_shapes(config).items()}
    write_tensors(tmp_path / "x.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.config == config and checkpoint.heads_assumed


@pytest.mark.parametrize(
    "name",
    ["preprocessor.patchifier.norm.bias", "trunk.blocks.2.mlp.fc1.weight", "trunk.blocks.3.norm_2"],
)
def test_a_missing_tensor_of_aimv1_is_refused_by_name(aimv1: Path, name: str):
    tensors = read_tensors(weight_file(aimv1))
    write_tensors(weight_file(aimv1), {n: t for n, t in tensors.items() if name not in n})
    assert f"missing tensor '{name}" in rejected(aimv1)


@pytest.mark.parametrize("name", ["trunk.blocks.1.mlp.fc2.weight", "trunk.post_trunk_norm.bias"])
def test_a_wrong_shape_in_aimv1_is_refused_by_name(aimv1: Path, name: str):
    tensors = read_tensors(weight_file(aimv1))
    tensors[name] = "F32", np.zeros((64, 64), np.float32)
    write_tensors(weight_file(aimv1), tensors)
    assert f"wrong shape of tensor '{name}'" in rejected(aimv1)


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 128},
        {"num_blocks": 5},
        {"num_heads": 3},
        {"mlp_ratio": 3},
        {"img_size": 60},
        {"img_size": "56"},
        {"use_bias": True},
    ],
)
def test_a_config_that_contradicts_aimv1s_weights_is_refused(aimv1: Path, changes):
    edit_json(aimv1 / "config.json", **changes)
    rejected(aimv1)


def test_the_config_of_one_family_beside_weights_of_the_other_is_refused(aimv1: Path, folder: Path):
    shutil.copy(folder / "config.json", aimv1)
    rejected(aimv1)
    sizes = ML_AIM | {"num_blocks": 3}
    (folder / "config.json").write_text(json.dumps(sizes))
    assert "states family 'aimv1', the weights have aimv2" in rejected(folder)
    assert "states family 'aimv2', the weights have aimv1" in rejected(
        aimv1, replace(AIMV1, family="aimv2")
    )


# Fuzzing: the outcome is a Checkpoint or a CheckpointError.

fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
odd = odd | st.lists(odd, max_size=3) | st.dictionaries(st.text(max_size=3), odd, max_size=2)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        ("vision_absolute", "ml_aim_torch"),
        ("vision_absolute", "transformers"),
        ("vision_absolute", "timm"),
        ("lit", "transformers"),
        ("lit", "ours"),
    ],
)
@fuzz
@given(data=st.data())
def test_any_config_opens_or_is_refused(
    tmp_path: Path, case: str, layout: str, data: st.DataObject
):
    folder, published = tmp_path / "case", DATA / case / layout
    if layout == "ours":
        published = tmp_path / "ours"
        if not published.exists():
            source, how = DATA / case / "transformers", Quantization(8, 32)
            convert_checkpoint(source, published, quantization=how, compare=False)
    if not folder.exists():
        shutil.copytree(published, folder)
    values = json.loads((published / "config.json").read_text())
    for place in [values, *values.values(), *values.get("encoder", {}).values()]:
        if isinstance(place, dict) and data.draw(st.booleans()):
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(odd)
    (folder / "config.json").write_text(json.dumps(values))
    opens_or_refuses(folder)


@fuzz
@given(data=st.data())
def test_any_set_of_tensors_opens_or_is_refused(tmp_path: Path, data: st.DataObject):
    tensors = read_tensors(weight_file(DATA / "vision_absolute" / "transformers"))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        dtype, values = tensors.pop(name)
        action = data.draw(st.sampled_from(["drop", "rename", "reshape", "retype"]))
        if action == "rename":
            number = data.draw(st.sampled_from(["0", "1", "2", "3", "02", "99999"]))
            tensors[name.replace(".1.", f".{number}.")] = dtype, values
        elif action == "reshape":
            shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=5)))
            tensors[name] = dtype, np.zeros(shape, values.dtype)
        elif action == "retype":
            tensors[name] = data.draw(st.sampled_from(["F16", "F64", "I32"])), values
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors)
    opens_or_refuses(path, data.draw(st.sampled_from([None, ABSOLUTE])))


def opens_or_refuses(path: Path, config: VisionConfig | None = None) -> None:
    try:
        assert isinstance(open_checkpoint(path, config), Checkpoint)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_a_message_stays_one_line_whatever_the_file_is_called(tmp_path: Path):
    (tmp_path / "evil\n\x1b[31m.bin").write_bytes(b"")
    text = rejected(tmp_path)
    assert "\x1b" not in text and "python -m convert" in text
