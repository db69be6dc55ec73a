"""Random views of an image: a part of it resized, perhaps mirrored, its colours changed."""

import math

import numpy as np
from PIL import Image, ImageEnhance

from aim_mlx.images.randaugment import rand_augmented

_RATIO = (3 / 4, 4 / 3)  # width to height
_TRIES = 10


def augmented(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    smallest_area: float = 0.08,
    flip: bool = True,
    jitter: float = 0.3,
    randaugment: bool = False,
) -> Image.Image:
    """A random view of an RGB image, `size` pixels square.

    It shows at least `smallest_area` of the image; brightness, contrast and saturation change by a
    factor of 1 +- `jitter` at most, and with `randaugment` come further changes. The defaults are
    those of AIMv2's probes (arXiv 2411.14402, appendix A2), which have RandAugment too.
    """
    box = random_box(*image.size, rng, smallest_area)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if flip and rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if jitter:
        changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for place in rng.permutation(len(changes)):
            view = changes[place](view).enhance(rng.uniform(1 - jitter, 1 + jitter))
    return rand_augmented(view, rng) if randaugment else view


def random_box(
    width: int, height: int, rng: np.random.Generator, smallest_area: float
) -> tuple[float, float, float, float]:
    """A rectangle of random area and shape; the largest in the centre where none would fit."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(smallest_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
            return left, top, left + across, top + down
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    across, down = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
