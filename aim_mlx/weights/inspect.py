"""What a checkpoint is, in plain values, for people and for `aim-mlx inspect`."""

import os
from collections import Counter
from dataclasses import asdict
from typing import Any

from aim_mlx.config import to_dict
from aim_mlx.weights.checkpoint import DTYPE_NAMES, Checkpoint, ModelConfig, open_checkpoint
from aim_mlx.weights.towers import described

_NAMES = DTYPE_NAMES | {"U32": "packed", "U8": "packed scales"}


def describe(path: str | os.PathLike[str], config: ModelConfig | None = None) -> dict[str, Any]:
    """Checks a checkpoint without reading its tensors and says what it holds, in JSON values.

    `config` gives the sizes in place of config.json. `fits` names the published models of the same
    sizes: it says what the weights could be, not what they are. Raises CheckpointError, and warns
    as `load` does.
    """
    checkpoint = open_checkpoint(path, config)
    checkpoint.warn()
    dtypes = Counter(_NAMES[info.dtype] for info in checkpoint.tensors.values())
    how = checkpoint.quantization
    return {
        "path": str(checkpoint.path),
        "model": checkpoint.model,
        "layout": checkpoint.layout,
        "kind": checkpoint.kind,
        "sizes": to_dict(checkpoint.config),
        "preprocessing": to_dict(checkpoint.preprocess),
        "quantization": None if how is None else asdict(how),
        "dtype": checkpoint.dtype,
        "dtypes": dict(sorted(dtypes.items())),
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "files": [{"name": file.path.name, "bytes": file.size} for file in checkpoint.files],
        "trained": checkpoint.trained,
        "provenance": checkpoint.provenance,
        "fits": _fits(checkpoint),
        **_tower(checkpoint),
    }


def _tower(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a multimodal model's checkpoint is, and how many tensors there are beside its tower."""
    beside = {"beside": dict(checkpoint.beside)} if checkpoint.beside else {}
    if checkpoint.tower is None:
        return beside
    return {"tower": described(checkpoint.tower, checkpoint.vision), "beside": {}} | beside


def _fits(checkpoint: Checkpoint) -> list[str]:
    """Names of the published models of these sizes."""
    from aim_mlx.registry import MODELS

    return [name for name, spec in MODELS.items() if spec.config == checkpoint.config]
