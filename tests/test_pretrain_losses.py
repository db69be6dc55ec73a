"""The objective of pre-training against the reference's numbers, and its own promises."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aim_mlx.backend import mx, nn, optim, tree_flatten
from aim_mlx.config import TextConfig, VisionConfig
from aim_mlx.models.decoder import PretrainingConfig, PretrainingModel
from aim_mlx.pretrain.losses import Batch, counts, losses, prefix_mask, sample_prefixes
from aim_mlx.pretrain.model import decays, new_model

DATA = Path(__file__).parent / "data" / "pretrain_aimv2"
SIZES = json.loads((DATA / "config.json").read_text())
EXPECTED = load_file(DATA / "io.safetensors")


def in_our_layout(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reference's tensors by name, the patch convolution as (out, h, w, in)."""
    return {n: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for n, v in tensors.items()}


@pytest.fixture
def model() -> PretrainingModel:
    s = SIZES
    vision = VisionConfig(s["embed_dim"], s["mlp_hidden_dim"], s["num_blocks"], s["num_heads"])
    vision = VisionConfig(*list(vars(vision).values())[:5], image_size=s["image_size"])
    text = TextConfig(
        s["decoder_dim"],
        s["decoder_mlp"],
        s["decoder_blocks"],
        s["decoder_heads"],
        s["vocab_size"],
        s["context_length"],
        s["eos_token_id"],
    )
    model = PretrainingModel(PretrainingConfig(vision, text))
    weights = in_our_layout(load_file(DATA / "weights.safetensors"))
    model.load_weights([(name, mx.array(value)) for name, value in weights.items()], strict=True)
    return model


@pytest.fixture
def batch() -> Batch:
    ids = EXPECTED["input_ids"].astype(np.int32)
    return Batch(
        np.ascontiguousarray(EXPECTED["pixels_nchw"].transpose(0, 2, 3, 1)),
        EXPECTED["prefix_length"].astype(np.int32),
        ids,
        (ids != SIZES["pad_token_id"]).sum(axis=1).astype(np.int32),
    )


def total(model: PretrainingModel, batch: Batch, alpha: float = SIZES["alpha"]) -> mx.array:
    pixels, text = losses(model, *batch.arrays())
    patches, tokens = counts(batch, 16)
    return text / max(tokens, 1) + alpha * pixels / patches


