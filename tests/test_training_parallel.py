"""Trainings in two processes: the numbers of one, one folder, and one end for both."""

import json
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file

from aim_mlx.backend import mx
from aim_mlx.errors import Interrupted, UsageError
from aim_mlx.pretrain.config import CONFIGS, PretrainConfig
from aim_mlx.pretrain.run import pretrain
from aim_mlx.training.parallel import ALONE, ProcessGroup, joined
from aim_mlx.training.report import Report
from tests.parallel_runs import run_all
from tests.pretraining import SHAPES, TINY, picture, write_pairs

STEPS = 6  # 18 pictures twice, in batches of 7


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"), 24)


@pytest.fixture(scope="module")
def alone(table, tmp_path_factory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(table, folder)
    return folder


class Notes(Report):
    def __init__(self):
        self.notes, self.steps = [], 0

    def noted(self, note: str) -> None:
        self.notes.append(note)

    def advanced(self, what: str, done: int, total: int) -> None:
        self.steps = done if what == "training" else 0


def train(table: Path, folder: Path, report: Report | None = None, **more: Any) -> None:
    """The same training as the jobs', in this process."""
    with mock.patch.dict(CONFIGS, nano=TINY):
        config = PretrainConfig(epochs=2, batch_size=7, held_out=0.25)
        pretrain(table, folder, config, report, **more)


def group_of(rank: int, size: int) -> ProcessGroup:
    return ProcessGroup(mock.Mock(**{"rank.return_value": rank, "size.return_value": size}))


def arguments(table: Path, folder: Path, *more: object) -> list[str]:
    short = ["--epochs", 2, "--batch-size", 7, "--held-out", 0.25]
    return [str(each) for each in ["pretrain", table, "-o", folder, *short, *more]]


def job(table: Path, folder: Path, *more: object, **signals: int) -> dict[str, Any]:
    return {"arguments": arguments(table, folder, *more), "signals": signals}


def assert_same_training(folder: Path, other: Path) -> None:
    ours, theirs = records(folder), records(other)
    assert [each["step"] for each in ours] == [each["step"] for each in theirs]
    for name in ("loss", "pixel_loss", "text_loss", "val_pixel_loss", "val_text_loss", "grad_norm"):
        first, second = (np.array([each[name] for each in all_]) for all_ in (ours, theirs))
        # Sums of float32 in another order, over 6 steps; seen 3e-7, and 1e-5 of the norm.
        tolerance = 1e-4 if name == "grad_norm" else 1e-5
        assert np.abs(first / second - 1).max() < tolerance, (name, first - second)
    first, second = (load_file(each / "model.safetensors") for each in (folder, other))
    assert first.keys() == second.keys()
    largest = max(float(np.abs(first[name] - second[name]).max()) for name in first)
    assert largest < 1e-4, largest


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_train_as_one_does_and_the_first_alone_writes(table, alone, tmp_path):
    run, nowhere = tmp_path / "run", tmp_path / "not there" / "run"
    for i in range(12):
        folder = tmp_path / "labelled" / SHAPES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture("red", folder.name, i).save(folder / f"{i}.png")
    jobs = [job(table, each, "--labelled", folder.parent) for each in (run, nowhere)]
    first, second = run_all(tmp_path, *jobs)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert f"{STEPS} steps" in first.stderr and "knn" in records(run)[-1]
    assert second.stdout == second.stderr == "" and not nowhere.parent.exists()
    assert_same_training(run, alone)
    names = [sorted(path.relative_to(f) for path in f.rglob("*")) for f in (run, alone)]
    assert names[0] == names[1]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_one_alone_goes_on(table, alone, tmp_path, killed):
    run, nowhere = tmp_path / "run", tmp_path / "not there" / "run"
    signals = [{"SIGKILL": 3} if rank == killed else {} for rank in (0, 1)]
    both = run_all(tmp_path, job(table, run, **signals[0]), job(table, nowhere, **signals[1]))
    left = both[1 - killed]
    assert both[killed].returncode == -9 and left.returncode == 1, left.stderr
    errors = [line for line in left.stderr.splitlines() if "aim-mlx: error" in line]
    assert len(errors) == 1 and "another process of this run ended" in errors[0]
    assert "Traceback" not in left.stderr and not (run / "model.safetensors").exists()
    report = Notes()
    train(table, run, report)
    assert report.notes == [f"goes on after step 3 of {STEPS}"]
    assert_same_training(run, alone)


def test_two_processes_go_on_where_one_stopped(table, alone, tmp_path):
    run, nowhere = tmp_path / "run", tmp_path / "not there" / "run"
    report = Notes()
    with pytest.raises(Interrupted, match="after step 4"):
        train(table, run, report, stop=lambda: report.steps == 4)
    first, second = run_all(tmp_path, job(table, run), job(table, nowhere))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "goes on after step 4" in first.stderr
    assert_same_training(run, alone)


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(table, tmp_path):
    run, nowhere = tmp_path / "run", tmp_path / "not there" / "run"
    first, second = run_all(tmp_path, job(table, run), job(table, nowhere, SIGINT=3))
    assert (first.returncode, second.returncode) == (130, 130), first.stderr + second.stderr
    expected = f"interrupted after step 4 of {STEPS}; the checkpoint of step 4 is kept"
    assert expected in first.stderr and expected in second.stderr


def test_processes_that_were_given_different_things_are_refused(table, tmp_path):
    run = tmp_path / "run"
    both = run_all(tmp_path, job(table, run), job(table, run, "--seed", 1))
    for each in both:
        assert each.returncode == 2 and "differ in their seed" in each.stderr, each.stderr


def test_a_batch_has_a_row_for_every_process_at_least(table, tmp_path):
    with pytest.raises(UsageError, match="batch size must be from 8, the number of processes"):
        train(table, tmp_path / "run", group=group_of(3, 8))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_shares_are_the_whole(size):
    for count in range(size, 9):
        shares = []
        for rank in range(size):
            shares.append(np.arange(count)[group_of(rank, size).rows(count)])
        assert np.array_equal(np.concatenate(shares), np.arange(count))
        assert {len(share) for share in shares} <= {count // size, -(-count // size)}


def test_without_mlx_launch_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("MLX_RANK", raising=False)
    assert joined() is ALONE and ALONE.is_first and ALONE.size == 1


def test_a_group_that_cannot_be_reached_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="start all of them with mlx.launch"):
        joined()


def test_a_machine_that_is_gone_is_noticed_while_it_is_waited_for(monkeypatch):
    opened = []

    def init(**_: object) -> mock.Mock:
        opened.extend(socket.socketpair())
        opened.append(socket.create_connection(server.getsockname()))
        return mock.Mock(**{"rank.return_value": 1, "size.return_value": 2})

    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.setattr(mx.distributed, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as server:
        group = joined()
    assert (group.rank, group.size) == (1, 2)
    assert opened[-1].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    probes = socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT
    assert [opened[-1].getsockopt(socket.IPPROTO_TCP, each) for each in probes] == [10, 6]
    for each in opened:
        each.close()
