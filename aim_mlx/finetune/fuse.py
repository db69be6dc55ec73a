"""An encoder and its adapter as an ordinary encoder's folder."""

import os
from pathlib import Path

from aim_mlx.backend import tree_flatten
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import UsageError
from aim_mlx.weights.save import provenance, save_checkpoint
from aim_mlx.weights.transformers_folder import save_for_transformers

LAYOUTS = ("aim-mlx", "transformers")


def fuse(
    encoder: Encoder,
    folder: str | os.PathLike[str],
    layout: str = "aim-mlx",
    overwrite: bool = False,
) -> Path:
    """Writes an encoder that was loaded with an adapter, weights and adapter in one, float32.

    The layout "transformers" loads in PyTorch. Raises UsageError for an encoder without an adapter,
    OutputError for a folder that cannot be written.
    """
    if "adapter" not in encoder.identity:
        raise UsageError("this encoder has no adapter: load it with adapter=")
    if layout not in LAYOUTS:
        raise UsageError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    weights = dict(tree_flatten(encoder.model.parameters()))
    config, preprocess = encoder.model.config, encoder.preprocessing
    if layout == "transformers":
        if overwrite:
            raise UsageError("a folder for transformers is never overwritten: choose a new one")
        return save_for_transformers(Path(folder), weights, config, preprocess)
    history = provenance(source="aim-mlx fuse", trained=encoder.trained, encoder=encoder.identity)
    return save_checkpoint(folder, weights, config, preprocess, history, overwrite=overwrite)
