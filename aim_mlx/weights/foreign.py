"""Files that are met in place of safetensors, and the sentence that each one gets."""

from pathlib import Path

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.strict_json import at

_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_CONVERT = "convert it first with `python -m convert`, which reads weights only"

# The first bytes of a file -> what it is and what to do.
_STARTS = (
    (b"version https://git-lfs", "is a Git-LFS pointer, not weights: run `git lfs pull`"),
    (b"PK\x03\x04", f"is a zip archive (a PyTorch checkpoint), not safetensors: {_CONVERT}"),
    (b"\x89HDF\r\n", "is an HDF5 file, not safetensors: get the safetensors file"),
    (b"GGUF", "is a GGUF file, not safetensors: get the safetensors file"),
    (b"\x1f\x8b", "is a gzip archive, not safetensors: unpack it first"),
    (b"\x93NUMPY", "is a NumPy array, not safetensors: get the safetensors file"),
)


def refuse_suffix(path: Path) -> None:
    """Raises CheckpointError for a name that says PyTorch pickle, whatever the content."""
    if path.suffix.lower() in _PICKLES:
        raise CheckpointError(f"{at(path)} is a PyTorch file, which can run code: {_CONVERT}")


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raises CheckpointError if the first bytes of a file that is not safetensors are known."""
    for signature, sentence in _STARTS:
        if start.startswith(signature):
            raise CheckpointError(f"{at(path)} {sentence}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise CheckpointError(f"{at(path)} is a Python pickle, which can run code: {_CONVERT}")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"{at(path)} is a web page, not weights (an error or login page): download it again"
        )
    if text.startswith(b"{"):
        raise CheckpointError(f"{at(path)} is a JSON text, not weights: download it again")
