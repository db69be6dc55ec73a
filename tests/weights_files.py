"""Checkpoint files for the tests of weights/: read, crafted and rewritten without the package."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}
NUMPY |= {"I32": np.int32, "I64": np.int64, "F8_E4M3": np.uint8, "U32": np.uint32, "U8": np.uint8}
NUMPY |= {"BOOL": np.bool_}

VISION_LAYOUTS = {
    "ml_aim_mlx": "ml-aim-mlx",
    "ml_aim_torch": "ml-aim-torch",
    "transformers": "transformers",
    "timm": "timm",
}
Tensors = dict[str, tuple[str, np.ndarray]]  # name -> dtype as in safetensors, values or bits


def crafted(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header, even a wrong one; `length` overrides its length field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def read_tensors(path: Path) -> Tensors:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors: Tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        values = np.frombuffer(raw[start + begin : start + end], NUMPY[info["dtype"]])
        tensors[name] = info["dtype"], values.reshape(info["shape"])
    return tensors


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data, end = [], 0
    for name, (dtype, values) in tensors.items():
        data.append(np.asarray(values, NUMPY[dtype]).tobytes())
        header[name] = entry(dtype, list(values.shape), end, end + len(data[-1]))
        end += len(data[-1])
    path.write_bytes(crafted(header, b"".join(data)))


def copy_case(tmp_path: Path, case: str, layout: str) -> Path:
    """A writable copy of one published layout of a reference case."""
    return Path(shutil.copytree(DATA / case / layout, tmp_path / f"{case}-{layout}"))


def weight_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def edit_json(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None takes a field away."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 values cut to bfloat16 bits (towards zero: the tests compare bits, not numbers)."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def shard(folder: Path, count: int = 2) -> dict[str, str]:
    """Splits a folder's weight file into shards with an index; returns its weight map."""
    path = weight_file(folder)
    tensors = list(read_tensors(path).items())
    path.unlink()
    weight_map = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = dict(tensors[i::count])
        write_tensors(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Mapping[str, Any]) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# Run in a process of its own: defines `peak()`, bytes of memory at the highest. On Linux ru_maxrss
# would not do: a new process starts with that of the one that made it.
PEAK = """
import resource, sys
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""
