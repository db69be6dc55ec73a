"""The steps of a training that are left, with its state on disk, so that a kill costs little.

The state is one safetensors file, always complete.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.errors import CheckpointError, Interrupted, OutputError
from aim_mlx.files import disk_errors, publish
from aim_mlx.training.folder import RUN, write_lines
from aim_mlx.training.parallel import ALONE, ProcessGroup
from aim_mlx.training.report import Report, Silent, never
from aim_mlx.weights.safetensors_file import TensorReader, check_file
from aim_mlx.weights.safetensors_writer import write_arrays

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.json"
CHECKPOINT_SECONDS = 60.0  # of work at most are lost in a kill
_RECORD, _RUN, _CHECKSUM = "aim_mlx_training", "aim_mlx_run", "aim_mlx_crc32"


class Trainer(Protocol):
    """Something in training: each step is a function of the state before it and of its number.

    `step` steps are done, of which `history` has records.
    """

    step: int
    history: list[dict[str, Any]]

    @property
    def steps(self) -> int:
        """How many there are if nothing ends it early."""
        ...

    @property
    def done(self) -> bool: ...

    def run_step(self) -> Mapping[str, Any] | None:
        """Does one step; the record that it added to `history`, None where it added none."""
        ...

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name."""
        ...

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same arguments."""
        ...


def run(
    trainer: Trainer,
    work: Path | None = None,
    report: Report | None = None,
    *,
    stop: Callable[[], bool] = never,
    metrics: bool = False,
    group: ProcessGroup = ALONE,
) -> None:
    """Runs a trainer until it is done, or until `stop` returns True.

    With an existing folder `work` the state is kept there, every CHECKPOINT_SECONDS and at the end,
    and a trainer of the same arguments goes on from it, to the same bits; that they are the same is
    for `folder.check_same_run`. With `metrics` the history is written there as well, as
    metrics.json. Raises Interrupted where it was stopped and on Ctrl-C, and OutputError for a state
    that cannot be written or read back; the last one stays, as it does where a step raises.

    In a group every process runs it: the first alone reads and writes, the others take up its
    state, and all stop after the same step. Their number may be another than before.
    """
    report = report or Silent()
    if work is not None and group.is_first and load_state(work, trainer):
        report.noted(f"goes on after step {trainer.step} of {trainer.steps}")
    _share_state(trainer, group)
    kept, saved = trainer.step, time.monotonic()
    try:
        while not trainer.done:
            record = trainer.run_step()
            report.advanced("training", trainer.step, trainer.steps)
            if record is not None:
                report.recorded(record)
            due = time.monotonic() - saved >= CHECKPOINT_SECONDS
            stopped, due = group.any(stop() and not trainer.done, due)
            if work is not None and (due or stopped or trainer.done):
                if group.is_first:
                    _save(work, trainer, metrics)
                kept, saved = trainer.step, time.monotonic()
            if stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise _interrupted(trainer, kept, work) from None
    if work is not None and group.is_first and metrics:
        _write_metrics(work, trainer)  # a kill may have come between the state and these


def _share_state(trainer: Trainer, group: ProcessGroup) -> None:
    """Gives the other processes the first one's state, of which they may see no file."""
    if group.size > 1:
        step, history = group.shared_values([trainer.step, trainer.history])
        state = group.shared(trainer.state())
        if not group.is_first:
            trainer.restore(state, step, history)


def _save(work: Path, trainer: Trainer, metrics: bool) -> None:
    with disk_errors("write", work, "the last checkpoint is kept, and the same command resumes"):
        save_state(work, trainer)
        if metrics:
            _write_metrics(work, trainer)


def _write_metrics(work: Path, trainer: Trainer) -> None:
    write_lines(work / METRICS, [json.dumps(trainer.history, indent=1)])


def _interrupted(trainer: Trainer, kept: int, work: Path | None) -> Interrupted:
    where = f"interrupted after step {trainer.step} of {trainer.steps}"
    if work is None:
        return Interrupted(f"{where}; nothing is kept")
    what = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was due yet"
    return Interrupted(f"{where}; {what}: the same command resumes")


def save_state(folder: Path, trainer: Trainer) -> None:
    """Publishes the trainer's state in a folder; raises OSError."""
    state = {name: np.asarray(value) for name, value in trainer.state().items()}
    record = json.dumps({"step": trainer.step, "history": trainer.history})
    about = {_RECORD: record, _RUN: _run(folder), _CHECKSUM: _checksum(record, state)}
    publish({folder / CHECKPOINT: lambda file: write_arrays(file, state, about)})


def load_state(folder: Path, trainer: Trainer) -> bool:
    """Takes up the state in a folder; False where there is none.

    Raises OutputError for a file that is not sound or not of this trainer's model.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return False
    try:
        checked = check_file(path)
        with TensorReader(checked) as reader:
            state = {name: reader.read(name) for name in checked.tensors}
        record = checked.metadata.get(_RECORD, "")
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
