"""The head of a probe, such as AIMv1's published ones: a PyTorch file to a safetensors file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aim_mlx.errors import CheckpointError, OutputError, UsageError
from aim_mlx.files import publish
from aim_mlx.probe.head_files import load_head
from aim_mlx.probe.heads import HeadConfig
from aim_mlx.weights.files import OUR_FILE
from aim_mlx.weights.rules import others
from aim_mlx.weights.strict_json import at, show
from convert.source import (
    check_unchanged,
    describe,
    folder_of,
    naming,
    stamp_of,
    temporary_folder,
    torch_files,
)
from convert.tensors import (
    check_disjoint,
    read_torch_file,
    require_torch,
    without_prefix,
    write_safetensors,
)

if TYPE_CHECKING:
    import torch

_OWNER = "head."  # what the names of a head's tensors begin with
# billpsomas/efficient-probing numbers its layers: the pooling, the normalisation, the last.
_NUMBERED = {"0.": "", "1.": "bn.", "2.": "linear."}


def convert_head(path: Path, target: Path, overwrite: bool = False) -> HeadConfig:
    """Writes the tensors of a head, as they are, to a file that `load_head` reads.

    Raises UsageError or OutputError for paths that do not serve, CheckpointError for a file that is
    not exactly a head.
    """
    _check_request(path, target, overwrite)
    stamp = {path: stamp_of(path)}
    with temporary_folder(target.absolute().parent) as folder:
        staged = folder / OUR_FILE
        with naming(folder, path, folder_of(path)):
            write_safetensors(staged, _read_head(path), _origin(path))
            head = load_head(staged, heads=1)  # how many there are does not matter to the tensors
        check_unchanged(stamp)
        publish({target: staged.read_bytes()})
    return head.config


def _check_request(path: Path, target: Path, overwrite: bool) -> None:
    """What can be said before any work."""
    if path.is_dir() or torch_files(path) is None:
        raise UsageError(
            f"{at(target)} names a file, which is for the head of a probe, and {at(path)} is not a "
            "PyTorch file: name a folder to write, or give the head's .pth file"
        )
    if not target.absolute().parent.is_dir():
        raise OutputError(f"{at(target.parent)} is not a folder: make it first")
    if os.path.lexists(target) and not (overwrite and target.is_file()):
        raise OutputError(f"{at(target)} exists: choose another name, or give --overwrite")


def _read_head(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a head, named as AIMv1 names them, also where they are saved alone."""
    tensors = read_torch_file(path)
    check_disjoint(tensors)
    tensors, _ = without_prefix(tensors)
    if "cls_token" in tensors:
        return {_OWNER + name: tensor for name, tensor in tensors.items()}
    if "0.cls_token" in {name.removeprefix(_OWNER) for name in tensors}:
        return {_OWNER + _of_number(name): tensor for name, tensor in tensors.items()}
    if odd := [name for name in tensors if not name.startswith(_OWNER)]:
        raise CheckpointError(
            f"{at(path)} holds {show(odd[0])}{others(odd)}: expected the head of a probe alone, "
            f"{_OWNER}cls_token and so on; to convert an encoder, name a folder as DST"
        )
    return tensors


def _of_number(name: str) -> str:
    name = name.removeprefix(_OWNER)
    number, rest = name[:2], name[2:]
    return _NUMBERED[number] + rest if number in _NUMBERED else name


def _origin(path: Path) -> dict[str, str]:
    """Where a head came from, for the record."""
    (file,) = describe([path])
    return {
        "source": file["name"],
        "source_sha256": file["sha256"],
        "torch": str(require_torch().__version__),
    }
