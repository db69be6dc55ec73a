"""Sizes and preprocessing: bad values are refused where they are made."""

import json

import pytest

from aim_mlx.config import (
    LiTConfig,
    PreprocessConfig,
    TextConfig,
    VisionConfig,
    from_dict,
    to_dict,
)
from aim_mlx.errors import CheckpointError

VISION = VisionConfig(64, 176, 3, 2, 14, 56)
TEXT = TextConfig(48, 128, 2, 3, 100, 12, 99)
CONFIGS = [
    VISION,
    VisionConfig(64, 176, 3, 2),
    TEXT,
    LiTConfig(VISION, TEXT, 32),
    PreprocessConfig.hub(56),
    PreprocessConfig.hub(None),
    PreprocessConfig.imagenet(224),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_a_config_survives_json(config):
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(type(config), values) == config


BAD_VISION = [
    ({"embed_dim": 0}, "embed_dim"),
    ({"embed_dim": 64.0}, "embed_dim"),
    ({"embed_dim": True}, "embed_dim"),
    ({"embed_dim": 10**12}, "embed_dim"),
    ({"num_heads": 5}, "multiple of num_heads"),
    ({"image_size": 57}, "multiple of patch_size"),
    ({"image_size": 0}, "image_size"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ({"embed_dim": 66, "num_heads": 2, "image_size": None}, "multiple of 4"),
    ({"colour": 1}, "unknown field 'colour'"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_VISION)
def test_impossible_sizes_are_refused(change, reason):
    with pytest.raises(CheckpointError, match=reason):
        from_dict(VisionConfig, to_dict(VISION) | change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"eos_token_id": 100}, "eos_token_id"), ({"vocab_size": 0}, "vocab_size")],
)
def test_impossible_text_sizes_are_refused(change, reason):
    with pytest.raises(CheckpointError, match=reason):
        from_dict(TextConfig, to_dict(TEXT) | change)


@pytest.mark.parametrize("scale", [0.5, float("inf"), None])
def test_an_impossible_logit_scale_is_refused(scale):
    with pytest.raises(CheckpointError, match="max_logit_scale"):
        LiTConfig(VISION, TEXT, 32, scale)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crop_size": None}, "both"),
        ({"crop_size": 300}, "larger than"),
        ({"std": [0.0, 1.0, 1.0]}, "1e-6"),
        ({"std": [1e-320, 1.0, 1.0]}, "1e-6"),
        ({"mean": [0.0, 1.0]}, "three"),
        ({"mean": [0.0, 1.0, float("inf")]}, "finite"),
        ({"shortest_edge": 1.5}, "shortest_edge"),
        ({"crop_rounding": "up"}, "floor, half_even"),
        ({"crop_rounding": []}, "floor, half_even"),
        ({"fit": "stretch"}, "crop, squash, pad"),
        ({"fit": "pad", "shortest_edge": 448, "crop_size": 224}, "equal to shortest_edge"),
        ({"fit": "squash", "shortest_edge": None, "crop_size": None}, "equal to shortest_edge"),
    ],
)
def test_impossible_preprocessing_is_refused(change, reason):
    with pytest.raises(CheckpointError, match=reason):
        from_dict(PreprocessConfig, to_dict(PreprocessConfig.hub(224)) | change)


def test_a_missing_field_and_a_list_are_refused():
    with pytest.raises(CheckpointError, match="mlp_hidden_dim"):
        from_dict(VisionConfig, {"embed_dim": 64})
    with pytest.raises(CheckpointError, match="expected an object"):
        from_dict(VisionConfig, [64])


def test_the_paper_evaluates_after_resizing_to_the_size_over_seven_eighths():
    assert PreprocessConfig.imagenet(224).shortest_edge == 256
