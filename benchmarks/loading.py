"""Loading a float32 checkpoint from a warm disk cache: seconds, and memory above the libraries'."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_ours(model: str) -> dict[str, Any]:
    """aim_mlx.load, every weight read once more."""
    import numpy as np

    from aim_mlx.backend import tree_flatten
    from aim_mlx.loading import load as load_encoder  # before, as theirs

    def load() -> float:
        parameters = dict(tree_flatten(load_encoder(model, dtype="float32").model.parameters()))
        return sum(float(np.asarray(value).sum()) for value in parameters.values())

    return _measured(load)


def load_theirs(model: str) -> dict[str, Any]:
    """Aimv2VisionModel.from_pretrained, every weight read once: it maps the file into memory."""
    import torch
    from transformers import Aimv2VisionModel

    def load() -> float:
        network: Any = Aimv2VisionModel.from_pretrained(model, dtype=torch.float32)
        with torch.inference_mode():
            return sum(float(value.sum()) for value in network.parameters())

    return _measured(load)


def _measured(load: Callable[[], float]) -> dict[str, Any]:
    """Seconds and bytes of a load; the weights' sum shows that both loaded the same."""
    before, started = _resident(), time.perf_counter()
    checksum = load()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_bytes": peak() - before, "checksum": checksum}


def peak() -> int:
    """The largest resident size so far; on Linux ru_maxrss would begin with the parent's."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM")


def _resident() -> int:
    return peak() if sys.platform == "darwin" else _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
