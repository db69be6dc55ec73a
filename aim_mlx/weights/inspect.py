"""What a checkpoint is, in plain values, for people and for `aim-mlx inspect`."""

import os
from collections import Counter
from typing import Any

from aim_mlx.config import VisionConfig, to_dict
from aim_mlx.weights.opening import DTYPE_NAMES, Checkpoint, open_checkpoint


def describe(path: str | os.PathLike[str], config: VisionConfig | None = None) -> dict[str, Any]:
    """Checks a checkpoint without reading its tensors and says what it holds, in JSON values.

    `config` gives the sizes in place of config.json. `fits` names the published models of the same
    sizes: it says what the weights could be, not what they are. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(path, config)
    dtypes = Counter(DTYPE_NAMES[info.dtype] for info in checkpoint.tensors.values())
    return {
        "path": str(checkpoint.path),
        "layout": checkpoint.layout,
        "kind": checkpoint.kind,
        "sizes": to_dict(checkpoint.config),
        "preprocessing": to_dict(checkpoint.preprocess),
        "dtype": checkpoint.dtype,
        "dtypes": dict(sorted(dtypes.items())),
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "files": [{"name": file.path.name, "bytes": file.size} for file in checkpoint.files],
        "trained": checkpoint.trained,
        "provenance": checkpoint.provenance,
        "fits": _fits(checkpoint),
    }


def _fits(checkpoint: Checkpoint) -> list[str]:
    """Names of the published models whose vision encoder has these sizes."""
    from aim_mlx.registry import MODELS

    def vision(config: Any) -> Any:
        return getattr(config, "vision", config) if checkpoint.kind == "lit" else config

    return [name for name, spec in MODELS.items() if vision(spec.config) == checkpoint.config]
