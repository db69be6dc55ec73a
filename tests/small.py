"""A small encoder with seeded noise in every parameter: a gain of one would hide a swapped norm."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.config import LiTConfig, PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.weights.save import provenance, save_checkpoint
from aim_mlx.weights.sizes import expected_shapes

SMALL = VisionConfig(64, 176, 3, 2, 14, 56)
NATIVE = VisionConfig(64, 176, 3, 2, 14, None)
AIMV1 = VisionConfig(64, 256, 3, 2, 14, 56, 1e-6, "aimv1")
# As large a vocabulary as the reference's small one, and room for short prompts only.
SMALL_LIT = LiTConfig(SMALL, TextConfig(48, 128, 2, 3, 1385, 32, 1384), 32)
TOKENIZER = Path(__file__).parent / "data" / "clip_tokenizer"


def noisy(config: VisionConfig, seed: int = 0) -> VisionEncoder:
    """A network with noise in all tensors; gains lie about one."""
    model = VisionEncoder(config)
    rng = np.random.default_rng(seed)
    noise = {}
    for name, value in dict(tree_flatten(model.parameters())).items():
        gain = "norm" in name and name.endswith("weight")
        values = rng.normal(0, 0.1, value.shape) + (1.0 if gain else 0.0)
        noise[name] = mx.array(values.astype(np.float32))
    model.load_weights(list(noise.items()), strict=True)
    return model


def encoder(config: VisionConfig = SMALL, seed: int = 0) -> Encoder:
    return Encoder(noisy(config, seed), PreprocessConfig.published(config))


def save(folder: Path, config: VisionConfig = SMALL, trained: bool = True) -> Path:
    """A checkpoint folder of that network."""
    weights = dict(tree_flatten(noisy(config).parameters()))
    preprocess = PreprocessConfig.published(config)
    return save_checkpoint(folder, weights, config, preprocess, provenance(trained=trained))


def save_lit(
    folder: Path, config: LiTConfig = SMALL_LIT, seed: int = 0, tokenizer: bool = True
) -> Path:
    """A LiT folder with noise in all tensors and the reference's small tokenizer."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        # Token vectors of size one, or all texts would be much alike.
        deviation = 1.0 if "text_embedding" in name else 0.1
        values = rng.normal(0, deviation, shape) + (1.0 if "norm" in name else 0.0)
        weights[name] = mx.array(values.astype(np.float32))
    weights["log_logit_scale"] = mx.array(2.5)
    files = [TOKENIZER / name for name in ("vocab.json", "merges.txt")] if tokenizer else []
    return save_checkpoint(
        folder,
        weights,
        config,
        PreprocessConfig.hub(config.vision.image_size),
        provenance(trained=True),
        extra_files={file.name: file.read_bytes() for file in files},
    )


COSTLY = 64 * 2**20


def costly() -> mx.array:
    """One, not yet computed: whoever does so needs COSTLY bytes for a moment."""
    each = mx.arange(4096, dtype=mx.float32)
    return (each[:, None] - each[None]).max() / 4095


def peak_bytes(array: mx.array) -> int:
    """The memory that computing an array takes at most."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(array)
    return mx.get_peak_memory() - before


def photo(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A smooth random picture, uint8 (H, W, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3))
    rows = np.linspace(0, 4.999, height).astype(int)
    columns = np.linspace(0, 6.999, width).astype(int)
    return coarse[rows][:, columns].astype(np.uint8)


def many_photos(folder: Path, count: int) -> Path:
    """Large photographs that differ in what follows their end, which takes seconds to embed."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(photo(0, 900, 1200)).save(folder / "0.png")
    data = (folder / "0.png").read_bytes()
    for i in range(1, count):
        (folder / f"{i}.png").write_bytes(data + str(i).encode())
    return folder


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def assert_like_float16(actual, wanted) -> None:
    """Numbers equal but for a unit of float16, where sums rounded otherwise lie on either side.

    Those are within 1e-6 of each other for values up to 4, which near zero is more than a unit.
    """
    actual, wanted = (np.asarray(each, np.float32) for each in (actual, wanted))
    unit = np.spacing(np.maximum(abs(actual), abs(wanted)).astype(np.float16)).astype(np.float32)
    apart = abs(actual - wanted)
    assert (apart <= unit + 1e-5).all(), f"{apart.max():.1e}, mean {apart.mean():.1e}"
