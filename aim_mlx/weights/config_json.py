"""config.json, of every published kind and our own: what it states, and whether the weights agree.

What the tensors say decides; a fact that contradicts them is an error. Keys that state nothing
about the model are passed over, `auto_map` (remote code) among them, and so are those whose class
defaults mislead (`use_head`, and `projection_dim` of a vision encoder). Our own format is strict,
as an unknown key may mean something:

{"format": "aim-mlx", "format_version": 1, "kind": "vision" | "lit",
 "encoder": VisionConfig | LiTConfig, "preprocessing": PreprocessConfig,
 "quantization": Quantization (absent where nothing is quantised), "provenance": {...}}
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aim_mlx.config import (
    LiTConfig,
    PreprocessConfig,
    TextConfig,
    VisionConfig,
    from_dict,
    to_dict,
)
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.quantize import Quantization, quantization_from_dict
from aim_mlx.weights.strict_json import at, read_object, show

KINDS = {"vision": "a vision encoder", "lit": "a LiT model"}
# transformers' class defaults write this value into the config.json of models that have another.
_DEFAULT_PROJECTION_DIM = 512


@dataclass(frozen=True)
class TowerFacts:
    """What is stated of one tower, by the names of VisionConfig and TextConfig; None is silence.

    `native` and `mlp_ratio` say in other words what those call `image_size` and `mlp_hidden_dim`.
    """

    embed_dim: int | None = None
    mlp_hidden_dim: int | None = None
    num_blocks: int | None = None
    num_heads: int | None = None
    rms_norm_eps: float | None = None
    patch_size: int | None = None
    image_size: int | None = None
    native: bool | None = None
    mlp_ratio: float | None = None
    vocab_size: int | None = None
    context_length: int | None = None
    eos_token_id: int | None = None


@dataclass(frozen=True)
class ConfigFacts:
    """What a config.json states; None where it is silent.

    `source` is "aim-mlx", "transformers" or "timm"; `kind` is "vision" or "lit". Only our own
    format states the whole `config` and a `quantization`.
    """

    source: str
    kind: str
    vision: TowerFacts = TowerFacts()
    text: TowerFacts = TowerFacts()
    projection_dim: int | None = None
    max_logit_scale: float | None = None
    preprocess: PreprocessConfig | None = None
    config: VisionConfig | LiTConfig | None = None
    quantization: Quantization | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def check_kind(path: Path, facts: ConfigFacts, kind: str) -> None:
    """Raises CheckpointError where config.json states the other kind of model."""
    if facts.kind != kind:
        raise CheckpointError(
            f"{at(path)} states {KINDS[facts.kind]}, the weights beside it are {KINDS[kind]}: "
            "use the config.json they were published with"
        )


def check_facts(path: Path, facts: ConfigFacts, config: VisionConfig | LiTConfig) -> None:
    """Raises CheckpointError where config.json contradicts the sizes that the tensors state.

    A `projection_dim` of 512 is passed over where the tensors have another: transformers writes its
    class default there. Any other value must be true.
    """
    if not isinstance(config, LiTConfig):
        _check_vision(path, facts.vision, config)
        return
    _check_vision(path, facts.vision, config.vision)
    _check_tower(path, facts.text, config.text)
    stated = facts.projection_dim
    if stated not in (None, _DEFAULT_PROJECTION_DIM, config.projection_dim):
        raise _contradiction(path, "projection_dim", stated, config.projection_dim)


def _check_tower(path: Path, facts: TowerFacts, config: VisionConfig | TextConfig) -> None:
    """Every plain number that both state."""
    for name in [f.name for f in fields(facts) if f.name != "image_size"]:
        stated, found = getattr(facts, name), getattr(config, name, None)
        if stated is not None and found is not None and stated != found:
            raise _contradiction(path, name, stated, found)


def _check_vision(path: Path, facts: TowerFacts, config: VisionConfig) -> None:
    _check_tower(path, facts, config)
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


FORMAT, FORMAT_VERSION = "aim-mlx", 1

_KEYS = {"format", "format_version", "kind", "encoder", "preprocessing", "provenance"}


def our_values(
    config: VisionConfig | LiTConfig,
    preprocess: PreprocessConfig,
    provenance: Mapping[str, Any],
    quantization: Quantization | None = None,
) -> dict[str, Any]:
    """The content of config.json for a folder that is written."""
    packed = {} if quantization is None else {"quantization": asdict(quantization)}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "lit" if isinstance(config, LiTConfig) else "vision",
        "encoder": to_dict(config),
        "preprocessing": to_dict(preprocess),
        **packed,
        "provenance": dict(provenance),
    }


def read_ours(path: Path, values: dict[str, Any]) -> ConfigFacts:
    """The facts of a config.json of our format; raises CheckpointError."""
    _check_keys(path, values)
    kinds: dict[str, Any] = {"vision": VisionConfig, "lit": LiTConfig}
    kind = values["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(f"{at(path)}: kind must be 'vision' or 'lit', got {show(kind)}")
    if not isinstance(values["provenance"], dict):
        raise CheckpointError(f"{at(path)}: provenance must be an object")
    quantization = None
    if "quantization" in values:
        quantization = quantization_from_dict(path, values["quantization"])
    return ConfigFacts(
        source=FORMAT,
        kind=kind,
        preprocess=from_dict(PreprocessConfig, values["preprocessing"]),
        config=from_dict(kinds[kind], values["encoder"]),
        quantization=quantization,
        provenance=values["provenance"],
    )


def _check_keys(path: Path, values: dict[str, Any]) -> None:
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
    keys = _KEYS | ({"quantization"} & set(values))
    if set(values) != keys:
        odd = sorted(set(values) ^ keys)[0]
        raise CheckpointError(
            f"{at(path)}: {'unknown' if odd in values else 'missing'} field {show(odd)}; "
            f"expected {', '.join(sorted(_KEYS))}, and quantization where weights are quantised"
        )


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
