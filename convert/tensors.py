"""Tensors of PyTorch files: read as weights only, checked one by one before any is copied.

`torch.load(weights_only=True)` is the one way in, without a fallback: a file that needs more is
refused. The files are mapped, so that reading them costs no memory.
"""

import mmap
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aim_mlx.errors import AimError, CheckpointError
from aim_mlx.weights.safetensors_writer import SafetensorsWriter
from aim_mlx.weights.strict_json import at, show
from convert.archive import check_archive

if TYPE_CHECKING:
    import torch

# What training scripts put a state dict under, and what wrapped modules put before its keys.
WRAPPERS = ("model", "state_dict")
PREFIXES = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"  # of a batch norm: the one whole number in a state dict

_OLDEST_TORCH = "2.6"  # before, weights_only=True could be made to run code (CVE-2025-32434)
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:operand|class|type)[^\n]{0,80}")


def require_torch() -> Any:
    """The torch module; raises AimError where there is none, or one that is not safe."""
    try:
        import torch
        from torch.torch_version import TorchVersion
    except ImportError as error:
        raise AimError(
            "PyTorch is not installed: in a clone of the repository, "
            "pip install -e '.[parity]' (on Linux '.[cpu,parity]')"
        ) from error
    if TorchVersion(torch.__version__) < _OLDEST_TORCH:
        raise AimError(
            f"PyTorch {torch.__version__} can run code from weight files: install torch 2.6 or "
            "newer (pip install -e '.[parity]')"
        )
    return torch


def read_torch_file(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of one file by name, mapped into memory, each one checked.

    Raises CheckpointError for what is not a plain state dict of dense float tensors, counters of
    batch norms aside.
    """
    torch = require_torch()
    check_archive(path)
    try:
        # Linux counts a private mapping as memory, and refuses one of a file that is larger.
        kind = mmap.MAP_SHARED if os.access(path, os.W_OK) else mmap.MAP_PRIVATE
        with torch.serialization.set_default_mmap_options(kind):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler meets crafted bytes: it fails in every way there is
        raise CheckpointError(
            f"{at(path)} cannot be read as weights only{_reason(error)}: save nothing but the "
            "state dict, torch.save(model.state_dict(), ...)"
        ) from error
    tensors = _state_dict(path, content)
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor)
    return tensors


def without_prefix(tensors: Mapping[str, "torch.Tensor"]) -> tuple[dict[str, "torch.Tensor"], str]:
    """The tensors without what a wrapper put before every name, and what that was."""
    stripped = ""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
            stripped += prefix
    return dict(tensors), stripped


def check_disjoint(tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Raises CheckpointError for two tensors that share memory: together they would outgrow it.

    Files are mapped once, so that overlaps show in the addresses, whatever the storages are called.
    """
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + _span(tensor) * tensor.element_size(), name)
        for name, tensor in tensors.items()
        if tensor.numel()
    )
    for (_, end, name), (begin, _, other) in zip(spans, spans[1:], strict=False):
        if begin < end:
            raise CheckpointError(
                f"tensors {show(name)} and {show(other)} share memory: expected one storage each; "
                "save copies, {k: v.clone() for k, v in state_dict.items()}"
            )


def write_safetensors(
    path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors with their names, shapes and dtypes, one at a time."""
    stored = _stored_names()
    specs = {name: (stored[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    with open(path, "xb") as file:
        writer = SafetensorsWriter(file, specs, {"format": "pt", **(metadata or {})})
        for name, tensor in tensors.items():
            writer.write(name, _bits(tensor))
        writer.finish()


def _is_plain(name: str, value: Any) -> bool:
    """Whether it is a number or text, or in "meta" a dict of such: said about the tensors."""
    values = value.values() if name == "meta" and isinstance(value, dict) else [value]
    return all(isinstance(each, (int, float, str, type(None))) for each in values)


def _state_dict(path: Path, content: Any) -> dict[str, "torch.Tensor"]:
    """The state dict in a file: all of it, or under one of WRAPPERS beside plain values."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{at(path)} holds {_kind(content)}: expected a dict of tensors")
    if wrappers := [key for key in WRAPPERS if isinstance(content.get(key), dict)]:
        rest = [k for k, v in content.items() if k not in wrappers[:1] and not _is_plain(k, v)]
        if rest:
            raise CheckpointError(
                f"{at(path)} holds {show(rest[0])} ({_kind(content[rest[0]])}) beside "
                f"{show(wrappers[0])}: expected nothing but numbers and texts there; "
                f"save checkpoint[{show(wrappers[0])}] alone"
            )
        content = content[wrappers[0]]
    if not content:
        raise CheckpointError(f"{at(path)} holds no tensors: expected a dict of tensors")
    for name, value in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{at(path)}: expected names as keys, got {show(name)}")
        if not _is_tensor(value):
            raise CheckpointError(
                f"{show(name)} in {at(path)} is {_kind(value)}: expected a tensor (a dict of "
                f"tensors may stand under {' or '.join(map(show, WRAPPERS))})"
            )
    return dict(content)


def _is_tensor(value: Any) -> bool:
    import torch

    return type(value) in (torch.Tensor, torch.nn.Parameter)


def _check_tensor(path: Path, name: str, tensor: "torch.Tensor") -> None:
    """A dense float tensor in main memory, with an element of its storage for each of its own."""
    import torch

    def refuse(expected: str, got: object) -> CheckpointError:
        return CheckpointError(f"tensor {show(name)} in {at(path)}: expected {expected}, got {got}")

    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise refuse("dense weights", f"{tensor.layout} on {tensor.device}")
    floats = [dtype for dtype in _stored_names() if dtype.is_floating_point]
    counter = tensor.dtype == torch.int64 and name.rpartition(".")[2] == COUNTER
    if tensor.dtype not in floats and not counter:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in floats)
        raise refuse(f"dtype {names}", str(tensor.dtype).removeprefix("torch."))
    spanned = _span(tensor)
    if tensor.numel() > spanned:
        raise refuse(
            f"{tensor.numel()} elements for shape {list(tensor.shape)}",
            f"{spanned} that are repeated (an expanded tensor); save a copy of it, .clone()",
        )
    stored = tensor.untyped_storage().nbytes()
    if (tensor.storage_offset() + spanned) * tensor.element_size() > stored:
        raise refuse(f"shape {list(tensor.shape)} within its storage", f"{stored} bytes")


def _span(tensor: "torch.Tensor") -> int:
    """Elements of the storage from a tensor's first to its last."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _stored_names() -> dict[Any, str]:
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return names | {torch.int64: "I64"}


def _bits(tensor: "torch.Tensor") -> np.ndarray:
    """The tensor as numpy, bfloat16 as its uint16 bits."""
    import torch

    tensor = tensor.detach().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _kind(value: Any) -> str:
    """What a value is, in a few words, for a message."""
    if isinstance(value, dict):
        return f"a dict with the keys {_some(value)}" if value else "an empty dict"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"


def _some(keys: Iterable[Any]) -> str:
    names = [show(key) for key in keys]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _reason(error: Exception) -> str:
    """What torch found, never its advice, which is to read the file without the protection."""
    if isinstance(error, MemoryError) or "Cannot allocate memory" in str(error):
        return " (it asks for more memory than there is)"
    if match := _REFUSED.search(str(error)):
        return f" (it needs {show(match[1] or match[0])})"
    return f" ({type(error).__name__})"
