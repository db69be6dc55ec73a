"""config.json, of every published kind and our own: what it states beside the tensors.

Sizes come from the tensors; read here is what those cannot say. What else is stated must agree with
them, or the checkpoint is refused. Keys that state nothing about the model are passed over,
`auto_map` (remote code) among them, and so are those whose class defaults mislead (`use_head`, and
`projection_dim` of a vision encoder). Our own format is strict, as an unknown key may mean
something:

{"format": "aim-mlx", "format_version": 1, "kind": "vision" | "lit",
 "encoder": VisionConfig | LiTConfig, "preprocessing": PreprocessConfig,
 "quantization": Quantization (absent where nothing is quantised), "provenance": {...}}
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aim_mlx.config import (
    LiTConfig,
    PreprocessConfig,
    VisionConfig,
    from_dict,
    is_real,
    to_dict,
)
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.quantize import Quantization, quantization_from_dict
from aim_mlx.weights.strict_json import at, read_object, show

ModelConfig = VisionConfig | LiTConfig
Values = Mapping[str, Any]

FORMAT, FORMAT_VERSION = "aim-mlx", 1
KINDS = {"vision": "a vision encoder", "lit": "a LiT model"}
_KEYS = {"format", "format_version", "kind", "encoder", "preprocessing", "provenance"}

# Our names -> those of transformers, of timm and of the reference code of AIMv1.
_TRUNK = {
    "embed_dim": "hidden_size",
    "mlp_hidden_dim": "intermediate_size",
    "num_blocks": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "rms_norm_eps": "rms_norm_eps",
}
_VISION = _TRUNK | {"patch_size": "patch_size", "image_size": "image_size", "native": "is_native"}
_TEXT = _TRUNK | {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "eos_token_id": "eos_token_id",
}
_LIT = {"projection_dim": "projection_dim", "max_logit_scale": "max_logit_scale"}
_TIMM = {
    "embed_dim": "embed_dim",
    "num_blocks": "depth",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
    "image_size": "img_size",
    "mlp_ratio": "mlp_ratio",
}
_AIMV1 = _TIMM | {"num_blocks": "num_blocks"}
# What would change the network is stated with these values or not at all.
_FIXED = {
    "hidden_act": ("silu", "swish"),
    "num_channels": (3,),
    "use_bias": (False,),
    "qkv_bias": (False,),
    "mlp_bias": (False,),
}
_TOWER_TYPES = ("aimv2", "aimv2_vision_model", "ovis2_vision")
# transformers' class defaults write this value into the config.json of models that have another.
_DEFAULT_PROJECTION_DIM = 512


@dataclass(frozen=True)
class Stated:
    """What config.json or `config=` states of a model; where it is silent, nothing is there.

    `place` is for messages. `vision`, `text` and `lit` have values by the names of VisionConfig,
    TextConfig and LiTConfig, unchecked; `visual_tokens` those that Ovis2 has for its own part. Only
    our own format states the whole `config` and a `quantization`.
    """

    place: str
    kind: str | None = None
    vision: Values = field(default_factory=dict)
    text: Values = field(default_factory=dict)
    lit: Values = field(default_factory=dict)
    preprocess: PreprocessConfig | None = None
    config: ModelConfig | None = None
    quantization: Quantization | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    multimodal: bool = False
    visual_tokens: Values = field(default_factory=dict)

    @classmethod
    def by_argument(cls, config: ModelConfig) -> "Stated":
        """What the argument `config=` states."""
        if isinstance(config, LiTConfig):
            return cls("config=", "lit", vars(config.vision), vars(config.text), vars(config))
        return cls("config=", "vision", vars(config))

    def check_kind(self, kind: str) -> None:
        """Raises CheckpointError where the other kind of model is stated."""
        if self.kind not in (None, kind):
            raise CheckpointError(
                f"{self.place} states {KINDS[self.kind]}, the weights are {KINDS[kind]}: "
                f"{self._advice}"
            )

    def check(self, config: ModelConfig) -> None:
        """Raises CheckpointError for what contradicts the sizes that the tensors state."""
        if isinstance(config, LiTConfig):
            self._check(self.vision, config.vision)
            self._check(self.text, config.text)
            self._check(self.lit, config)
        else:
            self._check(self.vision, config)

    def _check(self, values: Values, config: Any) -> None:
        for name, value in values.items():
            real = getattr(config, name)
            rounded = name == "mlp_ratio" and is_real(value)
            if value != real and not (rounded and abs(value - real) * config.embed_dim < 1):
                raise CheckpointError(
                    f"{self.place} states {name} {show(value)}, the weights have {real}: "
                    f"{self._advice}"
                )

    @property
    def _advice(self) -> str:
        if self.place == "config=":
            return "correct config="
        return "use the config.json they were published with"


def read_config(path: Path) -> Stated:
    """What a config.json states; raises CheckpointError for an unreadable or unknown one."""
    values = read_object(path)
    if "format" in values:
        return _ours(path, values)
    if "architecture" in values and "model_type" not in values:
        return _timm(path, values)
    if "num_blocks" in values and "model_type" not in values:
        return _aimv1(path, values)
    return _transformers(path, values)


def our_values(
    config: ModelConfig,
    preprocess: PreprocessConfig,
    provenance: Values,
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


def _ours(path: Path, values: Values) -> Stated:
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
    return Stated(
        at(path),
        kind,
        preprocess=from_dict(PreprocessConfig, values["preprocessing"]),
        config=from_dict(kinds[kind], values["encoder"]),
        quantization=quantization,
        provenance=values["provenance"],
    )


def _check_keys(path: Path, values: Values) -> None:
    version = values.get("format_version")
    if values["format"] != FORMAT or type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{at(path)}: expected format {FORMAT!r} and format_version {FORMAT_VERSION}, got "
            f"{show(values['format'])} and {show(version)}: where that is newer, upgrade aim-mlx"
        )
    keys = _KEYS | ({"quantization"} & set(values))
    if set(values) != keys:
        odd = sorted(set(values) ^ keys)[0]
        raise CheckpointError(
            f"{at(path)}: {'unknown' if odd in values else 'missing'} field {show(odd)}; "
            f"expected {', '.join(sorted(_KEYS))}, and quantization where weights are quantised"
        )


def _transformers(path: Path, values: Values) -> Stated:
    """The reference's first snapshots (`aimv2`) and transformers' own (`aimv2_vision_model`)."""
    model_type = values.get("model_type")
    if model_type == "aimv2_text_model":
        raise CheckpointError(
            f"{at(path)}: this is transformers' Aimv2TextModel alone: give the LiT model that it "
            "belongs to, with both of its towers"
        )
    if model_type not in ("aimv2", "aimv2_vision_model"):
        if "visual_tokenizer_config" in values or "vision_config" in values:
            return _multimodal(path, values)
        raise CheckpointError(
            f"{at(path)}: model_type must be aimv2 or aimv2_vision_model, got {show(model_type)}: "
            "this is not an AIMv2 encoder"
        )
    if model_type == "aimv2" and ("vision_config" in values or "text_config" in values):
        lit = _stated(path, values, _LIT)
        if lit.get("projection_dim") == _DEFAULT_PROJECTION_DIM:
            del lit["projection_dim"]
        return Stated(
            at(path),
            "lit",
            _vision(path, _object(path, values, "vision_config")),
            _stated(path, _object(path, values, "text_config"), _TEXT),
            lit,
        )
    return Stated(at(path), "vision", _vision(path, values))


def _multimodal(path: Path, values: Values) -> Stated:
    """A multimodal model: its tower is stated by Ovis2's own keys, or by those of transformers."""
    place = "vision_config"
    tower = tokens = _object(path, values, place)
    if "visual_tokenizer_config" in values:
        place = "visual_tokenizer_config.backbone_config"
        tokens = _object(path, values, "visual_tokenizer_config")
        tower = _object(path, tokens, "backbone_config")
    model_type = tower.get("model_type")
    if model_type not in _TOWER_TYPES:
        raise CheckpointError(
            f"{at(path)}: model_type in {place} must be one of {', '.join(_TOWER_TYPES)}, got "
            f"{show(model_type)}: the model has no AIMv2 tower"
        )
    vision = _vision(path, tower)
    return Stated(at(path), "vision", vision, multimodal=True, visual_tokens=tokens)


