"""Safetensors files: checked before a tensor is read, and read without trusting them to stay so.

- The header is checked here byte by byte, then by safetensors' own parser; both must agree. MLX's
  reader does not defend itself and is not used.
- Tensors are read by position into memory that is there before, never mapped: a mapped file that
  shrinks kills the process, a read that ends early is an error.
"""

import io
import math
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.strict_json import at, parse_object, show

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


# The stored dtype -> its bits as signed and as unsigned integers, and those of infinity.
_BITS = {
    "F32": ("<i4", "<u4", 0x7F800000),
    "F16": ("<i2", "<u2", 0x7C00),
    "BF16": ("<i2", "<u2", 0x7F80),
}


def all_finite(array: np.ndarray, dtype: str) -> bool:
    """Whether no value is NaN or infinite; `dtype` as in safetensors, bfloat16 as its raw bits."""
    return all_below(array, dtype, _BITS[dtype][2])


def all_below(array: np.ndarray, dtype: str, bits: int) -> bool:
    """Whether every value is nearer to zero than the positive number of these bits, and no NaN.

    Two passes without a temporary: read as signed integers the largest value is the largest
    positive one, read as unsigned integers it is the largest negative one.
    """
    signed, unsigned, _ = _BITS[dtype]
    if not array.size:
        return True
    negative = bits | 1 << (8 * array.itemsize - 1)
    return bool(array.view(signed).max() < bits and array.view(unsigned).max() < negative)


LARGEST_HEADER = 2 * 2**20  # bytes; the largest published one has 64 thousand
LARGEST_DIM = 2**40
LARGEST_RANK = 8
_LARGEST_READ = 2**30  # bytes; macOS refuses calls from 2**31

# What numpy reads each stored type as. bfloat16 has no numpy type: its raw bits.
NUMPY_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "U16": "<u2",
    "I16": "<i2", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4",
    "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header states it; `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class CheckedFile:
    """A safetensors file whose header was found sound: its tensors in the order of their bytes."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    size: int
    # Device, inode and time of the last change: a file replaced after the check is not read.
    stamp: tuple[int, int, int] = field(default=(0, 0, 0), repr=False)


def check_file(path: str | os.PathLike[str]) -> CheckedFile:
    """Checks the header of a safetensors file, reading nothing else.

    Raises CheckpointError for whatever is not a sound safetensors file; the message names the file
    and the tensor.
    """
    path = Path(path)
    refuse_suffix(path)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        header, data_start = _read_header(path, file, status.st_size)
    values = parse_object(header, f"the header of {at(path)}")
    metadata = _metadata(path, values.pop("__metadata__", None))
    tensors = {name: _tensor(path, name, entry, data_start) for name, entry in values.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_offsets(path, tensors, data_start, status.st_size)
    _check_agreement(path, tensors)
    return CheckedFile(path, tensors, metadata, status.st_size, _stamp(status))


class TensorReader:
    """Reads tensors of one checked file through one handle: a replaced file is not mixed in.

    A context manager. Raises CheckpointError when the file is not the one that was checked.
    """

    def __init__(self, checked: CheckedFile):
        self.checked = checked
        self._file = open_regular(checked.path)
        status = os.fstat(self._file.fileno())
        if status.st_size != checked.size or _stamp(status) != checked.stamp:
            self._file.close()
            raise CheckpointError(
                f"{checked.path} changed after it was checked (expected {checked.size} bytes, now "
                f"{status.st_size}): wait until it is complete, then load it again"
            )

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str) -> np.ndarray:
        """The tensor as stored, bfloat16 as its uint16 bits; CheckpointError if it is cut short."""
        info = self.checked.tensors[name]
        array = np.empty(info.shape, dtype=NUMPY_DTYPES[info.dtype])
        self.read_into(name, array)
        return array

    def read_into(self, name: str, array: np.ndarray) -> None:
        """Fills an array of the tensor's shape and type; several threads may call this at once."""
        if not array.flags.c_contiguous:
            array[...] = self.read(name)
            return
        info = self.checked.tensors[name]
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        try:
            while done < info.nbytes:
                count = _read_at(self._file, view[done:], info.offset + done)
                if not count:
                    raise CheckpointError(
                        f"{at(self.checked.path)} was cut short while tensor {show(name)} was "
                        f"read: expected {info.nbytes} bytes, got {done}; restore the file"
                    )
                done += count
        except OSError as error:
            raise CheckpointError(
                f"{at(self.checked.path)} cannot be read at tensor {show(name)}: {error.strerror}"
            ) from error


