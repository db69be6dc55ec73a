"""An encoder and the published head of a probe on it, in one folder that `aim-mlx probe` takes."""

import os
import re
from pathlib import Path

from aim_mlx.backend import dtype_named
from aim_mlx.encoder.digest import streamed_digest
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.loading import identity_of
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.probe.head_files import load_head
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.registry import MODELS
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.files import OUR_FILE
from aim_mlx.weights.load import iter_weights
from aim_mlx.weights.strict_json import at, read_bytes, read_object, show
from convert.head import convert_head
from convert.source import describe, folder_of, temporary_folder

LAYERS = ("best", "last")
_NAMED = re.compile(r"_head_(best|last)_layers$")
_LAST = 6  # blocks, whose mean the published heads take
_LARGEST_NAMES = 2**20  # bytes


def read_classifier(
    head: Path,
    source: Path,
    checkpoint: Checkpoint,
    layers: str | None,
    classes: Path | None,
    workplace: Path,
) -> AttentiveProbe:
    """The probe that a head makes with an encoder, whose weights are not read.

    `layers` names the blocks that it takes: "best", "last" or numbers; else the head's name or the
    encoder's config.json does. `classes` is a file with a name a line, else they are numbers. A
    PyTorch file needs room in `workplace` for a while. Raises UsageError, or CheckpointError for a
    head of another encoder.
    """
    if checkpoint.kind != "vision":
        raise UsageError("a probe is made with an encoder alone: give one, not a LiT model")
    encoder = Encoder(VisionEncoder(checkpoint.vision), checkpoint.preprocess)
    encoder.weights_digest = ""  # of what will be written
    blocks = _blocks(head, source, checkpoint, layers)
    with temporary_folder(workplace) as folder:
        file = head
        if head.suffix != ".safetensors":
            convert_head(head, file := folder / OUR_FILE)
        names = _names(load_head(file, checkpoint.vision.num_heads).config.classes, classes)
        probe = AttentiveProbe.from_head(file, encoder, names, layers=blocks)
    if head != checkpoint.files[0].path:
        (probe.training["head"],) = describe([head])
    return probe


def write_classifier(probe: AttentiveProbe, folder: Path, dtype: str = "float32") -> None:
    """Writes a probe beside its encoder, which will compute in `dtype`; raises OutputError."""
    written = open_checkpoint(folder)
    probe.identity["weights"] = streamed_digest(iter_weights(written, dtype_named(dtype)))
    probe.model = {"model": os.fspath(folder), **identity_of(written), "dtype": dtype}
    probe.save(folder, overwrite=True)


def _blocks(
    head: Path, source: Path, checkpoint: Checkpoint, layers: str | None
) -> tuple[int, ...]:
    """The blocks that a head takes the mean of."""
    if layers is None and (named := _NAMED.search(head.stem)):
        layers = named[1]
    if layers is None:
        return _stated(head, source, checkpoint)
    if layers == "last":
        return _last(checkpoint, _LAST)
    if layers == "best":
        for spec in MODELS.values():
            if spec.config == checkpoint.config and spec.best_layers:
                return spec.best_layers
        raise UsageError("the best blocks of an encoder of these sizes are not known: give numbers")
    try:
        return tuple(int(number) for number in layers.split(","))
    except ValueError:
        raise UsageError(
            f"--layers must be {', '.join(LAYERS)} or blocks such as 14,15,16, got {show(layers)}"
        ) from None


def _stated(head: Path, source: Path, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The blocks that the reference code's config.json states."""
    path = folder_of(source) / "config.json"
    layers = read_object(path).get("probe_layers") if path.exists() else None
    if type(layers) is int and layers > 0:
        return _last(checkpoint, layers)
    if isinstance(layers, list) and layers and all(type(number) is int for number in layers):
        return tuple(layers)
    raise UsageError(
        f"which blocks {at(head)} takes is not stated: give --layers best, last or their numbers"
    )


def _last(checkpoint: Checkpoint, count: int) -> tuple[int, ...]:
    blocks = checkpoint.vision.num_blocks
    if count > blocks:
        raise UsageError(f"the head takes the last {count} blocks, and this encoder has {blocks}")
    return tuple(range(blocks - count, blocks))


def _names(count: int, path: Path | None) -> tuple[str, ...]:
    """The names of a head's outputs, in order."""
    if path is None:
        return tuple(map(str, range(count)))
    try:
        names = read_bytes(path, _LARGEST_NAMES).decode().split("\n")
    except UnicodeDecodeError:
        raise UsageError(f"{at(path)} is not UTF-8: expected a name of a class a line") from None
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    return tuple(name.strip() for name in names if name.strip())
