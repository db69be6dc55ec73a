"""Random views of files, as the probes of AIMv2 are trained, without RandAugment.

A view is a pure function of the image and a key, which stands for content, seed and number.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images import ImageSource
from aim_mlx.images.augment import augmented
from aim_mlx.images.decode import decoded


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


def encoder_of_views(encoder: Encoder) -> Encoder:
    """The same encoder, taking images of its own size as they are."""
    size = encoder.preprocessing.crop_size
    if size is None:
        raise UsageError("random views need a model of one image size")
    viewing = copy.copy(encoder)
    viewing.preprocessing = replace(encoder.preprocessing, shortest_edge=size)
    return viewing
