"""The registry against the published facts."""

import re
from math import prod

import pytest

from aim_mlx.config import HEAD_DIM, LiTConfig
from aim_mlx.errors import UsageError
from aim_mlx.registry import DEFAULT_MODEL, MODELS, STAND_INS, find_model
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.sizes import expected_shapes

PUBLISHED = {name: spec for name, spec in MODELS.items() if spec.repo}
PARAMETERS = {"large": 309.2e6, "huge": 680.9e6, "1B": 1.235e9, "3B": 2.72e9, "base": 85.6e6}


def test_all_sixteen_published_models_are_there_under_their_own_names():
    assert len(PUBLISHED) == 16
    for name, spec in PUBLISHED.items():
        assert spec.name == name and spec.repo == f"apple/{name}"
        assert re.fullmatch("[0-9a-f]{40}", str(spec.revision))
    assert len({spec.revision for spec in PUBLISHED.values()}) == 16


def test_the_four_models_of_aimv1_are_there_under_their_own_names():
    first = {name: spec for name, spec in MODELS.items() if spec.family == "AIMv1"}
    assert list(first) == [f"aim-{n}-imgs" for n in ("600M-2B", "1B-5B", "3B-5B", "7B-5B")]
    for spec in first.values():
        assert spec.repo is None and str(spec.pickle).endswith("_attnprobe_backbone.pth")
        assert spec.vision.head_dim == HEAD_DIM and spec.vision.mlp_ratio == 4
        assert spec.preprocess.shortest_edge == 256 and spec.licence == "apple-amlr"
        assert len(spec.best_layers) == 6 and spec.top1 and spec.best_top1
        assert spec.top1 < spec.best_top1 and max(spec.best_layers) < spec.vision.num_blocks - 4


@pytest.mark.parametrize(
    "spec", [s for s in MODELS.values() if s.family in ("AIMv2", "LiT")], ids=lambda spec: spec.name
)
def test_sizes_are_those_that_the_name_says(spec):
    size, pixels = spec.name.split("-")[1], spec.name.split("-")[3]
    assert spec.vision.image_size == (None if pixels == "native" else int(pixels))
    assert spec.vision.head_dim == HEAD_DIM and spec.vision.patch_size == 14
    assert spec.preprocess.crop_size == spec.vision.image_size
    if spec.vision.image_size == 224:
        parameters = sum(prod(shape) for shape in expected_shapes(spec.vision).values())
        assert parameters == pytest.approx(PARAMETERS[size], rel=2e-3)


def test_the_lit_model_has_both_towers():
    config = MODELS["aimv2-large-patch14-224-lit"].config
    assert isinstance(config, LiTConfig)
    assert config.text.embed_dim == HEAD_DIM * config.text.num_heads
    assert (config.text.context_length, config.text.vocab_size) == (77, 49_408)


def test_the_small_models_are_what_their_folders_hold():
    brought = [spec for spec in MODELS.values() if spec.folder]
    assert [spec.name for spec in brought] == list(STAND_INS.values())
    for spec in brought:
        assert spec.folder
        checkpoint = open_checkpoint(spec.folder)
        assert (checkpoint.config, checkpoint.preprocess) == (spec.config, spec.preprocess)
        assert checkpoint.dtype == "float16" and checkpoint.trained and spec.licence == "MIT"
    assert all(name in PUBLISHED for name in STAND_INS)


def test_nobody_can_change_the_models():
    with pytest.raises(TypeError):
        MODELS["mine"] = MODELS[DEFAULT_MODEL]  # pyright: ignore[reportIndexIssue]


def test_the_default_model_is_published():
    assert DEFAULT_MODEL in PUBLISHED


def test_a_misspelt_name_gets_the_nearest_ones():
    with pytest.raises(UsageError, match="did you mean aimv2-3B-patch14-448"):
        find_model("aimv2-3b-patch14-448")


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(UsageError, match="no model named 'zzz': 'aim-mlx models' lists the"):
        find_model("zzz")
