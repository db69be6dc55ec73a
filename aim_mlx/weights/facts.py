"""What a config.json states of a model, and whether the weights beside it agree."""

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
from aim_mlx.weights.strict_json import at, show

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
