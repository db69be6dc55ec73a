"""Ovis2's tower and visual tokens against transformers' classes, live, with noise everywhere."""

from dataclasses import replace

import numpy as np
import pytest

import aim_mlx
from tests import towers
from tests.towers import INDICATORS, Rest

pytestmark = pytest.mark.parity

REST = Rest(vocabulary=50)
TOWER = replace(towers.TOWER, image_size=56)  # transformers fails at an odd grid with a stride of 2


@pytest.fixture(scope="module")
def reference():
    import torch
    from transformers import Ovis2Config, Ovis2ForConditionalGeneration

    language = {
        "model_type": "qwen2",
        "hidden_size": REST.width,
        "intermediate_size": REST.hidden,
        "num_hidden_layers": REST.blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": REST.vocabulary,
    }
    vision = {
        "hidden_size": TOWER.embed_dim,
        "intermediate_size": TOWER.mlp_hidden_dim,
        "num_hidden_layers": TOWER.num_blocks,
        "num_attention_heads": TOWER.num_heads,
        "image_size": TOWER.image_size,
        "vocab_size": REST.visual_vocabulary,
        "hidden_stride": REST.stride,
    }
    config = Ovis2Config(
        vision_config=vision,
        text_config=language,
        hidden_size=REST.width,
        vocab_size=REST.vocabulary,
        image_token_id=1,
        visual_indicator_token_ids=[2, 3, 4, 5, 6],
    )
    model = Ovis2ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = 1.0 if "norm" in name else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + gain)
    return model


@pytest.fixture(scope="module", params=["one file", "shards"])
def encoder(reference, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("ovis2") / request.param.replace(" ", "-")
    reference.save_pretrained(
        folder, max_shard_size="100KB" if request.param == "shards" else "1GB"
    )
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (request.param == "shards")
    loaded = aim_mlx.load(folder, visual_tokens=True)
    assert loaded.model.config == TOWER and loaded.identity["layout"] == "ovis2-transformers"
    return loaded


def pixels(count: int = 3) -> np.ndarray:
    side = TOWER.image_size or 0
    shape = (count, side, side, 3)
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


def assert_close(ours, theirs) -> None:
    difference = np.abs(np.array(ours) - theirs.detach().numpy())
    # float32 sums in another order: 2e-6 when this was written.
    assert difference.max() < 2e-5, f"{difference.max():.1e}, mean {difference.mean():.1e}"


def test_features_of_the_tower_equal_transformers(reference, encoder):
    import torch

    x = torch.from_numpy(pixels().transpose(0, 3, 1, 2).copy())
    theirs = reference.model.vision_tower.transformer(x).last_hidden_state
    assert theirs.std() > 0.5  # noise that the norms keep, so that a swapped one would show
    assert_close(encoder.features(pixels()).tokens, theirs)


def test_visual_tokens_equal_transformers(reference, encoder):
    import torch

    x = torch.from_numpy(pixels().transpose(0, 3, 1, 2).copy())
    theirs = reference.model.get_image_features(x, return_dict=True)
    assert_close(encoder.features(pixels()).visual_tokens, theirs.pooler_output)
    assert_close(encoder.visual.indicators, theirs.visual_indicator_features)
    assert len(theirs.visual_indicator_features) == INDICATORS
