"""How alike altered copies of photos are, and photos that differ: what a threshold would find.

python examples/threshold.py PHOTOS MODEL: takes up to forty photos of a folder, which should be
unlike each other, alters copies of them in memory, and prints the cosines that the model gives. A
threshold for `aim-mlx duplicates` lies below the alterations that you want found, and above what
photos that differ reach.
"""

import io
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

import aim_mlx
from aim_mlx.errors import AimError
from aim_mlx.images import decode, discover

MOST = 40
THRESHOLDS = (0.9, 0.95, 0.98, 0.99)


def resized(photo: Image.Image) -> Image.Image:
    return photo.resize((max(1, photo.width // 2), max(1, photo.height // 2)))


def compressed(photo: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=40)
    return Image.open(file)


def cropped(photo: Image.Image, share: float) -> Image.Image:
    x, y = round(share * photo.width), round(share * photo.height)
    return photo.crop((x, y, photo.width - x, photo.height - y))


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": resized,
    "JPEG of quality 40": compressed,
    "10% brighter": lambda photo: ImageEnhance.Brightness(photo).enhance(1.1),
    "30% brighter": lambda photo: ImageEnhance.Brightness(photo).enhance(1.3),
    "3% cut off each edge": lambda photo: cropped(photo, 0.03),
    "10% cut off each edge": lambda photo: cropped(photo, 0.1),
    "mirrored": ImageOps.mirror,
}


def main(folder: str, model: str) -> None:
    photos = readable(folder)
    encoder = aim_mlx.load(model)
    vectors = encoder.embed(photos)
    print(f"{'cosines':24}{'lowest':>9}{'median':>9}{'highest':>9}" + head(), flush=True)
    for name, alter in ALTERATIONS.items():
        altered = encoder.embed([alter(photo) for photo in photos])
        print_row(name, np.einsum("nd,nd->n", vectors, altered))
    print_row("photos that differ", (vectors @ vectors.T)[np.triu_indices(len(photos), 1)])


def readable(folder: str) -> list[Image.Image]:
    """The first photos of a folder that can be decoded."""
    photos: list[Image.Image] = []
    for path in discover([folder]).files:
        try:
            photos.append(decode(path).convert("RGB"))
        except AimError as error:
            print(f"left out {path}: {error}", file=sys.stderr)
        if len(photos) == MOST:
            break
    return photos


def head() -> str:
    return "".join(f"{f'>= {threshold:g}':>9}" for threshold in THRESHOLDS)


def print_row(name: str, cosines: np.ndarray) -> None:
    low, median, high = np.quantile(cosines, [0, 0.5, 1])
    found = "".join(f"{np.mean(cosines >= threshold):9.0%}" for threshold in THRESHOLDS)
    print(f"{name:24}{low:9.3f}{median:9.3f}{high:9.3f}{found}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
