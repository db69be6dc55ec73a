"""What is measured on: a checkpoint that both libraries read, and folders of photographs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

PHOTOGRAPHS = Path(__file__).parent.parent / "examples" / "photos"
_NOISE = 8.0  # of 255: what a phone's sensor leaves in daylight, and what sets a JPEG's size
_QUALITY = 90


def make_checkpoint(model: str, folder: str) -> dict[str, Any]:
    """Writes float32 weights in the transformers layout; `model` is a registry name or a folder.

    Returns the sizes: bytes of the weights and the image size. A name gives random weights.
    """
    from safetensors.numpy import save_file

    from aim_mlx.config import VisionConfig
    from aim_mlx.registry import MODELS
    from aim_mlx.weights.checkpoint import open_checkpoint
    from aim_mlx.weights.initial import initial_weights
    from aim_mlx.weights.layouts import layout_named
    from aim_mlx.weights.load import load_weights
    from aim_mlx.weights.rules import from_ours

    if model in MODELS:
        config, checkpoint = MODELS[model].config, None
    else:
        checkpoint = open_checkpoint(model)
        config = checkpoint.config
    if not isinstance(config, VisionConfig) or not config.image_size or config.family != "aimv2":
        raise SystemExit(f"{model}: expected an AIMv2 encoder of one image size")
    pairs = load_weights(checkpoint).items() if checkpoint else initial_weights(config, seed=0)
    layout, tensors = layout_named("transformers"), {}
    for name, array in pairs:
        tensors |= from_ours(layout, name, np.array(array))
    target = Path(folder)
    target.mkdir(parents=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    values = {
        "architectures": ["Aimv2VisionModel"],
        "model_type": "aimv2_vision_model",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_hidden_dim,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
        "rms_norm_eps": config.rms_norm_eps,
        "use_head": False,
        "is_native": False,
    }
    (target / "config.json").write_text(json.dumps(values))
    weights = sum(tensor.nbytes for tensor in tensors.values())
    return {"weights_bytes": weights, "image_size": config.image_size}


def make_photos(folder: str, count: int, size: tuple[int, int]) -> dict[str, Any]:
    """Writes `count` JPEGs of `size` (width, height): a few photographs, each time in other noise.

    No two are alike, for a store computes equal files once.
    """
    target = Path(folder)
    target.mkdir(parents=True)
    scaled = [_scaled(path, size) for path in sorted(PHOTOGRAPHS.glob("*.jpg"))[:count]]
    paths = [target / f"{i:04}.jpg" for i in range(count)]
    for seed, path in enumerate(paths):
        _noisy(scaled[seed % len(scaled)], seed).save(path, quality=_QUALITY)
    if len({hashlib.sha256(path.read_bytes()).digest() for path in paths}) != count:
        raise SystemExit("two of the photographs are alike")
    bytes_each = sum(path.stat().st_size for path in paths) / count
    return {"count": count, "megabytes_each": round(bytes_each / 1e6, 2)}


def images_in_memory(count: int, side: int) -> list[np.ndarray]:
    """uint8 (side, side, 3) images that need no decoding and no resizing."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]


def _scaled(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A photograph scaled and cut to `size`, uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC))


def _noisy(pixels: np.ndarray, seed: int) -> Image.Image:
    """A photograph with the noise that scaling up has not."""
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(pixels + _NOISE * noise, 0, 255).astype(np.uint8))