def _read_at(file: io.FileIO, view: memoryview, offset: int) -> int:
    """How many bytes were read; no thread moves another's place in the file."""
    if hasattr(os, "preadv"):  # some builds of Python for Apple's systems lack it
        return os.preadv(file.fileno(), [view[:_LARGEST_READ]], offset)
    data = os.pread(file.fileno(), min(len(view), 2**20), offset)
    view[: len(data)] = data
    return len(data)


def read_tensor(checked: CheckedFile, name: str) -> np.ndarray:
    """One tensor of a checked file, as TensorReader.read gives it."""
    with TensorReader(checked) as reader:
        return reader.read(name)


def open_regular(path: Path) -> io.FileIO:
    """Opens a regular file unbuffered; never a FIFO or device, whose opening could wait for ever.

    Raises CheckpointError.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError(f"{at(path)} is not a regular file: expected a safetensors file")
        return open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{at(path)} cannot be opened: {reason}") from error


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[bytes, int]:
    """The header's bytes and where the data starts."""
    if size == 0:
        raise CheckpointError(f"{at(path)} is empty: download it again")
    start = file.read(512)
    length = int.from_bytes(start[:8], "little")
    if not (len(start) > 9 and 2 <= length <= size - 8 and start[8:9] == b"{"):
        refuse_foreign(path, start)
        if len(start) < 10:
            raise CheckpointError(f"{at(path)} has only {size} bytes: download it again")
        if start[8:9] == b"{" and size - 8 < length <= LARGEST_HEADER:
            raise CheckpointError(
                f"{at(path)} is truncated: its header has {length} bytes, the file {size}; "
                "download it again"
            )
        raise CheckpointError(
            f"{at(path)} is not a safetensors file: expected a header of 2 to {size - 8} bytes "
            f"that starts with '{{', got length {length} and {show(start[8:9])}; download it again"
        )
    if length > LARGEST_HEADER:
        raise CheckpointError(
            f"{at(path)} states a header of {length} bytes, expected at most {LARGEST_HEADER}: "
            "no published encoder needs as much"
        )
    file.seek(8)
    header = file.read(length)
    if len(header) != length:
        raise CheckpointError(f"{at(path)} was cut short while its header was read")
    return header, 8 + length


def _metadata(path: Path, values: Any) -> dict[str, str]:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise CheckpointError(f"the metadata of {at(path)} must be an object of texts")
    return values


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    """One entry of the header; offsets become positions in the file."""

    def bad(expected: str, got: object) -> CheckpointError:
        return CheckpointError(
            f"tensor {show(name)} of {at(path)}: expected {expected}, got {show(got)}; "
            "download it again"
        )

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("an object with dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise bad(f"a dtype of {', '.join(NUMPY_DTYPES)}", dtype)
    if not isinstance(shape, list) or len(shape) > LARGEST_RANK:
        raise bad(f"a shape of at most {LARGEST_RANK} dimensions", shape)
    if not all(type(n) is int and 0 <= n <= LARGEST_DIM for n in shape):
        raise bad(f"dimensions as whole numbers from 0 to {LARGEST_DIM}", shape)
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise bad("two data_offsets", offsets)
    begin, end = offsets
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end):
        raise bad("data_offsets as whole numbers in order", offsets)
    nbytes = math.prod(shape) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
    if nbytes != end - begin:
        raise bad(f"{nbytes} bytes for {dtype} of shape {shape}", end - begin)
    return TensorInfo(dtype, tuple(shape), data_start + begin, nbytes)


def _check_offsets(path: Path, tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    """Tensors must follow one another from the end of the header to the end of the file."""
    for name, info in tensors.items():
        if info.offset != start:
            fault = "a hole before it" if info.offset > start else "bytes shared with another"
            raise CheckpointError(
                f"tensor {show(name)} of {at(path)}: expected at byte {start}, got {info.offset} "
                f"({fault}); download it again"
            )
        start += info.nbytes
    if start > size:
        raise CheckpointError(
            f"{at(path)} is truncated: expected {start} bytes, got {size}; download it again"
        )
    if start < size:
        raise CheckpointError(
            f"{at(path)} has {size - start} bytes after its last tensor: expected {start} bytes, "
            f"got {size}; download it again"
        )


def _check_agreement(path: Path, tensors: dict[str, TensorInfo]) -> None:
    """safetensors' own parser must read the same header, or the file is ambiguous."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            theirs = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except Exception as error:
        raise CheckpointError(
            f"{at(path)} is rejected by the safetensors parser ({error!s:.200}): download it again"
        ) from error
    if theirs != {name: (info.dtype, info.shape) for name, info in tensors.items()}:
        raise CheckpointError(
            f"{at(path)} reads differently by two parsers: download it again from its publisher"
        )
