"""scikit-learn's handwritten digits, real scans of 8 x 8 pixels, as folders of images."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    return load_digits(return_X_y=True)  # pyright: ignore[reportReturnType]


def write_digits(folder: Path, each: int, shuffled: bool = False) -> Path:
    """So many scans of each digit, in folders "0" to "9", or dealt out to these by chance."""
    pixels, labels = _scans()
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:each] for digit in range(10)])
    names = labels[chosen]
    if shuffled:
        names = np.random.default_rng(0).permutation(names)
    for scan, name in zip(chosen, names, strict=True):
        (folder / str(name)).mkdir(parents=True, exist_ok=True)
        # Scans hold 0 for paper to 16 for ink.
        grey = (255 - pixels[scan].reshape(8, 8) * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(grey).resize((56, 56), Image.Resampling.BICUBIC)
        image.save(folder / str(name) / f"{scan}.png")
    return folder