def _vision(path: Path, values: Values) -> Values:
    stated = _stated(path, values, _VISION)
    if stated.get("native") is True:  # without a size of its own, it may repeat a class default
        stated.pop("image_size", None)
    return stated


def _aimv1(path: Path, values: Values) -> Stated:
    """The arguments of apple/ml-aim's `AIMForImageClassification`, which has only AIMv1."""
    return Stated(at(path), "vision", {**_stated(path, values, _AIMV1), "family": "aimv1"})


def _timm(path: Path, values: Values) -> Stated:
    """timm's config.json: an architecture by name, arguments that differ from it, preprocessing."""
    architecture = values["architecture"]
    if not isinstance(architecture, str) or not architecture.startswith("aimv2_"):
        raise CheckpointError(
            f"{at(path)}: architecture must start with aimv2_, got {show(architecture)}: "
            "this is not an AIMv2 encoder"
        )
    preprocess = _timm_preprocess(path, _object(path, values, "pretrained_cfg"))
    stated = _stated(path, values, {"embed_dim": "num_features"})
    if preprocess is not None:
        stated["image_size"] = preprocess.crop_size
    stated |= _stated(path, _object(path, values, "model_args"), _TIMM)
    return Stated(at(path), "vision", stated, preprocess=preprocess)


def _timm_preprocess(path: Path, values: Values) -> PreprocessConfig | None:
    """The preprocessing of a `pretrained_cfg`, None if it states none."""
    if "input_size" not in values:
        return None
    size = values["input_size"]
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise CheckpointError(f"{at(path)}: input_size must be [3, S, S], got {show(size)}")
    for name, only in {"interpolation": "bicubic", "crop_mode": "center"}.items():
        if values.get(name, only) != only:
            raise CheckpointError(f"{at(path)}: {name} must be {only}, got {show(values[name])}")
    crop, fraction = size[1], values.get("crop_pct")
    fraction = 1 if fraction is None else fraction
    if type(crop) is not int or not is_real(fraction) or not 0 < fraction <= 1:
        raise CheckpointError(
            f"{at(path)}: input_size must be whole numbers and crop_pct above 0 and at most 1, "
            f"got {show(size)} and {show(fraction)}"
        )
    optional = {name: values[name] for name in ("mean", "std") if name in values}
    return PreprocessConfig(math.floor(min(crop / fraction, 1e9)), crop, **optional)


def _stated(path: Path, values: Values, names: Mapping[str, str]) -> dict[str, Any]:
    """What is stated, by our names; of two equal values, as for a square's sides, the one."""
    for name, allowed in _FIXED.items():
        if values.get(name) is not None and values[name] not in allowed:
            raise CheckpointError(
                f"{at(path)}: {name} must be {str(allowed[0]).lower()}, got {show(values[name])}"
            )
    stated = {}
    for ours, theirs in names.items():
        value = values.get(theirs)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if value is not None:
            stated[ours] = value
    return stated


def _object(path: Path, values: Values, name: str) -> Values:
    value = values.get(name)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{at(path)}: {name} must be an object, got {show(value)}")
    return value or {}
