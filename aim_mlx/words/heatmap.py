"""Pictures of where words look: the crop that a LiT model sees, coloured by similarity."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import ImageError
from aim_mlx.files import disk_errors, publish
from aim_mlx.words.classify import Classified
from aim_mlx.words.lit import LiT
from aim_mlx.words.zeroshot import ZeroShotHead

_SMALLEST = 448  # pixels of the shorter side: a crop of 224 is shown twice as large
_HEAT = 0.55  # how much of the colour covers the photo
# From least to most like the words: dark blue, violet, red, orange, light yellow.
_COLOURS = np.array([[10, 10, 60], [95, 20, 115], [200, 50, 80], [250, 140, 30], [255, 250, 170]])


def heat_picture(pixels: np.ndarray, heat: np.ndarray, config: PreprocessConfig) -> Image.Image:
    """Normalised pixels (H, W, 3) and a map (h, w) -> the photo, in grey, under the map's colours.

    Colours go from the least to the greatest value of this map: they compare places in one image,
    never two images.
    """
    height, width = pixels.shape[:2]
    scale = max(1, -(-_SMALLEST // min(height, width)))
    size = (width * scale, height * scale)
    low, high = float(heat.min()), float(heat.max())
    shares = (heat - low) / max(high - low, 1e-12)
    smooth = Image.fromarray(shares.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    places = np.clip(np.asarray(smooth), 0, 1) * (len(_COLOURS) - 1)
    steps = np.arange(len(_COLOURS))
    colours = np.stack([np.interp(places, steps, _COLOURS[:, c]) for c in range(3)], axis=-1)
    grey = seen(pixels, config).convert("L").resize(size, Image.Resampling.BICUBIC)
    photo_share = (1 - _HEAT) * np.asarray(grey, np.float64)[:, :, None]
    return Image.fromarray((photo_share + _HEAT * colours).round().astype(np.uint8))


def seen(pixels: np.ndarray, config: PreprocessConfig) -> Image.Image:
    """Normalised pixels (H, W, 3) as the picture that the model sees."""
    photo = np.clip((pixels * config.std + config.mean) * 255, 0, 255).round().astype(np.uint8)
    return Image.fromarray(photo)


def write_heatmaps(
    folder: Path,
    lit: LiT,
    head: ZeroShotHead,
    rows: Iterable[Classified],
    locate: Callable[[str], Path],
) -> int:
    """Writes a picture for the best label of each image into a folder; returns how many.

    Names are NUMBER-NAME-LABEL.png, with the number of the row. Images without a label, or that
    can no longer be read, are passed over. Raises OutputError.
    """
    written = 0
    with disk_errors("write into", folder):
        folder.mkdir(exist_ok=True)
        for row in rows:
            if not row.labels:
                continue
            label = row.labels[0][0]
            try:
                pixels = lit.preprocess([locate(row.path)])
            except ImageError:  # gone since it was embedded
                continue
            vector = head.vectors[head.labels.index(label)][None]
            heat = lit.similarity_maps(pixels, vector)[0]
            picture = heat_picture(pixels[0], heat, lit.preprocessing)
            name = f"{row.row:06}-{_plain(Path(row.path).stem)}-{_plain(label)}.png"
            publish({folder / name: partial(picture.save, format="PNG")})
            written += 1
    return written


def _plain(text: str) -> str:
    """A text as part of a file's name on any system."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40] or "x"
