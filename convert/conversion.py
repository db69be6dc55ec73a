"""A source to the package's folder format, one tensor in memory at a time."""

import os
from dataclasses import replace
from pathlib import Path

from aim_mlx.backend import dtype_named, mx
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.weights.checkpoint import Checkpoint
from aim_mlx.weights.convert import rewrite
from aim_mlx.weights.load import iter_weights
from aim_mlx.weights.rules import Rule
from aim_mlx.weights.save import check_folder
from aim_mlx.weights.strict_json import at
from convert.source import Source, open_source


def convert(path: Path, folder: Path, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Converts a weight file or folder; returns the folder written."""
    check_request(path, folder, dtype, overwrite)
    with open_source(path, folder.absolute().parent) as source:
        return write(path, source, folder, dtype, overwrite)


def check_request(path: Path, folder: Path, dtype: str | None, overwrite: bool) -> None:
    """What can be said before any work; raises UsageError or OutputError."""
    dtype_named(dtype)
    target = folder.resolve()
    if target in (path.resolve(), path.resolve().parent):
        raise UsageError(f"{at(folder)} is where the source lies: choose another folder")
    if not target.parent.is_dir():
        raise OutputError(f"{at(folder.parent)} is not a folder: make it first")
    check_folder(folder, overwrite)


def write(
    path: Path, source: Source, folder: Path, dtype: str | None = None, overwrite: bool = False
) -> Path:
    """Writes an opened source; `dtype` None keeps each tensor's own, bit for bit.

    Raises CheckpointError for weights that are not sound, UsageError for quantised ones,
    OutputError for a folder that cannot be written.
    """
    checkpoint = source.checkpoint
    if checkpoint.quantization is not None:
        raise UsageError(f"{at(path)} is quantised: convert the weights it was made from")
    history = {
        "source": os.path.basename(os.path.abspath(path)),
        "stored_dtype": checkpoint.dtype,
        **source.history,
    }
    return rewrite(checkpoint, folder, history, dtype, overwrite=overwrite)


def load_one(checkpoint: Checkpoint, step: Rule, dtype: mx.Dtype | None) -> mx.array:
    """One of our tensors, loaded as all of them are; `dtype` None keeps the stored one."""
    return dict(iter_weights(only(checkpoint, [step]), dtype))[step.ours]


def only(checkpoint: Checkpoint, steps: list[Rule]) -> Checkpoint:
    """The checkpoint as if it held only what these steps need."""
    wanted = {name for step in steps for name in step.sources}
    files = tuple(
        replace(file, tensors={n: info for n, info in file.tensors.items() if n in wanted})
        for file in checkpoint.files
    )
    return replace(checkpoint, files=files)
