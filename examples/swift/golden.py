"""Writes what the Swift tests compare with: python examples/swift/golden.py [FOLDER]

A tiny model folder with noise in all tensors, and photos with the pixels and the vector that
aim_mlx makes of each: one wide, one tall enough to be resized in the other order, one small.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from aim_mlx import PreprocessConfig, VisionConfig, load
from aim_mlx.backend import mx
from aim_mlx.images.preprocess import preprocess
from aim_mlx.weights.save import provenance, save_checkpoint
from aim_mlx.weights.sizes import expected_shapes

GOLDEN = Path(__file__).parent / "Golden"
CONFIG = VisionConfig(16, 40, 2, 2, 14, 42)
SIZES = [(50, 75), (100, 45), (30, 20)]  # height, width


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    save_checkpoint(folder, weights(rng), CONFIG, hub(), provenance(), overwrite=True)
    encoder = load(folder)
    photos = [photo(rng, height, width) for height, width in SIZES]
    vectors = encoder.embed(photos)
    rows = [
        {
            "height": image.shape[0],
            "width": image.shape[1],
            "photo": encoded(image),
            "pixels": encoded(seen(image)),
            "embedding": [round(float(value), 7) for value in vector],
        }
        for image, vector in zip(photos, vectors, strict=True)
    ]
    Image.fromarray(photos[0]).save(folder / "photo.png")  # to be read without loss
    (folder / "golden.json").write_text(json.dumps({"photos": rows}, indent=1) + "\n")


def hub() -> PreprocessConfig:
    return PreprocessConfig.hub(CONFIG.image_size)


def weights(rng: np.random.Generator) -> dict[str, mx.array]:
    """Gains lie about one."""
    return {
        name: mx.array(
            (rng.normal(0, 0.1, shape) + (1.0 if "norm" in name else 0.0)).astype(np.float32)
        )
        for name, shape in expected_shapes(CONFIG).items()
    }


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth picture with hard edges and noise, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[:height, :width] / 9
    waves = np.stack([np.sin(rows + columns), np.sin(rows - columns), np.sign(np.sin(rows))], -1)
    return np.clip(128 + 110 * waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def seen(image: np.ndarray) -> np.ndarray:
    """The resized centre before it is normalised, uint8 (S, S, 3)."""
    config = hub()
    pixels = preprocess(image, config) * np.array(config.std) + np.array(config.mean)
    return np.round(pixels * 255).astype(np.uint8)


def encoded(image: np.ndarray) -> str:
    return base64.b64encode(image.tobytes()).decode()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
