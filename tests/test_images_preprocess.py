"""Pixels exactly as the reference's image processor makes them."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from aim_mlx.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, PreprocessConfig
from aim_mlx.errors import CheckpointError, ImageError
from aim_mlx.images import decode, preprocess
from aim_mlx.weights.preprocess_json import config_from_preprocessor_json

DATA = Path(__file__).parent / "data" / "preprocess"
REFERENCE = load_file(DATA / "pixels_nchw.safetensors")
PUBLISHED = json.loads((DATA / "preprocessor_config.json").read_text())


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def direct(image, config):
    """The same in the plainest way: whole resize, crop, float64."""
    if config.native:
        height, width = (n // config.patch_size * config.patch_size for n in image.shape[:2])
        pixels = image[:height, :width]
    else:
        height, width = image.shape[:2]
        scale = config.shortest_edge / min(height, width)
        size = (
            config.shortest_edge if width <= height else int(config.shortest_edge * width / height),
            config.shortest_edge if height <= width else int(config.shortest_edge * height / width),
        )
        assert scale > 0
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        half = round if config.crop_rounding == "half_even" else math.floor
        top, left = (half((n - config.crop_size) / 2) for n in resized.shape[:2])
        pixels = resized[top : top + config.crop_size, left : left + config.crop_size]
    return (pixels / 255 - np.array(config.mean)) / np.array(config.std)


def report(ours, expected):
    difference = np.abs(ours.astype(np.float64) - expected)
    return f"largest {difference.max():.2e}, mean {difference.mean():.2e}"


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_pixels_equal_the_reference(name):
    config = config_from_preprocessor_json(PUBLISHED, patch_size=14)
    ours = preprocess(decode(DATA / f"{name}.png"), config).transpose(2, 0, 1)
    # Pillow's integers, then three float32 operations that every processor rounds alike.
    assert (ours == REFERENCE[name]).all(), report(ours, REFERENCE[name])


@pytest.mark.parametrize("config", [PreprocessConfig.hub(16), PreprocessConfig.imagenet(16)])
def test_every_value_is_divided_by_255_and_not_multiplied_by_its_inverse(config):
    # The product is another float32 for 126 of the 256 values: 5e-7 off once it is normalised.
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    native = replace(config, shortest_edge=16)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    expected = (values.astype(np.float32) / np.float32(255) - mean) / std
    assert (preprocess(values, native) == expected).all()


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (97, 311), (224, 224), (30, 40)])
@pytest.mark.parametrize(
    "config",
    [PreprocessConfig.hub(56), PreprocessConfig.imagenet(56), PreprocessConfig(70, 63)],
    ids=["hub", "imagenet", "odd margins"],
)
def test_every_preset_resizes_crops_and_normalises(config, size):
    image = noise(*size)
    ours, expected = preprocess(image, config), direct(image, config)
    assert ours.shape == expected.shape
    # float32 of values up to 2.7 against float64
    assert np.abs(ours - expected).max() < 1e-6, report(ours, expected)


@pytest.mark.parametrize(
    ("margin", "transformers", "torchvision"),
    [(1, 0, 0), (3, 1, 2), (5, 2, 2), (7, 3, 4), (8, 4, 4)],
)
def test_an_odd_margin_is_halved_as_the_checkpoints_own_code_does(
    margin, transformers, torchvision
):
    image = noise(28, 28 + margin)  # nothing to resize: the crop is a part of it
    for rounding, left in (("floor", transformers), ("half_even", torchvision)):
        config = replace(PreprocessConfig.hub(28), crop_rounding=rounding)
        part = np.ascontiguousarray(image[:, left : left + 28])
        assert (preprocess(image, config) == preprocess(part, config)).all(), rounding
    assert PreprocessConfig.imagenet(28).crop_rounding == "half_even"


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 61), (42, 42), (9, 300)])
def test_squashing_brings_the_whole_image_to_the_square(height, width):
    image = noise(height, width)
    squashed = np.asarray(Image.fromarray(image).resize((42, 42), Image.Resampling.BICUBIC))
    config = PreprocessConfig.hub(42)
    assert (preprocess(image, replace(config, fit="squash")) == preprocess(squashed, config)).all()


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (60, 90, slice(7, 35), slice(0, 42)),  # 28 rows: 42 * 2 / 3
        (90, 61, slice(0, 42), slice(7, 35)),  # 28.5 columns, rounded down
        (
            9,
            300,
            slice(20, 21),
            slice(0, 42),
        ),  # 1.3 rows; the lower half of an odd margin is larger
        (2, 300, slice(20, 21), slice(0, 42)),  # 0.3 rows, of which one stays
        (42, 42, slice(0, 42), slice(0, 42)),
    ],
)
def test_padding_puts_the_whole_image_in_the_middle_of_the_mean_colour(
    height, width, rows, columns
):
    image, config = noise(height, width), PreprocessConfig.hub(42)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    inside = (scaled / 255 - np.array(config.mean)) / np.array(config.std)
    ours = preprocess(image, replace(config, fit="pad"))
    # float32 of values up to 2.7 against float64
    assert np.abs(ours[rows, columns] - inside).max() < 1e-6
    ours[rows, columns] = 0
    assert ours.shape == (42, 42, 3) and not ours.any()


def test_the_result_is_contiguous_float32_of_the_crop_and_writable():
    pixels = preprocess(noise(90, 60), PreprocessConfig.hub(42))
    assert pixels.shape == (42, 42, 3) and pixels.dtype == np.float32
    assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_an_image_and_its_array_give_the_same_and_stay_unchanged():
    array = noise(90, 60)
    image = Image.fromarray(array)
    config = PreprocessConfig.hub(42)
    assert (preprocess(array, config) == preprocess(image, config)).all()
    assert (array == noise(90, 60)).all() and (np.asarray(image) == array).all()


def test_native_resolution_cuts_the_ragged_edge_and_resamples_nothing():
    image, config = noise(243, 301), PreprocessConfig.hub(None)
    ours, expected = preprocess(image, config), direct(image, config)
    assert ours.shape == (238, 294, 3)
    assert np.abs(ours - expected).max() < 1e-6, report(ours, expected)


@pytest.mark.parametrize(
    ("size", "planned"),
    [((1, 1), (154, 154)), ((1500, 1000), (1092, 728)), ((2, 2000), (14, 14000))],
)
def test_native_resolution_scales_what_is_out_of_range(size, planned):
    image, config = noise(*size), PreprocessConfig.hub(None)
    resized = Image.fromarray(image).resize(planned[::-1], Image.Resampling.BICUBIC)
    expected = (np.asarray(resized) / 255 - np.array(config.mean)) / np.array(config.std)
    ours = preprocess(image, config)
    assert ours.shape == (*planned, 3)
    assert np.abs(ours - expected).max() < 1e-6, report(ours, expected)


@pytest.mark.parametrize("size", [(40, 3000), (3000, 40), (500, 9000), (3, 700), (700, 3)])
def test_the_centre_of_a_panorama_is_the_same_made_alone(monkeypatch, size):
    image, config = noise(*size), PreprocessConfig.imagenet(56)
    whole = preprocess(image, config)
    monkeypatch.setattr(sys.modules["aim_mlx.images.preprocess"], "_LARGEST_WHOLE", 0)
    alone = preprocess(image, config)
    # One step of 255 where the position of the window rounds differently.
    assert np.abs(alone - whole).max() <= 1.01 / 255 / min(config.std), report(alone, whole)
    assert (alone != whole).mean() < 0.01


@pytest.mark.parametrize("size", [(2, 20_000), (20_000, 2), (1, 60_000)])
def test_an_extreme_panorama_takes_no_more_memory_than_its_centre(size):
    # Whole it would take up to 12 GB: finishing at all, and with the right colour, is the test.
    image = np.full((*size, 3), (255, 0, 128), np.uint8)
    config = PreprocessConfig.hub(448)
    expected = (np.array([255, 0, 128]) / 255 - config.mean) / np.array(config.std)
    assert np.abs(preprocess(image, config) - expected).max() < 1e-6


@pytest.mark.parametrize(
    "image",
    [Image.new("L", (9, 9)), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32)],
    ids=["grey image", "grey array", "float array"],
)
def test_another_mode_dtype_or_shape_is_refused(image):
    with pytest.raises(ImageError, match="expected") as caught:
        preprocess(image, PreprocessConfig.hub(14))
    assert caught.value.reason == "unsupported_mode"


# preprocessor_config.json


def test_the_published_file_is_read():
    config = config_from_preprocessor_json(PUBLISHED, patch_size=14)
    assert config == PreprocessConfig(56, 56, CLIP_MEAN, CLIP_STD, 14)


def test_plain_numbers_and_other_values_are_read():
    values = PUBLISHED | {"size": 256, "crop_size": 224}
    values |= {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    expected = replace(PreprocessConfig.imagenet(224), crop_rounding="floor")
    assert config_from_preprocessor_json(values, 14) == expected


def test_a_resize_to_a_square_with_no_crop_squashes():
    values = PUBLISHED | {"size": {"height": 56, "width": 56}, "do_center_crop": False}
    wanted = replace(PreprocessConfig.hub(56), fit="squash")
    assert config_from_preprocessor_json(values, 14) == wanted
    assert config_from_preprocessor_json(values, 14, pads=True).fit == "pad"


def test_neither_resize_nor_crop_means_native_resolution():
    values = PUBLISHED | {"do_resize": False, "do_center_crop": False}
    assert config_from_preprocessor_json(values, 14) == PreprocessConfig.hub(None)


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"height": 224, "width": 224}},
        {"size": {"height": 224, "width": 192}, "do_center_crop": False},
        {"size": {"shortest_edge": 224, "longest_edge": 448}},
        {"size": "224"},
        {"size": True},
        {"size": 0},
        {"crop_size": {"height": 224, "width": 192}},
        {"crop_size": {"height": 57, "width": 57}},
        {"crop_size": None},
        {"resample": 2},
        {"resample": "bicubic"},
        {"do_resize": False},
        {"do_center_crop": False},
        {"do_resize": 1},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_pad": True},
        {"rescale_factor": 1.0},
        {"rescale_factor": None},
        {"image_mean": None},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": 0.5},
        {"image_std": [1, 1, "1"]},
        {"image_std": [1.0, 1.0, 0.0]},
    ],
    ids=repr,
)
def test_what_cannot_be_honoured_is_refused_in_one_sentence(change):
    with pytest.raises(CheckpointError) as caught:
        config_from_preprocessor_json(PUBLISHED | change, 14)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("values", [None, [], "x", {}], ids=repr)
def test_something_that_is_not_such_a_file_is_refused(values):
    with pytest.raises(CheckpointError, match="expected"):
        config_from_preprocessor_json(values, 14)
