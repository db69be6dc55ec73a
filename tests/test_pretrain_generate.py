"""Captions and continued images, against the network without a cache."""

from dataclasses import replace

import numpy as np
import pytest

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.config import TextConfig, VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.models.decoder import PretrainingConfig, PretrainingModel
from aim_mlx.pretrain.generate import _fitted, captions, continued, predicted_patches
from aim_mlx.pretrain.losses import pixel_targets, prefix_mask

CONFIG = PretrainingConfig(
    VisionConfig(64, 176, 2, 2, 14, 56), TextConfig(48, 128, 2, 3, 50, 12, 49)
)


def noisy(config: PretrainingConfig = CONFIG) -> PretrainingModel:
    """Noise in every parameter, large in the text's, so that every token changes the next."""
    model, rng, weights = PretrainingModel(config), np.random.default_rng(0), []
    for name, value in dict(tree_flatten(model.parameters())).items():
        deviation = 1.0 if "text_" in name or "positional" in name else 0.15
        values = rng.normal(0, deviation, value.shape) + ("norm" in name)
        weights.append((name, mx.array(values.astype(np.float32))))
    model.load_weights(weights, strict=True)
    return model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 56, 56, 3)).astype(np.float32)


def greedy(model: PretrainingModel, pixels: np.ndarray, longest: int) -> np.ndarray:
    """The likeliest tokens, each by going through everything again."""
    ids = mx.zeros((len(pixels), 0), mx.int32)
    for _ in range(longest):
        _, text = model(mx.array(pixels), None, ids)
        assert text is not None
        following = model.decoder.text_head(text[:, -1]).argmax(axis=-1)
        ids = mx.concatenate([ids, following[:, None].astype(mx.int32)], axis=1)
    return np.array(ids)


def test_captions_are_those_of_the_network_without_a_cache(pixels):
    model = noisy()
    expected = greedy(model, pixels, 12)
    assert len({tuple(row) for row in expected.tolist()}) == 3  # each image has its own
    assert captions(model, mx.array(pixels), 12) == expected.tolist()
    assert captions(model, mx.array(pixels[1:2]), 5) == expected[1:2, :5].tolist()


def test_a_caption_ends_before_the_end_token(pixels):
    expected = greedy(noisy(), pixels, 12).tolist()
    end = expected[0][4]
    model = noisy(replace(CONFIG, decoder=replace(CONFIG.decoder, eos_token_id=end)))
    wanted = [row[: row.index(end)] if end in row else row for row in expected]
    assert captions(model, mx.array(pixels), 12) == wanted


def test_drawn_tokens_follow_the_temperature_and_the_seed(pixels):
    model = noisy()
    images = mx.array(pixels)
    likeliest = captions(model, images, 12)
    assert captions(model, images, 12, temperature=1e-3, seed=5) == likeliest
    drawn = [captions(model, images, 12, temperature=9.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != likeliest
    model.decoder.text_head.weight = mx.zeros((50, 48))  # all tokens are as likely
    for row in captions(model, images, 12, temperature=1.0):
        assert len(set(row)) > len(row) // 2


@pytest.mark.parametrize("given", [(0, 0.0), (13, 0.0), (5, -1.0), (5, float("nan"))])
def test_lengths_and_temperatures_that_cannot_be_are_refused(pixels, given):
    with pytest.raises(UsageError, match="1 to 12 tokens"):
        captions(noisy(), mx.array(pixels), *given)


@pytest.mark.parametrize("prefix", [1, 6, 15])
def test_a_continued_image_is_that_of_the_network_without_a_cache(pixels, prefix):
    model, image = noisy(), pixels[0]
    canvas = np.zeros_like(image)
    for i in range(16):
        row, column = i // 4 * 14, i % 4 * 14
        place = slice(row, row + 14), slice(column, column + 14)
        if i < prefix:
            canvas[place] = image[place]
            continue
        hidden, _ = model(mx.array(canvas[None]), prefix_mask(mx.array([prefix]), 16))
        guess = np.array(model.decoder.pixel_head(hidden[0, i - 1])).reshape(14, 14, 3)
        canvas[place] = _fitted(guess, canvas, i, 4)
    np.testing.assert_allclose(continued(model, image, prefix), canvas, atol=2e-3)


@pytest.mark.parametrize("prefix", [0, 16])
def test_a_prefix_that_leaves_nothing_to_do_is_refused(pixels, prefix):
    with pytest.raises(UsageError, match="keep 1 to 15 patches"):
        continued(noisy(), pixels[0], prefix)


def test_a_right_guess_gets_the_brightness_and_contrast_of_a_smooth_image():
    rows, columns = np.mgrid[:56, :56] / 28
    image = np.stack([np.sin(rows + columns), rows * columns, columns - rows], axis=-1)
    for i in (3, 4, 10):
        place = slice(i // 4 * 14, i // 4 * 14 + 14), slice(i % 4 * 14, i % 4 * 14 + 14)
        true = image[place]
        fitted = _fitted((true - true.mean()) / true.std(), image, i, 4)
        assert np.abs(fitted - true).mean() < 0.25 * np.abs(true - true.mean()).mean()


def test_right_predictions_show_the_image_itself(pixels):
    targets = np.array(pixel_targets(mx.array(pixels[:1]), 14))[0]
    shifted = np.roll(targets, -1, axis=0)  # output i is for patch i + 1
    shown = predicted_patches(shifted, pixels[0], 4)
    np.testing.assert_allclose(shown, pixels[0], atol=1e-4)
    other = predicted_patches(0 * shifted, pixels[0], 4)
    assert np.array_equal(other[:14], pixels[0, :14]) and (other[14:] != pixels[0, 14:]).any()
