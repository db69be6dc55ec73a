"""What fine-tuning changed of an encoder, on disk in mlx-lm's conventions.

FOLDER/adapters.safetensors    A and B of each product, or the weights themselves, float32
FOLDER/adapter_config.json     fine_tune_type "lora" or "full", num_layers, lora_parameters, and
                               under "aim_mlx" which encoder they belong to; written last
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from aim_mlx.backend import mx
from aim_mlx.config import TARGETS, LoRAConfig, VisionConfig, is_real
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.files import disk_errors, publish
from aim_mlx.models.adapters import adapter_shapes
from aim_mlx.weights.safetensors_file import TensorReader, check_file
from aim_mlx.weights.sizes import check_shapes, expected_shapes
from aim_mlx.weights.strict_json import at, read_object, show

ADAPTERS, ADAPTER_CONFIG = "adapters.safetensors", "adapter_config.json"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Adapter:
    """Adapters, or where `lora` is None the trained weights themselves, by name.

    `weights` is the digest of the encoder that they belong to, `model` what that was called;
    `digest` is that of the file, `folder` where it lies.
    """

    lora: LoRAConfig | None
    tensors: dict[str, mx.array]
    weights: str
    model: str
    digest: str = ""
    folder: str = ""


def write_adapter(folder: Path, adapter: Adapter) -> Adapter:
    """Writes both files; returns it with its digest. Raises OutputError."""
    arrays = {name: np.array(value) for name, value in adapter.tensors.items()}
    data = safetensors.numpy.save(arrays, {"format": "mlx"})
    digest = hashlib.sha256(data).hexdigest()
    lora, about = adapter.lora, {"format_version": _VERSION, "weights": adapter.weights}
    values: dict[str, Any] = {
        "fine_tune_type": "full" if lora is None else "lora",
        "model": adapter.model,
        "aim_mlx": {**about, "sha256": digest},
    }
    if lora is not None:
        values["num_layers"] = lora.blocks
        keys = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout}
        values["lora_parameters"] = {**keys, "keys": list(lora.targets)}
    text = json.dumps(values, indent=1).encode() + b"\n"
    with disk_errors("write", folder, "fix that, or choose another folder"):
        publish({folder / ADAPTERS: data, folder / ADAPTER_CONFIG: text})
    return replace(adapter, digest=digest, folder=str(folder))


def read_adapter(folder: str | os.PathLike[str], config: VisionConfig) -> Adapter:
    """What write_adapter() wrote, for an encoder of these sizes.

    Raises UsageError for a folder without an adapter, CheckpointError for one that is not sound.
    """
    path = Path(folder) / ADAPTER_CONFIG
    if not path.exists():
        raise UsageError(
            f"{at(Path(folder))} has no {ADAPTER_CONFIG}: expected a folder that aim-mlx finetune "
            "wrote"
        )
    values = read_object(path)
    try:
        about = values["aim_mlx"]
        if about["format_version"] != _VERSION:
            raise ValueError(f"its version is {about['format_version']}")
        lora = _lora(values, config) if values["fine_tune_type"] == "lora" else None
        weights, digest, model = about["weights"], about["sha256"], values["model"]
        if not all(isinstance(each, str) for each in (weights, digest, model)):
            raise ValueError("its names and digests are no texts")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{at(path)} is not what aim-mlx finetune writes ({error!s:.200}): train again"
        ) from error
    tensors = _tensors(Path(folder), lora, config, digest)
    return Adapter(lora, tensors, weights, model, digest, os.fspath(folder))


def _lora(values: Mapping[str, Any], config: VisionConfig) -> LoRAConfig:
    """Raises ValueError for what cannot be."""
    stated, blocks = values["lora_parameters"], values["num_layers"]
    rank, scale, targets = stated["rank"], stated["scale"], stated["keys"]
    if type(rank) is not int or not 1 <= rank <= 1024:
        raise ValueError(f"rank is {show(rank)}")
    if type(blocks) is not int or not 1 <= blocks <= config.num_blocks:
        raise ValueError(f"num_layers is {show(blocks)}, of {config.num_blocks} blocks")
    if not is_real(scale) or not is_real(stated["dropout"]):
        raise ValueError(f"scale is {show(scale)}")
    if not isinstance(targets, list) or not targets or not set(targets) <= set(TARGETS):
        raise ValueError(f"keys are {show(targets)}")
    return LoRAConfig(rank, float(scale), tuple(targets), blocks, float(stated["dropout"]))


def _tensors(
    folder: Path, lora: LoRAConfig | None, config: VisionConfig, digest: str
) -> dict[str, mx.array]:
    """The checked tensors: all A and B, or some of the encoder's weights; all finite float32."""
    checked = check_file(folder / ADAPTERS)
    shapes = {name: info.shape for name, info in checked.tensors.items()}
    if lora is not None:
        check_shapes(shapes, adapter_shapes(config, lora))
    else:
        known = expected_shapes(config)
        check_shapes(shapes, {name: known[name] for name in shapes if name in known})
    with open(checked.path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise CheckpointError(
                f"{at(checked.path)} is not the file that {ADAPTER_CONFIG} describes"
            )
    tensors = {}
    with TensorReader(checked) as reader:
        for name in checked.tensors:
            array = reader.read(name)
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise CheckpointError(
                    f"tensor {show(name)} of {at(checked.path)} does not hold finite float32 "
                    "numbers: train again"
                )
            tensors[name] = mx.array(array)
    return tensors