def relative(actual, expected) -> float:
    actual, expected = np.array(actual, np.float64), np.array(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_the_mask_is_that_of_the_reference():
    mask = prefix_mask(mx.array(EXPECTED["prefix_length"].astype(np.int32)), 16)
    assert np.array_equal(np.array(mask)[:, 0], EXPECTED["encoder_mask"])


def test_predictions_and_losses_are_those_of_the_reference(model, batch):
    mask = mx.array(EXPECTED["encoder_mask"])[:, None]
    image, text = model(mx.array(batch.pixels), mask, mx.array(batch.ids))
    assert relative(model.decoder.pixel_head(image), EXPECTED["pixel_predictions"]) < 1e-5
    assert relative(model.decoder.text_head(text), EXPECTED["text_logits"]) < 1e-5
    pixels, text = losses(model, *batch.arrays())
    patches, tokens = counts(batch, 16)
    assert float(pixels) / patches == pytest.approx(float(EXPECTED["pixel_loss"]), abs=1e-5)
    assert float(text) / tokens == pytest.approx(float(EXPECTED["text_loss"]), abs=1e-5)
    assert float(total(model, batch)) == pytest.approx(float(EXPECTED["loss"]), abs=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_gradient_of_each_parameter_is_that_of_the_reference(model, batch, checkpointed):
    patches, tokens = counts(batch, 16)

    def loss(batch):
        pixels, text = losses(model, *batch.arrays(), checkpointed=checkpointed)
        return text / tokens + SIZES["alpha"] * pixels / patches

    gradients = dict(tree_flatten(nn.value_and_grad(model, loss)(batch)[1]))
    expected = in_our_layout(load_file(DATA / "gradients.safetensors"))
    assert set(gradients) == set(expected)
    worst = {name: relative(gradients[name], expected[name]) for name in expected}
    assert max(worst.values()) < 1e-4, max(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize("prefix", [1, 6, 15])
def test_a_patch_reaches_no_prediction_of_patches_up_to_it_outside_the_prefix(model, batch, prefix):
    mask = prefix_mask(mx.array([prefix]), 16)

    def predictions(pixels):
        return np.array(model(mx.array(pixels), mask)[0])[0]

    pixels = batch.pixels[:1]
    before = predictions(pixels)
    for j in range(prefix, 16):
        changed = pixels.copy()
        row, column = divmod(j, 4)
        changed[:, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] += 1
        differs = np.abs(predictions(changed) - before).max(axis=-1) > 1e-6
        # Output i is for patch i + 1: from output j on all may know patch j, and output j does.
        assert not differs[:j].any() and differs[j:].all()


def test_a_caption_reaches_no_pixel_and_no_earlier_word(model, batch):
    mask = prefix_mask(mx.array(batch.prefix), 16)
    image, text = (np.array(x) for x in model(mx.array(batch.pixels), mask, mx.array(batch.ids)))
    changed = batch.ids.copy()
    changed[:, 3] = 7
    other_image, other_text = (
        np.array(x) for x in model(mx.array(batch.pixels), mask, mx.array(changed))
    )
    assert np.array_equal(image, other_image)
    # Output i is for token i; BOS comes before token 0, so output 4 is the first to know token 3.
    assert np.array_equal(text[:, :4], other_text[:, :4])
    assert (np.abs(text[:, 4:] - other_text[:, 4:]).max(axis=-1) > 1e-6).all()


def test_what_stands_behind_the_end_of_a_caption_does_not_count(model, batch):
    changed = batch.ids.copy()
    changed[0, 5:] = 33
    padded = Batch(batch.pixels, batch.prefix, changed, batch.lengths)
    assert float(total(model, padded)) == float(total(model, batch))


def test_a_row_without_a_caption_learns_from_its_pixels_alone(model, batch):
    without = Batch(batch.pixels, batch.prefix, batch.ids, np.array([0, 10], np.int32))
    pixels, text = losses(model, *without.arrays())
    assert float(pixels) == pytest.approx(float(losses(model, *batch.arrays())[0]))
    assert float(text) == pytest.approx(
        float(losses(model, *batch.part(slice(1, 2)).arrays())[1]), rel=1e-5
    )


def test_pixels_alone_need_no_words(model, batch):
    pixels, text = losses(
        model, *Batch(batch.pixels, batch.prefix, None, 0 * batch.lengths).arrays()
    )
    assert float(text) == 0
    assert float(pixels) == pytest.approx(float(losses(model, *batch.arrays())[0]), rel=1e-5)


def test_parts_of_a_batch_add_up_to_it(model, batch):
    whole = losses(model, *batch.arrays())
    parts = [losses(model, *batch.part(slice(i, i + 1)).arrays()) for i in (0, 1)]
    for index in (0, 1):
        sum_of_parts = sum(float(part[index]) for part in parts)
        assert sum_of_parts == pytest.approx(float(whole[index]), rel=1e-5)


def test_every_prefix_from_one_to_all_but_one_patch_comes_as_often():
    drawn = sample_prefixes(np.random.default_rng(0), 15_000, 16)
    counted = np.bincount(drawn, minlength=16)
    # 1,000 each with a standard deviation of 31.
    assert counted[0] == 0 and len(counted) == 16
    assert np.abs(counted[1:] - 1000).max() < 4 * 31


def test_weight_decay_leaves_gains_biases_and_positions_alone(model):
    spared = {name for name, _ in tree_flatten(model.parameters()) if not decays(name)}
    norms = {name for name, _ in tree_flatten(model.parameters()) if "norm" in name}
    assert spared == norms | {
        "encoder.preprocessor.patchifier.proj.bias",
        "encoder.preprocessor.pos_embed",
        "connector.bias",
        "decoder.bos",
        "decoder.positional_embedding",
    }


def test_a_new_network_starts_as_published(model):
    new = new_model(model.config, seed=3)
    tensors = {name: np.array(value) for name, value in tree_flatten(new.parameters())}
    for name, value in tensors.items():
        if "norm" in name:
            assert (value == 1).all()
        elif name.endswith("bias"):
            assert (value == 0).all()
    fan = [np.prod(tensors["encoder.preprocessor.patchifier.proj.weight"].shape[1:]), 64]
    limit = (6 / sum(fan)) ** 0.5
    assert 0.99 * limit < tensors["encoder.preprocessor.patchifier.proj.weight"].max() <= limit
    # Standard deviations of a few thousand numbers, to three per cent.
    heads = (1 / (1 + SIZES["decoder_blocks"]) / SIZES["decoder_dim"]) ** 0.5
    for name, std in {
        "decoder.text_embedding.weight": 0.02,
        "encoder.preprocessor.pos_embed": 0.02,
        "decoder.pixel_head.weight": heads,
        "decoder.text_head.weight": heads,
    }.items():
        assert tensors[name].std() == pytest.approx(std, rel=0.06), name
    assert tensors["decoder.positional_embedding"].std() == pytest.approx(0.01, rel=0.1)
    assert abs(tensors["decoder.pixel_head.weight"]).max() < 2.3 * heads
    assert tensors["decoder.bos"].std() == pytest.approx(0.02, rel=0.4)
    again = new_model(model.config, seed=3)
    assert all(np.array_equal(tensors[n], np.array(v)) for n, v in tree_flatten(again.parameters()))


def test_a_network_goes_on_from_an_encoder(model):
    encoder = dict(tree_flatten(model.encoder.parameters()))
    new = new_model(model.config, 0, encoder)
    for name, value in tree_flatten(new.encoder.parameters()):
        assert np.array_equal(np.array(value), np.array(encoder[name]))


def test_one_image_and_its_caption_are_learned_by_heart(model, batch):
    model = new_model(model.config, seed=0)
    one = batch.part(slice(0, 1))
    patches, tokens = counts(one, 16)

    def loss(batch):
        pixels, text = losses(model, *batch.arrays())
        return text / tokens + 0.4 * pixels / patches

    step = nn.value_and_grad(model, loss)
    adam = optim.AdamW(3e-3, [0.9, 0.95], weight_decay=0.0, bias_correction=True)
    first = None
    for _ in range(150):
        value, gradient = step(one)
        adam.update(model, gradient)
        mx.eval(value, model.parameters(), adam.state)
        first = float(value) if first is None else first
    pixels, text = losses(model, *one.arrays())
    assert first is not None and first > 4
    assert float(pixels) / patches < 0.02 and float(text) / tokens < 0.001
