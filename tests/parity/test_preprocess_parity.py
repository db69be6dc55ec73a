"""Preprocessing against the image processor of transformers and timm, live, on photographs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aim_mlx.config import PreprocessConfig
from aim_mlx.images import decode, preprocess
from aim_mlx.weights.preprocess_json import config_from_preprocessor_json

pytestmark = pytest.mark.parity

# Shipped in the wheel of scikit-image; its other samples are downloaded.
PHOTOGRAPHS = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"]
PHOTOGRAPHS += ["hubble_deep_field.jpg", "retina.jpg", "ihc.png", "camera.png", "page.png"]
FIXED = {
    "hub 224": PreprocessConfig.hub(224),
    "hub 336": PreprocessConfig.hub(336),
    "hub 336 of odd margins": PreprocessConfig(341, 336),
}
TORCHVISION = {
    "timm 224": replace(PreprocessConfig.hub(224), crop_rounding="half_even"),
    "timm 336 of odd margins": PreprocessConfig(341, 336, crop_rounding="half_even"),
    "imagenet 224": PreprocessConfig.imagenet(224),
}
NATIVE = PreprocessConfig.hub(None)


def reference_processor(config: PreprocessConfig):
    """The processor with the Pillow back end: the class of that name, or the only one there was."""
    import transformers

    name = "CLIPImageProcessorPil"
    kind = getattr(transformers, name, None) or transformers.CLIPImageProcessor
    fixed = not config.native
    return kind(
        do_resize=fixed,
        do_center_crop=fixed,
        size={"shortest_edge": config.shortest_edge or 224},
        crop_size={"height": config.crop_size or 224, "width": config.crop_size or 224},
        image_mean=list(config.mean),
        image_std=list(config.std),
    )


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request):
    skimage = pytest.importorskip("skimage")
    return decode(Path(skimage.__file__).parent / "data" / request.param)


def difference_from_reference(image, config, ours):
    processor = reference_processor(config)
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    return np.abs(ours - theirs.transpose(1, 2, 0)).max()


# The same operations in float32: 0 when this was written. 1e-5 leaves room for other processors.


@pytest.mark.parametrize("config", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize("shape", ["as it is", "upright slice", "wide slice"])
def test_pixels_of_a_fixed_size_equal_the_reference(photograph, config, shape):
    right = photograph.width // (5 if shape == "upright slice" else 1)
    bottom = photograph.height // (3 if shape == "wide slice" else 1)
    image = photograph.crop((0, 0, right, bottom))
    assert difference_from_reference(image, config, preprocess(image, config)) <= 1e-5


@pytest.mark.parametrize("shape", ["as it is", "upright slice", "wide slice"])
def test_squashed_pixels_equal_those_of_transformers_ovis2(photograph, shape):
    from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

    right = photograph.width // (5 if shape == "upright slice" else 1)
    bottom = photograph.height // (3 if shape == "wide slice" else 1)
    image = photograph.crop((0, 0, right, bottom))
    processor = Ovis2ImageProcessorPil(size={"height": 448, "width": 448})
    stated = json.loads(processor.to_json_string())
    config = config_from_preprocessor_json(stated, 14)
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    assert np.abs(preprocess(image, config) - theirs.transpose(1, 2, 0)).max() <= 1e-5


@pytest.mark.parametrize("config", TORCHVISION.values(), ids=TORCHVISION)
@pytest.mark.parametrize("shape", ["as it is", "upright slice", "wide slice"])
def test_pixels_of_timm_and_of_the_papers_code_equal_theirs(photograph, config, shape):
    from timm.data.transforms_factory import create_transform

    right = photograph.width // (5 if shape == "upright slice" else 1)
    bottom = photograph.height // (3 if shape == "wide slice" else 1)
    image = photograph.crop((0, 0, right, bottom))
    transform: Any = create_transform(
        input_size=(3, config.crop_size, config.crop_size),
        interpolation="bicubic",
        crop_pct=config.crop_size / (config.shortest_edge + 0.5),  # of which timm takes the floor
        mean=config.mean,
        std=config.std,
    )
    theirs = np.asarray(transform(image)).transpose(1, 2, 0)
    assert np.abs(theirs - preprocess(image, config)).max() <= 1e-5


def test_native_pixels_equal_the_reference_that_drops_the_ragged_edge_in_the_model(photograph):
    image = photograph.crop((0, 0, min(photograph.width, 700), min(photograph.height, 500)))
    ours = preprocess(image, NATIVE)
    whole_patches = image.crop((0, 0, ours.shape[1], ours.shape[0]))
    assert difference_from_reference(whole_patches, NATIVE, ours) <= 1e-5


@pytest.mark.parametrize("config", [*FIXED.values(), NATIVE], ids=[*FIXED, "native"])
def test_the_preprocessor_config_that_the_reference_writes_is_read(config):
    written = json.loads(reference_processor(config).to_json_string())
    assert config_from_preprocessor_json(written, 14) == config


def test_a_photograph_given_as_array_is_the_same(photograph):
    array = np.asarray(photograph)
    config = FIXED["hub 224"]
    assert (preprocess(array, config) == preprocess(Image.fromarray(array), config)).all()
