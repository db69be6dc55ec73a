"""Writes handwritten digits and a small encoder: python examples/digits.py DIGITS MODEL

scikit-learn's 1,797 real scans of 8 x 8 pixels, enlarged, in a folder for each digit; and a
checkpoint of half a million random, untrained weights, with which probes can be tried in seconds.
Needs scikit-learn (in the extra `examples`), no network.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from aim_mlx.config import PreprocessConfig, VisionConfig
from aim_mlx.weights.initial import initial_weights
from aim_mlx.weights.save import provenance, save_checkpoint

ENCODER = VisionConfig(
    embed_dim=128, mlp_hidden_dim=352, num_blocks=2, num_heads=4, patch_size=14, image_size=56
)


def write_digits(folder: Path, shuffled: bool = False) -> None:
    """A folder for each digit; with `shuffled` the scans are dealt out to these by chance."""
    scans, labels = load_digits(return_X_y=True)
    if shuffled:
        labels = np.random.default_rng(0).permutation(labels)
    for number, (scan, label) in enumerate(zip(scans, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        # Scans hold 0 for paper to 16 for ink.
        grey = (255 - scan.reshape(8, 8) * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(grey).resize((56, 56), Image.Resampling.BICUBIC)
        image.save(folder / str(label) / f"{number:04}.png")


def write_encoder(folder: Path) -> None:
    """An untrained checkpoint: attention of a trained one would help, this one only mixes."""
    history = provenance(source="random initialisation", trained=False, seed=0)
    preprocess = PreprocessConfig.hub(ENCODER.image_size)
    save_checkpoint(folder, initial_weights(ENCODER, 0), ENCODER, preprocess, history)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("expected two folders to write: python examples/digits.py DIGITS ENCODER")
    write_digits(Path(sys.argv[1]))
    write_encoder(Path(sys.argv[2]))
    print(f"1,797 digits in {sys.argv[1]}, an untrained encoder in {sys.argv[2]}")
