"""Random views of an image: a part of it resized, perhaps mirrored, its colours changed.

As the probes of AIMv2 are trained (arXiv 2411.14402, appendix A2), without RandAugment. A view is
a pure function of the image and a key, which stands for content, seed and number.
"""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images import ImageSource
from aim_mlx.images.decode import decoded

_AREA = (0.08, 1.0)  # of the image
_RATIO = (3 / 4, 4 / 3)  # width to height
_JITTER = 0.3  # brightness, contrast and saturation change by this factor at most
_TRIES = 10


def view_key(digest: str, seed: int, number: int) -> str:
    """What view `number` of a content is known by, 64 hex digits."""
    return hashlib.sha256(f"view {seed} {number} {digest}".encode()).hexdigest()


class Views(Sequence[ImageSource]):
    """One view of each file, made in the thread that asks; a file that cannot be decoded as it is.

    Whoever decodes that file again finds the reason.
    """

    def __init__(self, files: Sequence[ImageSource], keys: Sequence[str], size: int):
        self._files, self._keys, self._size = files, keys, size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ImageSource:  # pyright: ignore[reportIncompatibleMethodOverride]
        rng = np.random.default_rng(np.frombuffer(bytes.fromhex(self._keys[index]), np.uint32))
        try:
            with decoded(self._files[index]) as image:
                return augmented(image, self._size, rng)
        except ImageError:
            return self._files[index]


def augmented(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random view of an RGB image, `size` pixels square."""
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=_box(*image.size, rng))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for place in rng.permutation(len(changes)):
        view = changes[place](view).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return view


def _box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A rectangle of random area and shape; the largest in the centre where none would fit."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
            return left, top, left + across, top + down
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    across, down = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def encoder_of_views(encoder: Encoder) -> Encoder:
    """The same encoder, taking images of its own size as they are."""
    size = encoder.preprocessing.crop_size
    if size is None:
        raise UsageError("random views need a model of one image size")
    viewing = copy.copy(encoder)
    viewing.preprocessing = replace(encoder.preprocessing, shortest_edge=size)
    return viewing
