"""config.json of every published kind, read as the facts it states about an encoder.

What the tensors say decides; a fact that contradicts them is an error. Keys that state nothing
about the encoder are passed over, `auto_map` (remote code) among them, and so are those whose class
defaults mislead (`use_head`, `projection_dim`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aim_mlx.config import PreprocessConfig, VisionConfig, from_dict
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.strict_json import at, read_object, show

FORMAT, FORMAT_VERSION = "aim-mlx", 1
LARGEST_SIZE = 2**20  # of anything config.json states; the widest published layer has 16 thousand

_OUR_KEYS = {"format", "format_version", "kind", "encoder", "preprocessing", "provenance"}


@dataclass(frozen=True)
class ConfigFacts:
    """What a config.json states; None where it is silent.

    `source` is "aim-mlx", "transformers" or "timm"; `kind` is "vision" or "lit".
    """

    source: str
    kind: str
    embed_dim: int | None = None
    mlp_hidden_dim: int | None = None
    num_blocks: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    image_size: int | None = None
    native: bool | None = None
    rms_norm_eps: float | None = None
    mlp_ratio: float | None = None
    preprocess: PreprocessConfig | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> ConfigFacts:
    """The facts of a config.json; raises CheckpointError for an unreadable or unknown one."""
    values = read_object(path)
    if "format" in values:
        return _ours(path, values)
    if "architecture" in values and "model_type" not in values:
        return _timm(path, values)
    return _transformers(path, values)


def check_facts(path: Path, facts: ConfigFacts, config: VisionConfig) -> None:
    """Raises CheckpointError where config.json contradicts the sizes that the tensors state."""
    for name in ("embed_dim", "mlp_hidden_dim", "num_blocks", "num_heads", "patch_size"):
        stated, found = getattr(facts, name), getattr(config, name)
        if stated is not None and stated != found:
            raise _contradiction(path, name, stated, found)
    if facts.native is not None and facts.native != (config.image_size is None):
        found = "no position tensor" if config.image_size is None else "a position tensor"
        raise _contradiction(path, "native", facts.native, found)
    # A native model has no size of its own; its config.json may still repeat a class default.
    if not facts.native and facts.image_size not in (None, config.image_size):
        found = config.image_size or "no position tensor"
        raise _contradiction(path, "image_size", facts.image_size, found)
    if facts.mlp_ratio is not None:
        stated = facts.mlp_ratio * config.embed_dim
        if abs(stated - config.mlp_hidden_dim) >= 1:
            raise _contradiction(path, "mlp_hidden_dim", stated, config.mlp_hidden_dim)


def _contradiction(path: Path, name: str, stated: object, found: object) -> CheckpointError:
    return CheckpointError(
        f"{at(path)} states {name} {stated}, the weights beside it have {found}: "
        "use the config.json they were published with"
    )


def _ours(path: Path, values: dict[str, Any]) -> ConfigFacts:
    """Our own format, which is strict: an unknown key may mean something."""
    version = values.get("format_version")
    if values["format"] != FORMAT or type(version) is not int or version < 1:
        raise CheckpointError(
            f"{at(path)}: expected format {FORMAT!r} with a format_version, got "
            f"{show(values['format'])} and {show(version)}"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{at(path)} has format_version {version}, this aim-mlx reads up to {FORMAT_VERSION}: "
            "upgrade aim-mlx"
        )
    if set(values) != _OUR_KEYS:
        odd = sorted(set(values) ^ _OUR_KEYS)[0]
        raise CheckpointError(
            f"{at(path)}: {'unknown' if odd in values else 'missing'} field {show(odd)}; "
            f"expected {', '.join(sorted(_OUR_KEYS))}"
        )
    if values["kind"] != "vision":
        raise CheckpointError(f"{at(path)}: kind must be 'vision', got {show(values['kind'])}")
    if not isinstance(values["provenance"], dict):
        raise CheckpointError(f"{at(path)}: provenance must be an object")
    config = from_dict(VisionConfig, values["encoder"])
    return ConfigFacts(
        source=FORMAT,
        kind="vision",
        embed_dim=config.embed_dim,
        mlp_hidden_dim=config.mlp_hidden_dim,
        num_blocks=config.num_blocks,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        image_size=config.image_size,
        native=config.image_size is None,
        rms_norm_eps=config.rms_norm_eps,
        preprocess=from_dict(PreprocessConfig, values["preprocessing"]),
        provenance=values["provenance"],
    )


def _transformers(path: Path, values: dict[str, Any]) -> ConfigFacts:
    """The reference's first snapshots (`aimv2`) and transformers' own (`aimv2_vision_model`)."""
    model_type = values.get("model_type")
    if model_type not in ("aimv2", "aimv2_vision_model"):
        raise CheckpointError(
            f"{at(path)}: model_type must be aimv2 or aimv2_vision_model, got {show(model_type)}: "
            "this is not an AIMv2 encoder"
        )
    kind = "vision"
    if model_type == "aimv2" and "vision_config" in values:
        kind, values = "lit", values["vision_config"]
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"{at(path)}: vision_config must be an object, got {show(values)}"
            )
    for name, known in (("hidden_act", ("silu", "swish")), ("num_channels", (3,))):
        if values.get(name) is not None and values[name] not in known:
            raise CheckpointError(
                f"{at(path)}: {name} must be {known[0]}, got {show(values[name])}"
            )
    for name in ("use_bias", "qkv_bias", "mlp_bias"):
        if values.get(name):
            raise CheckpointError(f"{at(path)}: {name} must be false, got {show(values[name])}")
    native = values.get("is_native")
    if native is not None and type(native) is not bool:
        raise CheckpointError(f"{at(path)}: is_native must be true or false, got {show(native)}")
    return ConfigFacts(
        source="transformers",
        kind=kind,
        embed_dim=_size(path, values, "hidden_size"),
        mlp_hidden_dim=_size(path, values, "intermediate_size"),
        num_blocks=_size(path, values, "num_hidden_layers"),
        num_heads=_size(path, values, "num_attention_heads"),
        patch_size=_size(path, values, "patch_size"),
        image_size=_size(path, values, "image_size"),
        native=native,
        rms_norm_eps=_number(path, values, "rms_norm_eps"),
    )


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
    return ConfigFacts(
        source="timm",
        kind="vision",
        embed_dim=_size(path, arguments, "embed_dim") or _size(path, values, "num_features"),
        num_blocks=_size(path, arguments, "depth"),
        num_heads=_size(path, arguments, "num_heads"),
        patch_size=_size(path, arguments, "patch_size"),
        image_size=image_size,
        mlp_ratio=_number(path, arguments, "mlp_ratio"),
        preprocess=preprocess,
    )


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
