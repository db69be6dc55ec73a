"""Heads on disk: head files as they are published, and folders of trained probes.

FOLDER/probe.safetensors    the head, under the reference's names (`head.*`)
FOLDER/probe.json           its sizes, classes, the encoder it belongs to, metrics; written last
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.backend import check_not_forked, mx
from aim_mlx.config import HEAD_DIM
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.probe.heads import Head, HeadConfig, flat
from aim_mlx.weights.layouts import AIMV1_ONLY, HEAD
from aim_mlx.weights.rules import others, plan
from aim_mlx.weights.safetensors_file import (
    CheckedFile,
    TensorReader,
    all_finite,
    check_file,
    refuse_suffix,
)
from aim_mlx.weights.safetensors_writer import write_described
from aim_mlx.weights.strict_json import at, parse_object, read_bytes, show

WEIGHTS, RECORD = "probe.safetensors", "probe.json"
_FORMAT, _VERSION = "aim-mlx probe", 1
_LARGEST_RECORD = 16 * 2**20  # bytes: a hundred thousand names; parsed, up to thirty times that
_COUNTER = "bn.num_batches_tracked"  # PyTorch's; no result depends on it
_FLOATS = ("F32", "F16", "BF16")
_KINDS = {
    "classes": list,
    "layers": list,
    "identity": dict,
    "model": dict,
    "multi_label": bool,
    "metrics": dict,
    "training": dict,
}


def load_head(path: str | os.PathLike[str], heads: int | None = None) -> Head:
    """A published head file, such as AIMv1's `..._attnprobe_head_last_layers`, in safetensors.

    `python -m convert HEAD.pth HEAD.safetensors` makes one of what is published as a pickle.
    Sizes come from the tensors, `heads` from head_dim = 128 unless given; every tensor must be one
    of the head's, and none may be missing. One of several queries without a key projection is of
    kind "ep". Its input is what the head was trained on: for AIMv1 the mean of six blocks' outputs.
    Raises CheckpointError.
    """
    checked = check_file(path)
    shapes = {n: checked.tensors[source].shape for n, source in _names(checked).items()}
    for name in ("cls_token", "linear.weight"):
        if name not in shapes:
            raise CheckpointError(f"{at(checked.path)}: missing tensor head.{name}")
    if len(shapes["cls_token"]) != 3 or len(shapes["linear.weight"]) != 2:
        raise CheckpointError(
            f"{at(checked.path)}: expected head.cls_token (1, Q, D) and head.linear.weight (C, D), "
            f"got {list(shapes['cls_token'])} and {list(shapes['linear.weight'])}"
        )
    _, queries, dim = shapes["cls_token"]
    kind = "coca" if "q.weight" in shapes else "attentive"
    if "k.weight" not in shapes and queries > 1:
        kind, heads = "ep", 1
    if heads is None and dim % HEAD_DIM:
        raise CheckpointError(f"{at(checked.path)} has {dim} channels: say how many heads= it has")
    try:
        config = HeadConfig(
            dim,
            shapes["linear.weight"][0],
            heads or dim // HEAD_DIM,
            queries,
            kind,
            "bn.running_mean" in shapes,
            "linear.bias" in shapes,
        )
    except UsageError as error:
        raise CheckpointError(f"{at(checked.path)}: {error}") from error
    return _read_head(checked, config)


def write_probe(folder: Path, head: Head, values: Mapping[str, Any], overwrite: bool) -> Path:
    """Writes a probe; raises OutputError where one is there already or the disk fails."""
    tensors = {f"head.{n}": np.array(value) for n, value in flat(head.parameters()).items()}
    record = {"format": _FORMAT, "format_version": _VERSION, "head": asdict(head.config), **values}
    write_described(folder, (WEIGHTS, RECORD), tensors, record, overwrite)
    return folder


def read_probe(folder: Path) -> dict[str, Any]:
    """What write_probe() wrote: the head and the values.

    Raises UsageError for a folder without a probe, CheckpointError for a damaged one or a pickle.
    """
    path = folder / RECORD
    if folder.is_file():
        refuse_suffix(folder)
        raise UsageError(
            f"{at(folder)} is a file: expected a folder with a trained probe; a head by itself is "
            "for AttentiveProbe.from_head"
        )
    if not path.exists():
        raise UsageError(f"{at(folder)} has no {RECORD}: expected a folder with a trained probe")
    record = parse_object(read_bytes(path, _LARGEST_RECORD), at(path))
    if record.pop("format", None) != _FORMAT or record.pop("format_version", None) != _VERSION:
        raise CheckpointError(
            f"{at(path)} is not a probe of version {_VERSION}: train it again, or upgrade aim-mlx"
        )
    try:
        config = HeadConfig.from_dict(record.pop("head"))
        digest = record.pop("sha256")
        _check_values(record, config)
    except (KeyError, TypeError, CheckpointError) as error:
        raise CheckpointError(
            f"{at(path)} is not what saving a probe writes ({error!s:.200}): train it again"
        ) from error
    weights = folder / WEIGHTS
    checked = check_file(weights)
    with open(weights, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise CheckpointError(f"{at(weights)} is not the file that {RECORD} describes")
    record["classes"], record["layers"] = tuple(record["classes"]), tuple(record["layers"])
    return {"head": _read_head(checked, config), **record}


def _check_values(record: dict[str, Any], config: HeadConfig) -> None:
    """Raises TypeError for values of other kinds than a probe has."""
    if set(record) != set(_KINDS):
        raise TypeError(f"expected the fields {', '.join(_KINDS)}")
    for name, kind in _KINDS.items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is {show(record[name])}")
    classes = record["classes"]
    if not all(isinstance(name, str) for name in classes):
        raise TypeError("classes are names")
    if not len(set(classes)) == len(classes) == config.classes:
        raise TypeError(f"expected {config.classes} classes, each once")
    if not all(type(layer) is int for layer in record["layers"]):
        raise TypeError("layers are whole numbers")


def _names(checked: CheckedFile) -> dict[str, str]:
    """Our names of a head's tensors to those in the file; raises CheckpointError for any other.

    AIMv1's encoder may be in the same file.
    """
    tensors = list(checked.tensors)
    if AIMV1_ONLY in tensors:
        tensors = [name for name in tensors if name.startswith("head.")]
    steps = plan(HEAD, tensors)
    return {step.ours: step.sources[0] for step in steps if step.ours != _COUNTER}


def _read_head(checked: CheckedFile, config: HeadConfig) -> Head:
    """The head of a file, in float32, all of it and nothing else."""
    check_not_forked()
    head = Head(config)
    expected = {name: value.shape for name, value in flat(head.parameters()).items()}
    names = _names(checked)
    for what, odd in (
        ("missing", sorted(set(expected) - set(names))),
        ("unexpected", sorted(set(names) - set(expected))),
    ):
        if odd:
            raise CheckpointError(
                f"{at(checked.path)}: {what} tensor head.{odd[0]}{others(odd)}, in a head of kind "
                f"{config.kind!r}"
            )
    weights = []
    with TensorReader(checked) as reader:
        for name, source in names.items():
            info = checked.tensors[source]
            if info.shape != expected[name] or info.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{at(checked.path)}: tensor {source}: expected floats of shape "
                    f"{list(expected[name])}, got {info.dtype} {list(info.shape)}"
                )
            array = reader.read(source)
            if not all_finite(array, info.dtype):
                raise CheckpointError(f"{at(checked.path)}: {source} holds NaN or infinity")
            value = mx.array(array)
            value = value.view(mx.bfloat16) if info.dtype == "BF16" else value
            weights.append((name, value.astype(mx.float32)))
    head.load_weights(weights, strict=True)
    head.eval()
    mx.eval(head.parameters(), mx.random.state)
    return head
