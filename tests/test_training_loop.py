"""The loop that all trainings share, with a trainer of one number."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.backend import mx
from aim_mlx.errors import Interrupted, OutputError
from aim_mlx.training import loop
from aim_mlx.training.folder import RUN, begin, check_output, working
from aim_mlx.training.report import Silent, advancing


class Doubling:
    """Doubles a number and adds the step; every second step has a record."""

    def __init__(self, steps: int = 6):
        self.step, self.steps = 0, steps
        self.history: list[dict[str, Any]] = []
        self.value = mx.array([0.1])

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def run_step(self) -> dict[str, Any] | None:
        self.value = self.value * 2 + self.step
        self.step += 1
        if self.step % 2:
            return None
        self.history.append({"step": self.step, "value": float(self.value[0])})
        return self.history[-1]

    def state(self) -> dict[str, mx.array]:
        return {"value": self.value}

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        self.value, self.step, self.history = state["value"], step, history


class Report(Silent):
    """Keeps notes, records and how far it is."""

    def __init__(self):
        self.notes: list[str] = []
        self.records: list[Any] = []
        self.done: list[tuple[str, int, int]] = []

    def noted(self, note: str) -> None:
        self.notes.append(note)

    def advanced(self, what: str, done: int, total: int) -> None:
        self.done.append((what, done, total))

    def recorded(self, record) -> None:
        self.records.append(record)


def test_a_stopped_run_goes_on_to_the_same_bits_and_records(tmp_path):
    whole, stopped, report = Doubling(), Doubling(), Report()
    loop.run(whole)
    with pytest.raises(
        Interrupted,
        match="after step 3 of 6; the checkpoint of step 3 is kept: the same command resumes",
    ):
        loop.run(stopped, tmp_path, report, stop=lambda: stopped.step == 3)
    again = Doubling()
    loop.run(again, tmp_path, report)
    assert report.notes == ["goes on after step 3 of 6"] and report.records == whole.history
    assert report.done == [("training", step, 6) for step in range(1, 7)]
    np.testing.assert_array_equal(again.value, whole.value)


def test_ctrl_c_keeps_the_last_state_that_was_due(tmp_path, monkeypatch):
    broken = Doubling()
    step = broken.run_step
    broken.run_step = lambda: step() if broken.step < 4 else _interrupt()
    with pytest.raises(Interrupted, match="after step 4 of 6; no checkpoint was due yet"):
        loop.run(broken, tmp_path)
    with pytest.raises(Interrupted, match="after step 4 of 6; nothing is kept"):
        loop.run(broken)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    broken.step = 2
    with pytest.raises(Interrupted, match="the checkpoint of step 4 is kept"):
        loop.run(broken, tmp_path)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_finished_run_does_no_step_and_writes_its_records_again(tmp_path):
    loop.run(Doubling(), tmp_path, metrics=True)
    records = tmp_path / loop.METRICS
    kept = records.read_bytes()
    records.unlink()
    again, report = Doubling(), Report()
    loop.run(again, tmp_path, report, metrics=True)
    assert not report.done and records.read_bytes() == kept
    assert json.loads(kept) == again.history and len(again.history) == 3


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    loop.run(Doubling(steps=4), tmp_path)
    kept = (tmp_path / loop.CHECKPOINT).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "save_state", full)
    with pytest.raises(OutputError, match="cannot write .*: No space left.*resumes"):
        loop.run(Doubling(steps=6), tmp_path)
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == kept


def test_the_work_before_the_first_step_ends_once_it_should_stop():
    report = Report()
    advanced = advancing(report, lambda: len(report.done) > 2)
    advanced("reading", 1, 9)
    advanced("reading", 2, 9)
    with pytest.raises(Interrupted, match="before the training; what is finished is kept"):
        advanced("reading", 3, 9)


def test_a_working_folder_is_known_by_its_run_and_closed_to_others(tmp_path):
    folder = tmp_path / "run"
    with working(folder, {"rates": (1, 2)}) as work:
        begin(work, {"rates": (1, 2)}, {"first.json": b"{}"})
        assert (work / "first.json").read_bytes() == b"{}"
        with pytest.raises(OutputError, match="is writing"), working(folder, {"rates": [1, 2]}):
            pass
    check_output(folder)
    with pytest.raises(OutputError, match="its rates: .1, 2., not .1, 3."):
        with working(folder, {"rates": [1, 3]}):
            pass
    (work / RUN).unlink()
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        check_output(folder)
    with pytest.raises(OutputError, match="is not a folder"):
        check_output(Path(folder / "letter.txt"))
