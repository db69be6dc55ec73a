"""The steps of a grid that are left, with its state on disk, so that a kill costs little."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aim_mlx.errors import Interrupted, OutputError
from aim_mlx.probe.training import GridTrainer
from aim_mlx.training.checkpoint import load_state, save_state


class Report(Protocol):
    """What training tells while it goes on: epochs are the records of GridTrainer.history."""

    def noted(self, note: str) -> None: ...
    def advanced(self, what: str, done: int, total: int) -> None: ...
    def recorded(self, record: Mapping[str, Any]) -> None: ...


class Silent:
    """A report to nobody."""

    def noted(self, note: str) -> None:
        pass

    def advanced(self, what: str, done: int, total: int) -> None:
        pass

    def recorded(self, record: Mapping[str, Any]) -> None:
        pass


def fit(
    trainer: GridTrainer,
    work: Path | None = None,
    report: Report | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs a trainer until it is done, or until `stop` returns True: then the state is kept.

    With an existing folder `work` the state is kept there, and a trainer of the same arguments goes
    on from it, to the same bits; what they were is for the caller to remember. Raises Interrupted
    where it was stopped and on Ctrl-C, AimError where no head's loss is finite, OutputError for a
    state that cannot be written or taken up; the last state stays.
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
            due = trainer.done or stopped or time.monotonic() - saved >= checkpoint_seconds
            if work is not None and due:
                _save(work, trainer)
                kept, saved = trainer.step, time.monotonic()
            if stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        what = f"the state after step {kept} is kept" if kept else "no state was due yet"
        raise Interrupted(
            f"interrupted after step {trainer.step} of {trainer.steps}; {what}: the same command "
            "resumes"
        ) from None


def _save(work: Path, trainer: GridTrainer) -> None:
    try:
        save_state(work, trainer)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(work)!r}: {error.strerror or error}; the last state is kept, and "
            "the same command resumes"
        ) from error
