"""config.json of our own folder format, which is strict: an unknown key may mean something.

{"format": "aim-mlx", "format_version": 1, "kind": "vision" | "lit",
 "encoder": VisionConfig | LiTConfig, "preprocessing": PreprocessConfig,
 "quantization": Quantization (absent where nothing is quantised), "provenance": {...}}
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aim_mlx.config import (
    LiTConfig,
    PreprocessConfig,
    VisionConfig,
    from_dict,
    to_dict,
)
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.facts import ConfigFacts
from aim_mlx.weights.quantize import Quantization, quantization_from_dict
from aim_mlx.weights.strict_json import at, show

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
