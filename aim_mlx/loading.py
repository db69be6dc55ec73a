"""load(): a folder, a file or a name -> an encoder with its preprocessing, ready to compute."""

import os
import warnings
from pathlib import Path

from aim_mlx.backend import dtype_named, mx
from aim_mlx.config import VisionConfig
from aim_mlx.embed import Encoder
from aim_mlx.errors import CheckpointError, UntrainedModelWarning
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.registry import find_model
from aim_mlx.weights.checkpoint import Checkpoint, load_weights, open_checkpoint


def load(
    model: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    config: VisionConfig | None = None,
    offline: bool = False,
) -> Encoder:
    """An encoder from a checkpoint folder or .safetensors file, in any published layout.

    `dtype` is "float32" (default), "float16" or "bfloat16"; `config` gives the sizes of a bare
    weight file. Raises CheckpointError for weights that are not sound and complete, UsageError for
    an unknown name. Warns with UntrainedModelWarning for random weights.
    """
    checkpoint = open_checkpoint(_locate(model), config)
    if checkpoint.kind != "vision":
        raise CheckpointError(
            f"expected a vision encoder, got a {checkpoint.kind} checkpoint in {checkpoint.path}"
        )
    encoder = Encoder(
        _build(checkpoint, dtype_named(dtype)),
        checkpoint.preprocess,
        checkpoint.trained,
        _identity(checkpoint),
    )
    if not encoder.trained:
        warnings.warn(
            f"{checkpoint.path} holds untrained, random weights: its vectors mean nothing",
            UntrainedModelWarning,
            stacklevel=2,
        )
    return encoder


def _locate(model: str | os.PathLike[str]) -> Path:
    """The path of a model on disk."""
    path = Path(model)
    if path.exists() or os.sep in str(model):
        return path
    spec = find_model(str(model))
    raise CheckpointError(
        f"{spec.name} is not on this disk: give a checkpoint's folder, or make one with "
        f"'aim-mlx init {spec.name} FOLDER'"
    )


def _build(checkpoint: Checkpoint, dtype: mx.Dtype) -> VisionEncoder:
    """The network with its weights; every parameter is replaced, none is left as it was made."""
    model = VisionEncoder(checkpoint.config)
    model.load_weights(list(load_weights(checkpoint, dtype).items()), strict=True)
    model.eval()
    return model


def _identity(checkpoint: Checkpoint) -> dict[str, object]:
    """What records say of the model: where it was, its layout, its stored dtype, its history."""
    return {
        "path": str(checkpoint.path),
        "layout": checkpoint.layout,
        "stored_dtype": checkpoint.dtype,
        "trained": checkpoint.trained,
        "provenance": checkpoint.provenance,
    }
