"""The state of a run on disk: one safetensors file, always complete."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.errors import CheckpointError, OutputError
from aim_mlx.files import publish
from aim_mlx.training.folder import RUN
from aim_mlx.weights.safetensors_file import TensorReader, check_file
from aim_mlx.weights.writer import SafetensorsWriter

NAME = "checkpoint.safetensors"
_RECORD, _RUN, _CHECKSUM = "aim_mlx_training", "aim_mlx_run", "aim_mlx_crc32"
_DTYPES = {"float32": "F32", "uint64": "U64", "uint32": "U32", "int32": "I32"}


class Resumable(Protocol):
    """What can be kept and taken up again: `step` steps are done, `history` has their records."""

    step: int
    history: list[dict[str, Any]]

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name."""
        ...

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same configuration."""
        ...


def save_state(folder: Path, trainer: Resumable) -> None:
    """Publishes the trainer's state in a folder; raises OSError."""
    state = {name: np.asarray(value) for name, value in trainer.state().items()}
    specs = {name: (_DTYPES[str(value.dtype)], value.shape) for name, value in state.items()}
    record = json.dumps({"step": trainer.step, "history": trainer.history})
    about = {_RECORD: record, _RUN: _run(folder), _CHECKSUM: _checksum(record, state)}

    def write(file) -> None:
        writer = SafetensorsWriter(file, specs, about)
        for name, value in state.items():
            writer.write(name, value)
        writer.finish()

    publish({folder / NAME: write})


def load_state(folder: Path, trainer: Resumable) -> bool:
    """Takes up the state in a folder; False where there is none.

    Raises OutputError for a file that is not sound or not of this trainer's model.
    """
    path = folder / NAME
    if not path.exists():
        return False
    try:
        checked = check_file(path)
        with TensorReader(checked) as reader:
            state = {name: reader.read(name) for name in checked.tensors}
        record = checked.metadata[_RECORD]
        if checked.metadata.get(_CHECKSUM) != _checksum(record, state):
            raise ValueError("it is not as it was written")
        if checked.metadata.get(_RUN) != _run(folder):
            raise ValueError("it is another run's")
        expected = {name: value.shape for name, value in trainer.state().items()}
        if {name: value.shape for name, value in state.items()} != expected:
            raise ValueError("its tensors are another model's")
        about = json.loads(record)
        tensors = {name: mx.array(value) for name, value in state.items()}
        trainer.restore(tensors, about["step"], about["history"])
    except (CheckpointError, ValueError, KeyError) as error:
        raise OutputError(
            f"{str(path)!r} cannot be taken up ({error}): remove it to start again"
        ) from error
    return True


def _run(folder: Path) -> str:
    """What stands for the run of this folder: SHA-256 of its run.json, empty where there is none.

    Runs on other data or with another seed have tensors of the same shapes.
    """
    path = folder / RUN
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _checksum(record: str, state: Mapping[str, np.ndarray]) -> str:
    """CRC-32 over the record and all tensors: a damaged state would go on to other numbers."""
    total = zlib.crc32(record.encode())
    for name in sorted(state):
        data = np.ascontiguousarray(state[name]).reshape(-1).view(np.uint8)
        total = zlib.crc32(data.data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"
