"""What a careless user passes in works, or ends in one line that says what was expected."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.words.lit import LiT
from tests.small import SMALL, encoder, photo, save_lit

PHOTO = photo(0)


@pytest.fixture(scope="module")
def lit(tmp_path_factory) -> LiT:
    return aim_mlx.load_lit(save_lit(tmp_path_factory.mktemp("lit") / "model"))


@pytest.fixture(scope="module")
def pixels(lit) -> np.ndarray:
    return lit.preprocess([PHOTO])


REFUSED: dict[str, Callable[[Any], Any]] = {
    "expected a list of images, got NoneType": lambda e: e.embed(None),
    "expected a list of images, got int": lambda e: list(e.embed_stream(5)),
    "expected layers as a list of whole numbers such as [-1], got 1": lambda e: e.embed(
        [PHOTO], layers=1
    ),
    "expected layers as a list of whole numbers such as [-1], got [0.5]": lambda e: e.features(
        e.preprocess([PHOTO]), layers=[0.5]
    ),
    "max pixels must be a whole number from 1, got 'many'": lambda e: EmbedOptions(
        max_pixels="many"  # pyright: ignore[reportArgumentType]
    ),
    "such as preprocess() gives, got str of": lambda e: e.features("photo.jpg"),
    "such as preprocess() gives, got list of object": lambda e: e.features([[1, 2], [3]]),
    "such as preprocess() gives, got NoneType of object": lambda e: e.features(None),
    "expected pixels of shape (B, H, W, 3), got (60, 80, 3)": lambda e: e.features(
        Image.fromarray(PHOTO)
    ),
    "expected a model's name, repo, folder or file, got None": lambda e: aim_mlx.load(
        None  # pyright: ignore[reportArgumentType]
    ),
    "dtype must be one of": lambda e: aim_mlx.load(
        "model",
        dtype=["float16"],  # pyright: ignore[reportArgumentType]
    ),
    "expected config= a VisionConfig or LiTConfig, got {'image_size': 56}": lambda e: aim_mlx.load(
        "model",
        config={"image_size": 56},  # pyright: ignore[reportArgumentType]
    ),
    "has no text tower": lambda e: aim_mlx.ZeroShotHead.build(e, ["a cat", "a dog"]),
    "expected an encoder, such as load() gives, got 'model'": lambda e: (
        aim_mlx.AttentiveProbe.train("model", [PHOTO], ["a cat"])  # pyright: ignore
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_line(message):
    with pytest.raises(aim_mlx.UsageError, match=re.escape(message)) as raised:
        REFUSED[message](encoder())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("texts", [None, 5])
def test_what_is_no_list_of_texts_is_refused(lit, texts):
    with pytest.raises(aim_mlx.UsageError, match="expected a list of texts, got"):
        lit.encode_text(texts)


def test_lists_may_be_made_on_the_way(lit):
    expected = lit.classify([PHOTO], ["a cat", "a dog"])
    found = lit.classify((each for each in [PHOTO]), (each for each in ["a cat", "a dog"]))
    np.testing.assert_array_equal(found, expected)
    texts = np.array(lit.encode_text(each for each in ["a cat"]))
    np.testing.assert_array_equal(texts, np.array(lit.encode_text(["a cat"])))


def test_layers_may_be_numbers_of_numpy(lit):
    found = lit.embed([PHOTO], pooling="mean", layers=np.array([0, -1]))
    np.testing.assert_array_equal(found, lit.embed([PHOTO], pooling="mean", layers=[0, -1]))


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, :, ::-1], lambda x: x.astype(np.float64)[:, :, ::-1], lambda x: x[::-1]],
)
def test_pixels_may_be_views_and_of_other_precision(lit, pixels, view):
    """Mirrored ones have negative strides, which MLX takes no array with."""
    found = np.array(lit.encode_image(view(pixels)))
    expected = np.array(lit.encode_image(mx.array(view(pixels).copy())))
    np.testing.assert_array_equal(found, expected)


def test_an_array_over_the_limit_is_refused_before_it_is_copied():
    """It would take 12 TB; as a view it takes three bytes."""
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (2_000_000, 2_000_000, 3))
    with pytest.raises(aim_mlx.ImageError, match="too_large: image 0: 2000000 x 2000000"):
        encoder().embed([huge])


def test_preprocess_names_the_image_that_failed():
    with pytest.raises(aim_mlx.ImageError, match="image 1: "):
        encoder().preprocess([PHOTO, b"no image"])


def test_training_names_an_image_by_its_place_in_the_list_that_was_given():
    """Some of them are held out, so that its place among those trained on is another."""
    for place in range(6):
        images = [photo(seed) if seed != place else b"" for seed in range(6)]
        with pytest.raises(aim_mlx.ImageError, match=f"image {place}: "):
            aim_mlx.AttentiveProbe.train(encoder(), images, ["one", "two"] * 3, epochs=1)


def test_encoders_and_rows_are_equal_to_themselves_alone():
    first, second = encoder(), encoder()
    assert first == first and first != second and len({first, second}) == 2
    rows = [*first.embed_stream([PHOTO]), *first.embed_stream([PHOTO])]
    assert rows[0] == rows[0] and rows[0] != rows[1]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_a_copy_of_an_encoder_gives_the_same_vectors(copied):
    original: Encoder = encoder()
    other = copied(original)
    np.testing.assert_array_equal(other.embed([PHOTO]), original.embed([PHOTO]))
    assert other.model.config == SMALL and other.weights_digest == original.weights_digest
