"""The state of a run on disk: one safetensors file, always complete."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.durable import publish
from aim_mlx.errors import CheckpointError, OutputError
from aim_mlx.weights.safety import TensorReader, check_file
from aim_mlx.weights.writer import SafetensorsWriter

NAME = "checkpoint.safetensors"
_DTYPES = {"float32": "F32", "uint64": "U64", "uint32": "U32", "int32": "I32"}


class Trainer(Protocol):
    """What a run is made of, as far as going on with it is concerned."""

    step: int
    history: list[dict[str, Any]]

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name."""
        ...

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same configuration."""
        ...


def save_state(folder: Path, trainer: Trainer) -> None:
    """Publishes the trainer's state in a folder; raises OSError."""
    state = {name: np.asarray(value) for name, value in trainer.state().items()}
    specs = {name: (_DTYPES[str(value.dtype)], value.shape) for name, value in state.items()}
    record = json.dumps({"step": trainer.step, "history": trainer.history})

    def write(file) -> None:
        writer = SafetensorsWriter(file, specs, {"aim_mlx_training": record})
        for name, value in state.items():
            writer.write(name, value)
        writer.finish()

    publish({folder / NAME: write})


def load_state(folder: Path, trainer: Trainer) -> bool:
    """Takes up the state in a folder; False where there is none.

    Raises OutputError for a file that is not sound or not of this trainer's model.
    """
    path = folder / NAME
    if not path.exists():
        return False
    try:
        checked = check_file(path)
        record = json.loads(checked.metadata["aim_mlx_training"])
        with TensorReader(checked) as reader:
            state = {name: mx.array(reader.read(name)) for name in checked.tensors}
        expected = {name: value.shape for name, value in trainer.state().items()}
        if {name: value.shape for name, value in state.items()} != expected:
            raise ValueError("its tensors are another model's")
        trainer.restore(state, record["step"], record["history"])
    except (CheckpointError, ValueError, KeyError) as error:
        raise OutputError(
            f"{str(path)!r} cannot be taken up ({error}): remove it to start again"
        ) from error
    return True
