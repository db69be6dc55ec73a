"""An encoder as a folder that transformers loads: `Aimv2VisionModel.from_pretrained(FOLDER)`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.config import PreprocessConfig, VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.files import disk_errors, publish
from aim_mlx.weights.files import OUR_FILE
from aim_mlx.weights.layouts import layout_named
from aim_mlx.weights.rules import from_ours
from aim_mlx.weights.safetensors_writer import write_arrays
from aim_mlx.weights.save import check_folder

_BICUBIC = 3  # Pillow's number


def save_for_transformers(
    folder: Path,
    weights: Mapping[str, mx.array],
    config: VisionConfig,
    preprocess: PreprocessConfig,
) -> Path:
    """Writes float32 weights under our names in transformers' layout, into a new or empty folder.

    Raises OutputError where that cannot be done, UsageError for what transformers does not have:
    AIMv1, and some preprocessing.
    """
    if config.family == "aimv1":
        raise UsageError("transformers has no AIMv1: write the folder in our own layout")
    if preprocess.crop_rounding != "floor" and preprocess.crop_size != preprocess.shortest_edge:
        raise UsageError(
            "transformers crops an odd number of pixels on another side than this model's "
            "preprocessing: write the folder in our own layout"
        )
    if preprocess.fit == "pad":
        raise UsageError(
            "transformers' CLIPImageProcessor does not pad images as this model's preprocessing "
            "does: write the folder in our own layout"
        )
    check_folder(folder, overwrite=False)
    layout = layout_named("transformers")
    tensors: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        tensors |= from_ours(layout, name, np.array(value))
    contents = {
        OUR_FILE: lambda file: write_arrays(file, tensors, {"format": "pt"}),
        "preprocessor_config.json": _json(_preprocessor(preprocess)),
        "config.json": _json(_config(config)),
    }
    with disk_errors("write", folder, "make room or choose another place"):
        folder.mkdir(exist_ok=True)
        publish({folder / name: content for name, content in contents.items()})
    return folder


def _config(config: VisionConfig) -> dict[str, Any]:
    return {
        "architectures": ["Aimv2VisionModel"],
        "model_type": "aimv2_vision_model",
        "dtype": "float32",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_hidden_dim,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
        "is_native": config.native,
        "hidden_act": "silu",
        "num_channels": 3,
        "qkv_bias": False,
        "mlp_bias": False,
        "use_head": False,
    }


def _preprocessor(preprocess: PreprocessConfig) -> dict[str, Any]:
    S = preprocess.crop_size
    square = {"height": S, "width": S}
    squashes = preprocess.fit == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squashes else {"shortest_edge": preprocess.shortest_edge},
        "resample": _BICUBIC,
        "do_center_crop": not squashes,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"
