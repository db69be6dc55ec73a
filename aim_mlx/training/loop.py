"""The steps of a training that are left, with its state on disk, so that a kill costs little."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aim_mlx.errors import Interrupted
from aim_mlx.files import disk_errors
from aim_mlx.training.checkpoint import Resumable, load_state, save_state
from aim_mlx.training.folder import write_lines
from aim_mlx.training.report import Report, Silent, never

METRICS = "metrics.json"
CHECKPOINT_SECONDS = 60.0  # of work at most are lost in a kill


class Trainer(Resumable, Protocol):
    """Something in training: each step is a function of the state before it and of its number."""

    @property
    def steps(self) -> int:
        """How many there are if nothing ends it early."""
        ...

    @property
    def done(self) -> bool: ...

    def run_step(self) -> Mapping[str, Any] | None:
        """Does one step; the record that it added to `history`, None where it added none."""
        ...


def run(
    trainer: Trainer,
    work: Path | None = None,
    report: Report | None = None,
    *,
    stop: Callable[[], bool] = never,
    metrics: bool = False,
) -> None:
    """Runs a trainer until it is done, or until `stop` returns True.

    With an existing folder `work` the state is kept there, every CHECKPOINT_SECONDS and at the end,
    and a trainer of the same arguments goes on from it, to the same bits; that they are the same is
    for `folder.check_same_run`. With `metrics` the history is written there as well, as
    metrics.json. Raises Interrupted where it was stopped and on Ctrl-C, and OutputError for a state
    that cannot be written or read back; the last one stays, as it does where a step raises.
    """
    report = report or Silent()
    if work is not None and load_state(work, trainer):
        report.noted(f"goes on after step {trainer.step} of {trainer.steps}")
    kept, saved = trainer.step, time.monotonic()
    try:
        while not trainer.done:
            record = trainer.run_step()
            report.advanced("training", trainer.step, trainer.steps)
            if record is not None:
                report.recorded(record)
            stopped = stop() and not trainer.done
            due = time.monotonic() - saved >= CHECKPOINT_SECONDS
            if work is not None and (due or stopped or trainer.done):
                _save(work, trainer, metrics)
                kept, saved = trainer.step, time.monotonic()
            if stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise _interrupted(trainer, kept, work) from None
    if work is not None and metrics:
        _write_metrics(work, trainer)  # a kill may have come between the state and these


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
