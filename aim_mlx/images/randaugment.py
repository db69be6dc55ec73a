"""RandAugment (arXiv 1909.13719): a few random changes of colour and shape, all about as strong.

The strength is drawn about MAGNITUDE of ten for every change, and each is left out half of the
time, as the image classifiers of today are trained ("m9, mstd 0.5").
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAGNITUDE, SPREAD = 9.0, 0.5
_CHANGES, _LARGEST = 2, 10.0
_FILL = (124, 116, 104)  # the mean of photographs, where a change of shape shows nothing
_DEGREES, _SHEAR, _SHIFT, _FACTOR = 30.0, 0.3, 0.45, 0.9


def rand_augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An RGB image after up to two random changes, in its own size."""
    for name in rng.choice(len(_OPERATIONS), _CHANGES):
        strength = min(max(rng.normal(MAGNITUDE, SPREAD), 0.0), _LARGEST) / _LARGEST
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < 0.5:
            image = _OPERATIONS[name](image, strength, sign)
    return image


def _enhanced(kind):
    return lambda image, strength, sign: kind(image).enhance(1 + sign * _FACTOR * strength)


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    how = Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    return image.transform(image.size, *how, fillcolor=_FILL)


def _sheared(across: bool):
    def change(image: Image.Image, strength: float, sign: int) -> Image.Image:
        slope = sign * _SHEAR * strength
        return _moved(image, (1, slope, 0, 0, 1, 0) if across else (1, 0, 0, slope, 1, 0))

    return change


def _shifted(across: bool):
    def change(image: Image.Image, strength: float, sign: int) -> Image.Image:
        share = sign * _SHIFT * strength
        right, down = (share * image.width, 0) if across else (0, share * image.height)
        return _moved(image, (1, 0, right, 0, 1, down))

    return change


def _rotated(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image.rotate(sign * _DEGREES * strength, Image.Resampling.BICUBIC, fillcolor=_FILL)


def _brighter_where_dark(image: Image.Image, strength: float, sign: int) -> Image.Image:
    """Adds to what is darker than the middle."""
    added = int(110 * strength)
    return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)


_OPERATIONS = (
    lambda image, strength, sign: ImageOps.autocontrast(image),
    lambda image, strength, sign: ImageOps.equalize(image),
    lambda image, strength, sign: ImageOps.invert(image),
    lambda image, strength, sign: ImageOps.posterize(image, 4 - int(3 * strength)),
    lambda image, strength, sign: ImageOps.solarize(image, 256 - int(256 * strength)),
    _brighter_where_dark,
    _rotated,
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    _sheared(across=True),
    _sheared(across=False),
    _shifted(across=True),
    _shifted(across=False),
)
