"""config.json of every published kind, read as the facts it states about a model.

What the tensors say decides; a fact that contradicts them is an error. Keys that state nothing
about the model are passed over, `auto_map` (remote code) among them, and so are those whose class
defaults mislead (`use_head`, and `projection_dim` of a vision encoder).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.facts import ConfigFacts, TowerFacts, read_ours
from aim_mlx.weights.strict_json import at, read_object, show

LARGEST_SIZE = 2**20  # of anything config.json states; the widest published layer has 16 thousand


def read_config(path: Path) -> ConfigFacts:
    """The facts of a config.json; raises CheckpointError for an unreadable or unknown one."""
    values = read_object(path)
    if "format" in values:
        return read_ours(path, values)
    if "architecture" in values and "model_type" not in values:
        return _timm(path, values)
    return _transformers(path, values)


def _transformers(path: Path, values: dict[str, Any]) -> ConfigFacts:
    """The reference's first snapshots (`aimv2`) and transformers' own (`aimv2_vision_model`)."""
    model_type = values.get("model_type")
    if model_type == "aimv2_text_model":
        raise CheckpointError(
            f"{at(path)}: this is transformers' Aimv2TextModel alone: give the LiT model that it "
            "belongs to, with both of its towers"
        )
    if model_type not in ("aimv2", "aimv2_vision_model"):
        raise CheckpointError(
            f"{at(path)}: model_type must be aimv2 or aimv2_vision_model, got {show(model_type)}: "
            "this is not an AIMv2 encoder"
        )
    if model_type == "aimv2" and ("vision_config" in values or "text_config" in values):
        vision = _object(path, values, "vision_config")
        text = _object(path, values, "text_config")
        return ConfigFacts(
            source="transformers",
            kind="lit",
            vision=_vision_tower(path, vision),
            text=_text_tower(path, text),
            projection_dim=_size(path, values, "projection_dim"),
            max_logit_scale=_number(path, values, "max_logit_scale"),
        )
    return ConfigFacts("transformers", "vision", _vision_tower(path, values))


def _vision_tower(path: Path, values: Mapping[str, Any]) -> TowerFacts:
    native = values.get("is_native")
    if native is not None and type(native) is not bool:
        raise CheckpointError(f"{at(path)}: is_native must be true or false, got {show(native)}")
    if values.get("num_channels") not in (None, 3):
        raise CheckpointError(
            f"{at(path)}: num_channels must be 3, got {show(values['num_channels'])}"
        )
    return TowerFacts(
        **_trunk(path, values),
        patch_size=_size(path, values, "patch_size"),
        image_size=_size(path, values, "image_size"),
        native=native,
    )


def _text_tower(path: Path, values: Mapping[str, Any]) -> TowerFacts:
    end = values.get("eos_token_id")
    if end is not None and (type(end) is not int or not 0 <= end < LARGEST_SIZE):
        raise CheckpointError(
            f"{at(path)}: eos_token_id must be a whole number from 0, got {show(end)}"
        )
    return TowerFacts(
        **_trunk(path, values),
        vocab_size=_size(path, values, "vocab_size"),
        context_length=_size(path, values, "max_position_embeddings"),
        eos_token_id=end,
    )


def _trunk(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What both towers state of their blocks; raises CheckpointError for blocks of another kind."""
    if values.get("hidden_act") not in (None, "silu", "swish"):
        raise CheckpointError(
            f"{at(path)}: hidden_act must be silu, got {show(values['hidden_act'])}"
        )
    for name in ("use_bias", "qkv_bias", "mlp_bias"):
        if values.get(name):
            raise CheckpointError(f"{at(path)}: {name} must be false, got {show(values[name])}")
    return {
        "embed_dim": _size(path, values, "hidden_size"),
        "mlp_hidden_dim": _size(path, values, "intermediate_size"),
        "num_blocks": _size(path, values, "num_hidden_layers"),
        "num_heads": _size(path, values, "num_attention_heads"),
        "rms_norm_eps": _number(path, values, "rms_norm_eps"),
    }


def _timm(path: Path, values: dict[str, Any]) -> ConfigFacts:
    """timm's config.json: an architecture by name, arguments that differ from it, preprocessing."""
    architecture = values["architecture"]
    if not isinstance(architecture, str) or not architecture.startswith("aimv2_"):
        raise CheckpointError(
            f"{at(path)}: architecture must start with aimv2_, got {show(architecture)}: "
            "this is not an AIMv2 encoder"
        )
    arguments = _object(path, values, "model_args")
    pretrained = _object(path, values, "pretrained_cfg")
    image_size = _size(path, arguments, "img_size")
    preprocess = _timm_preprocess(path, pretrained)
    if image_size is None and preprocess is not None:
        image_size = preprocess.crop_size
    vision = TowerFacts(
        embed_dim=_size(path, arguments, "embed_dim") or _size(path, values, "num_features"),
        num_blocks=_size(path, arguments, "depth"),
        num_heads=_size(path, arguments, "num_heads"),
        patch_size=_size(path, arguments, "patch_size"),
        image_size=image_size,
        mlp_ratio=_number(path, arguments, "mlp_ratio"),
    )
    return ConfigFacts("timm", "vision", vision, preprocess=preprocess)


def _timm_preprocess(path: Path, values: Mapping[str, Any]) -> PreprocessConfig | None:
    """The preprocessing of a `pretrained_cfg`, None if it states none."""
    if "input_size" not in values:
        return None
    size = values["input_size"]
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3:
        raise CheckpointError(f"{at(path)}: input_size must be [3, S, S], got {show(size)}")
    crop = _size(path, {"input_size": size[1:]}, "input_size")
    crop_pct = _number(path, values, "crop_pct") or 1.0
    known = {"interpolation": ("bicubic",), "crop_mode": ("center",)}
    for name, allowed in known.items():
        if values.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{at(path)}: {name} must be {allowed[0]}, got {show(values[name])}"
            )
    if crop is None or not 0 < crop_pct <= 1:
        raise CheckpointError(f"{at(path)}: crop_pct must be above 0 and at most 1, got {crop_pct}")
    optional = {name: values[name] for name in ("mean", "std") if name in values}
    return PreprocessConfig(math.floor(crop / crop_pct), crop, **optional)


def _object(path: Path, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{at(path)}: {name} must be an object, got {show(value)}")
    return value or {}


def _size(path: Path, values: Mapping[str, Any], name: str) -> int | None:
    """A positive whole number, or two equal ones, far below what could exhaust a machine."""
    value = values.get(name)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise CheckpointError(
            f"{at(path)}: {name} must be a whole number from 1 to {LARGEST_SIZE}, got {show(value)}"
        )
    return value


def _number(path: Path, values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise CheckpointError(f"{at(path)}: {name} must be a positive number, got {show(value)}")
    return float(value)
