"""A source to the package's folder format, one tensor in memory at a time."""

import os
from dataclasses import replace
from pathlib import Path

from aim_mlx.backend import DTYPES, dtype_named, mx
from aim_mlx.errors import CheckpointError, OutputError, UsageError
from aim_mlx.weights.checkpoint import Checkpoint, load_weights, provenance, save_checkpoint
from aim_mlx.weights.mapping import Step
from aim_mlx.weights.strict_json import at
from convert.source import Source, open_source


def convert(path: Path, folder: Path, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Converts a weight file or folder; returns the folder written."""
    check_places(path, folder, overwrite)
    with open_source(path, folder.absolute().parent) as source:
        return write(path, source, folder, dtype, overwrite)


def write(
    path: Path, source: Source, folder: Path, dtype: str | None = None, overwrite: bool = False
) -> Path:
    """Writes an opened source; `dtype` None keeps the stored one.

    Raises CheckpointError for weights that are not sound, OutputError for a folder that cannot be
    written.
    """
    checkpoint = source.checkpoint
    target = target_dtype(checkpoint, dtype)
    history = provenance(
        source=os.path.basename(os.path.abspath(path)),
        layout=checkpoint.layout,
        trained=checkpoint.trained,
        stored_dtype=checkpoint.dtype,
        **source.facts,
        **({"earlier": checkpoint.provenance} if checkpoint.provenance else {}),
    )
    weights = ((step.ours, load_one(checkpoint, step, target)) for step in checkpoint.steps())
    return save_checkpoint(
        folder,
        weights,
        checkpoint.config,
        checkpoint.preprocess,
        history,
        dtype=target,
        overwrite=overwrite,
    )


def check_places(path: Path, folder: Path, overwrite: bool) -> None:
    """What can be said of the destination before any work; raises UsageError or OutputError."""
    target = folder.resolve()
    if target in (path.resolve(), path.resolve().parent):
        raise UsageError(f"{at(folder)} is where the source lies: choose another folder")
    if not target.parent.is_dir():
        raise OutputError(f"{at(folder.parent)} is not a folder: make it first")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{at(folder)} is not empty: choose another folder, or give --overwrite")


def target_dtype(checkpoint: Checkpoint, dtype: str | None) -> mx.Dtype:
    """The dtype asked for, else the stored one; float32 holds whatever is mixed in a checkpoint."""
    if dtype is None and checkpoint.dtype not in (*DTYPES, "mixed"):
        raise CheckpointError(
            f"{at(checkpoint.path)} is stored as {checkpoint.dtype}: expected unquantised weights"
        )
    return dtype_named(dtype or checkpoint.dtype if checkpoint.dtype in DTYPES else dtype)


def load_one(checkpoint: Checkpoint, step: Step, dtype: mx.Dtype) -> mx.array:
    """One of our tensors, loaded as `load_weights` does with all of them."""
    return load_weights(only(checkpoint, [step]), dtype)[step.ours]


def only(checkpoint: Checkpoint, steps: list[Step]) -> Checkpoint:
    """The checkpoint as if it held no more than what these steps need."""
    wanted = {name for step in steps for name in step.sources}
    files = tuple(
        replace(file, tensors={n: info for n, info in file.tensors.items() if n in wanted})
        for file in checkpoint.files
    )
    return replace(checkpoint, files=files)
