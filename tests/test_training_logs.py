"""The figures of a training in TensorBoard's files."""

import math
import sys
from types import SimpleNamespace

import pytest

from aim_mlx.errors import UsageError
from aim_mlx.training.logs import logged, scalars
from aim_mlx.training.report import Report


class Kept(Report):
    def __init__(self):
        self.records, self.others = [], []

    def recorded(self, record):
        self.records.append(record)

    def skipped(self, skip):
        self.others.append(skip)

    def noted(self, note):
        self.others.append(note)

    def warned(self, warning):
        self.others.append(warning)

    def advanced(self, what, done, total):
        self.others.append((what, done, total))


@pytest.fixture
def writers(monkeypatch) -> list:
    """What writers were made, in place of the package's own."""
    made = []

    class Writer:
        def __init__(self, folder, purge_step):
            self.folder, self.purge_step = folder, purge_step
            self.values, self.closed = [], False
            made.append(self)

        def add_scalar(self, name, value, step):
            self.values.append((name, value, step))

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    return made


def test_records_become_scalars_at_their_step_and_all_else_is_passed_on(tmp_path, writers):
    report = Kept()
    record = {"step": 7, "epoch": 1, "loss": 0.5, "val_loss": [0.25, None]}
    with logged(report, "tensorboard", tmp_path / "run") as board:
        board.noted("a note")
        board.warned("a warning")
        board.skipped("a skip")
        board.advanced("training", 1, 2)
        assert not writers  # nothing is written before there is a record
        board.recorded(record)
        board.recorded({"step": 8, "loss": 0.25})
    (writer,) = writers
    assert writer.folder == str(tmp_path / "run/training/tensorboard") and writer.closed
    assert writer.values == [("loss", 0.5, 7), ("val_loss/0", 0.25, 7), ("loss", 0.25, 8)]
    assert writer.purge_step == 7  # steps that a killed run did, too
    assert report.records[0] is record and len(report.records) == 2
    assert report.others == ["a note", "a warning", "a skip", ("training", 1, 2)]


def test_the_file_is_closed_where_a_training_raises(tmp_path, writers):
    with pytest.raises(KeyboardInterrupt), logged(Kept(), "tensorboard", tmp_path) as board:
        board.recorded({"step": 1, "loss": 1})
        raise KeyboardInterrupt
    assert writers[0].closed


def test_only_finite_numbers_are_scalars():
    record = {"a": {"b": [1, math.nan]}, "c": True, "d": "text", "e": math.inf, "f": 2, "step": 3}
    assert list(scalars(record)) == [("a/b/0", 1.0), ("f", 2.0)]


def test_without_a_log_the_report_is_itself(tmp_path):
    report = Kept()
    with logged(report, None, tmp_path) as same:
        assert same is report


def test_an_unknown_log_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--log must be tensorboard, got 'wandb'"):
        logged(Kept(), "wandb", tmp_path).__enter__()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UsageError, match=r"pip install 'aim-mlx\[tensorboard\]'"):
        logged(Kept(), "tensorboard", tmp_path).__enter__()
