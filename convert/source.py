"""What is converted: which files it is, and how they become a checkpoint the package can open.

PyTorch files are rewritten, tensor by tensor and unchanged, as safetensors in a temporary folder.
From there the package's own code opens them, so that layouts, strictness and safety are the same.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_mlx.errors import CheckpointError, OutputError, UsageError
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.files import INDEX_FILE, OUR_FILE, WEIGHT_FILES, read_index
from aim_mlx.weights.preprocess_json import PROCESSOR_FILES
from aim_mlx.weights.safetensors_file import open_regular
from aim_mlx.weights.strict_json import at, show
from convert.tensors import (
    check_disjoint,
    read_torch_file,
    require_torch,
    without_prefix,
    write_safetensors,
)

if TYPE_CHECKING:
    import torch

SUFFIXES = (".bin", ".pt", ".pth")
TORCH_FILE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_BESIDE = ("config.json", *PROCESSOR_FILES)


@dataclass(frozen=True)
class Source:
    """An opened source: `facts` say for the record which files it was read from, and by what."""

    checkpoint: Checkpoint
    facts: dict[str, Any]


@contextmanager
def open_source(path: Path, workplace: Path) -> Iterator[Source]:
    """Opens a file or folder for conversion; PyTorch files need room in `workplace` for a while.

    Raises UsageError for what is no weight file by name, CheckpointError for weights that are not
    sound, also when the source changes before the context is left.
    """
    files = torch_files(path)
    if files is None:
        checkpoint = open_checkpoint(path)
        files = [file.path for file in checkpoint.files]
        stamps = {file: stamp_of(file) for file in files}
        yield Source(checkpoint, {"format": "safetensors", "files": describe(files)})
    else:
        stamps = {file: stamp_of(file) for file in files}
        folder = folder_of(path)
        with temporary_folder(workplace) as temporary, naming(temporary, path, folder):
            facts: dict[str, Any] = {"format": "pytorch", "torch": str(require_torch().__version__)}
            facts |= _stage(path, files, folder, temporary)
            facts["files"] = describe(files)
            yield Source(open_checkpoint(temporary), facts)
    check_unchanged(stamps)


def folder_of(path: Path) -> Path:
    """The folder of a source, whose JSON files belong to it."""
    return path if path.is_dir() else path.parent


def torch_files(path: Path) -> list[Path] | None:
    """The PyTorch files that a source is, None where it is safetensors.

    Raises UsageError for a name that says neither, CheckpointError for an unsound index.
    """
    if not path.exists():
        raise UsageError(f"{at(path)} does not exist: expected a weight file or a folder")
    if not path.is_dir():
        if path.suffix.lower() in SUFFIXES:
            return [path]
        if path.suffix == ".safetensors":
            return None
        raise UsageError(
            f"{at(path)}: expected a file named {', '.join(SUFFIXES)} or .safetensors, or a folder"
        )
    if any(os.path.lexists(path / name) for name in (*WEIGHT_FILES, INDEX_FILE)):
        return None
    if os.path.lexists(path / TORCH_FILE):
        return [path / TORCH_FILE]
    if os.path.lexists(path / TORCH_INDEX):
        return [path / name for name in sorted(set(_weight_map(path).values()))]
    others = sorted(e.name for e in path.iterdir() if e.suffix.lower() in SUFFIXES)
    found = f"; to convert {show(others[0])}, give the file itself" if others else ""
    raise UsageError(
        f"no weights in {at(path)}: expected {', '.join(WEIGHT_FILES)}, {TORCH_FILE} or an index "
        f"of shards{found}"
    )


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensors to shards; every shard is a plain .bin file name, no way out of the folder."""
    weight_map = read_index(folder / TORCH_INDEX, ".bin")
    for shard in set(weight_map.values()):
        if not _stays(folder, folder / shard):
            raise CheckpointError(
                f"shard {show(shard)} is a link that leaves {at(folder)}: put the file itself there"
            )
        if not (folder / shard).exists():
            raise CheckpointError(
                f"missing shard {show(shard)} in {at(folder)}: download the checkpoint again"
            )
    return weight_map


def _stays(folder: Path, path: Path) -> bool:
    """Whether a link leads to the folder itself, or to the blobs of the Hub cache it is part of."""
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # models--owner--name/snapshots/<revision>/<file>
        allowed.append(home.parent.parent / "blobs")
    return any(path.resolve().is_relative_to(root) for root in allowed)


def _stage(path: Path, files: list[Path], folder: Path, temporary: Path) -> dict[str, Any]:
    """Writes the tensors as safetensors beside links to the source's JSON files."""
    tensors: dict[str, torch.Tensor] = {}
    owner: dict[str, str] = {}
    for file in files:
        for name, tensor in read_torch_file(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {show(name)} is in two shards, {show(owner[name])} and "
                    f"{show(file.name)}: expected in one; download the checkpoint again"
                )
            tensors[name], owner[name] = tensor, file.name
    if path.is_dir() and files[0].name != TORCH_FILE:
        _check_index(folder, owner)
    check_disjoint(tensors)
    tensors, prefix = without_prefix(tensors)
    if all(name.startswith("head.") for name in tensors):
        raise CheckpointError(
            f"{at(path)} is the head of a probe: name a file to write it to, such as "
            "head.safetensors, in place of the folder"
        )
    write_safetensors(temporary / OUR_FILE, tensors)
    for name in _BESIDE:
        if os.path.lexists(folder / name):
            (temporary / name).symlink_to((folder / name).absolute())
    return {"prefix_removed": prefix} if prefix else {}


def _check_index(folder: Path, owner: dict[str, str]) -> None:
    """The index names each tensor of each shard, and no other."""
    weight_map = _weight_map(folder)
    for tensor in [*weight_map, *owner]:
        stated, real = weight_map.get(tensor), owner.get(tensor)
        if stated != real:
            raise CheckpointError(
                f"{at(folder / TORCH_INDEX)} puts tensor {show(tensor)} in {show(stated)}, it is "
                f"in {show(real)}: download the checkpoint again"
            )


@contextmanager
def temporary_folder(workplace: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; a disk that fails meanwhile is an OutputError."""
    try:
        with tempfile.TemporaryDirectory(suffix=".convert.tmp", dir=workplace) as name:
            yield Path(name)
    except OSError as error:
        raise OutputError(
            f"{at(workplace)} cannot be written: {error.strerror or error}; "
            "make room or choose another place"
        ) from error


@contextmanager
def naming(temporary: Path, path: Path, folder: Path) -> Iterator[None]:
    """Errors name the files of the source, not those of the temporary folder."""
    try:
        yield
    except CheckpointError as error:
        text = str(error).replace(str(temporary / OUR_FILE), str(path))
        raise CheckpointError(text.replace(str(temporary), str(folder))) from error


def describe(files: list[Path]) -> list[dict[str, Any]]:
    """Name, size and digest of each file, for the record."""
    return [{"name": f.name, "bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def check_unchanged(stamps: Mapping[Path, tuple[int, ...]]) -> None:
    """Raises CheckpointError for a file that is not as it was when it was first looked at."""
    for file, stamp in stamps.items():
        if stamp_of(file) != stamp:
            raise CheckpointError(f"{at(file)} changed while it was converted: convert it again")


def stamp_of(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
