"""`describe` says what a checkpoint is, in values that JSON can hold."""

import json
import math
from pathlib import Path

import pytest

from aim_mlx.errors import CheckpointError
from aim_mlx.registry import MODELS
from aim_mlx.weights.inspect import describe
from aim_mlx.weights.sizes import expected_shapes
from tests.weights_files import DATA, copy_case, crafted, entry, shard


def test_a_folder_is_described_in_json_values():
    facts = describe(DATA / "vision_absolute" / "transformers_bf16")
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["layout"], facts["kind"]) == ("transformers", "vision")
    assert (facts["dtype"], facts["dtypes"]) == ("bfloat16", {"bfloat16": 32})
    assert (facts["parameters"], facts["bytes"]) == (189_760, 2 * 189_760)
    assert facts["sizes"]["embed_dim"] == 64 and facts["preprocessing"]["crop_size"] == 56
    assert facts["trained"] is True and facts["fits"] == []


def test_shards_are_listed(tmp_path: Path):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    shard(folder, 2)
    assert len(describe(folder)["files"]) == 2


@pytest.mark.parametrize(
    "name",
    ["aimv2-large-patch14-336", "aimv2-large-patch14-native", "aimv2-large-patch14-224-lit"],
)
def test_the_published_models_of_the_same_sizes_are_named(tmp_path: Path, name: str):
    """A sparse file of a published model's tensors: only its header is ever read."""
    header, end = {}, 0
    for tensor, shape in expected_shapes(MODELS[name].config).items():
        count = 4 * math.prod(shape)
        header[tensor] = entry("F32", list(shape), end, end + count)
        end += count
    path = tmp_path / "mlx_model.safetensors"
    path.write_bytes(crafted(header))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + end)
    facts = describe(path)
    assert name in facts["fits"]
    assert all(MODELS[fit].config == MODELS[name].config for fit in facts["fits"])


def test_a_lit_folder_is_described_with_both_towers():
    facts = describe(DATA / "lit" / "transformers")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["kind"] == "lit" and facts["quantization"] is None
    assert facts["sizes"]["vision"]["num_heads"] == 2 and facts["sizes"]["text"]["num_heads"] == 3
    assert facts["sizes"]["projection_dim"] == 32


def test_what_cannot_be_opened_cannot_be_described(tmp_path: Path):
    with pytest.raises(CheckpointError):
        describe(tmp_path)
