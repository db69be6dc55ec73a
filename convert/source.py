"""What is converted: which files it is, and how they become a checkpoint the package can open.

PyTorch files are rewritten, tensor by tensor and unchanged, as safetensors in a temporary folder.
From there the package's own code opens them, so that layouts, strictness and safety are the same.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.files import disk_errors
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.convert import sha256_of
from aim_mlx.weights.files import (
    INDEX_FILE,
    OUR_FILE,
    TOKENIZER_FILES,
    WEIGHT_FILES,
    check_index,
    read_index,
    shard_paths,
)
from aim_mlx.weights.preprocess_json import PROCESSOR_FILES
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
_BESIDE = ("config.json", *PROCESSOR_FILES, *TOKENIZER_FILES)


@dataclass(frozen=True)
class Source:
    """An opened source: `history` says for the record which files it was read from, and by what.

    `head` is the file with the head of a probe that is saved with the encoder, if there is one.
    """

    checkpoint: Checkpoint
    history: dict[str, Any]

    @property
    def head(self) -> Path | None:
        return self.checkpoint.files[0].path if "head" in self.checkpoint.beside else None


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
            history = {
                "format": "pytorch",
                "torch": str(require_torch().__version__),
                **_stage(path, files, folder, temporary),
                "files": describe(files),
            }
            yield Source(open_checkpoint(temporary), history)
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
        return shard_paths(path, read_index(path / TORCH_INDEX, ".bin"))
    others = sorted(e.name for e in path.iterdir() if e.suffix.lower() in SUFFIXES)
    hint = f"; to convert {show(others[0])}, give the file itself" if others else ""
    raise UsageError(
        f"no weights in {at(path)}: expected {', '.join(WEIGHT_FILES)}, {TORCH_FILE} or an index "
        f"of shards{hint}"
    )


def _stage(path: Path, files: list[Path], folder: Path, temporary: Path) -> dict[str, Any]:
    """Writes the tensors as safetensors beside links to the source's JSON files."""
    tensors: dict[str, torch.Tensor] = {}
    pairs: list[tuple[str, str]] = []
    for file in files:
        content = read_torch_file(file)
        tensors |= content
        pairs += [(name, file.name) for name in content]
    if path.is_dir() and files[0].name != TORCH_FILE:
        check_index(folder / TORCH_INDEX, read_index(folder / TORCH_INDEX, ".bin"), pairs)
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


@contextmanager
def temporary_folder(workplace: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; a disk that fails meanwhile is an OutputError."""
    with (
        disk_errors("write", workplace, "make room or choose another place"),
        tempfile.TemporaryDirectory(suffix=".convert.tmp", dir=workplace) as name,
    ):
        yield Path(name)


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
    return [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in files]


def check_unchanged(stamps: Mapping[Path, tuple[int, ...]]) -> None:
    """Raises CheckpointError for a file that is not as it was when it was first looked at."""
    for file, stamp in stamps.items():
        if stamp_of(file) != stamp:
            raise CheckpointError(f"{at(file)} changed while it was converted: convert it again")


def stamp_of(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
