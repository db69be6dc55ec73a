"""An encoder and its adapter as an ordinary encoder's folder, with the classifier beside it."""

import os
from pathlib import Path

from aim_mlx.backend import tree_flatten
from aim_mlx.encoder.adapted import adapted
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import UsageError
from aim_mlx.loading import load
from aim_mlx.probe.head_files import RECORD
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.tokens.source import token_identity
from aim_mlx.weights.adapters import read_adapter
from aim_mlx.weights.save import provenance, save_checkpoint
from aim_mlx.weights.transformers_folder import save_for_transformers

LAYOUTS = ("aim-mlx", "transformers")


def fuse(
    base: Encoder,
    tuned: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    layout: str = "aim-mlx",
    overwrite: bool = False,
) -> Path:
    """Writes an encoder, float32, with what the folder `tuned` has changed of it in its weights.

    A classifier there comes along, for the new encoder. The layout "transformers" loads in PyTorch
    too. Raises CheckpointError for an adapter of another encoder, OutputError for a folder that
    cannot be written.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "transformers" and overwrite:
        raise UsageError("a folder for transformers is never overwritten: choose a new one")
    config, preprocess = base.model.config, base.preprocessing
    encoder = adapted(base, read_adapter(tuned, config))
    weights = dict(tree_flatten(encoder.model.parameters()))
    if layout == "transformers":
        written = save_for_transformers(Path(folder), weights, config, preprocess)
    else:
        history = provenance("aim-mlx fuse", trained=encoder.trained, encoder=encoder.identity)
        written = save_checkpoint(folder, weights, config, preprocess, history, overwrite=overwrite)
    if (Path(tuned) / RECORD).exists():
        classifier, merged = AttentiveProbe.load(tuned, base), load(folder, dtype="float32")
        classifier.identity, classifier.model = token_identity(merged), merged.identity
        classifier.save(folder, overwrite=True)
    return written
