"""States of training runs on disk, and the folder that says which run it is."""

import json
import os
from typing import Any

import numpy as np
import pytest

from aim_mlx.backend import mx
from aim_mlx.errors import OutputError
from aim_mlx.training.folder import RUN, check_same_run
from aim_mlx.training.loop import CHECKPOINT, load_state, save_state


class Trainer:
    """A state of a few tensors."""

    steps, done = 9, False

    def __init__(self, step: int = 0):
        self.step, self.history = step, [{"epoch": i} for i in range(step)]
        rng = np.random.default_rng(step)
        self.tensors = {"w": mx.array(rng.normal(size=(5, 7)).astype(np.float32))}
        self.tensors["count"] = mx.array(step, dtype=mx.uint64)

    def run_step(self) -> None:
        raise AssertionError("no step is done here")

    def state(self) -> dict[str, mx.array]:
        return self.tensors

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        self.tensors, self.step, self.history = state, step, history


def test_a_state_comes_back_to_the_bit(tmp_path):
    kept, found = Trainer(3), Trainer()
    save_state(tmp_path, kept)
    assert load_state(tmp_path, found) and found.step == 3 and found.history == kept.history
    for name, value in kept.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value)
    assert not load_state(tmp_path / "elsewhere", Trainer())


def test_one_changed_bit_anywhere_is_refused_and_nothing_is_taken_up(tmp_path):
    save_state(tmp_path, Trainer(3))
    path = tmp_path / CHECKPOINT
    sound = path.read_bytes()
    for place in range(8, len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        found = Trainer()
        try:
            load_state(tmp_path, found)
        except OutputError as error:
            assert "cannot be taken up" in str(error) and found.step == 0
        else:  # white space of the header
            assert found.step == 3 and damaged[place] ^ 1 in b" \t\n\r"


def test_a_state_of_another_run_is_refused_where_only_its_data_differ(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / RUN).write_text(json.dumps({"data set": name}))
    save_state(tmp_path / "a", Trainer(3))
    assert load_state(tmp_path / "a", Trainer())
    (tmp_path / "a" / CHECKPOINT).rename(tmp_path / "b" / CHECKPOINT)
    with pytest.raises(OutputError, match=r"it is another run's.: remove it to start again"):
        load_state(tmp_path / "b", Trainer())


@pytest.mark.parametrize("content", ["[" * 100_000, "no JSON", None])
def test_a_run_that_cannot_be_read_is_refused(tmp_path, content):
    if content is None:
        os.mkfifo(tmp_path / RUN)
    else:
        (tmp_path / RUN).write_text(content)
    with pytest.raises(OutputError, match="cannot be read: choose another folder"):
        check_same_run(tmp_path, {"seed": 0})


def test_another_run_is_named_by_the_first_thing_that_differs(tmp_path):
    (tmp_path / RUN).write_text(json.dumps({"seed": 0, "epochs": 2}))
    check_same_run(tmp_path, {"seed": 0, "epochs": 2})
    with pytest.raises(OutputError, match=r"holds another run \(its epochs: 2, not 3\)"):
        check_same_run(tmp_path, {"seed": 0, "epochs": 3})


def test_other_epochs_alone_are_told_how_to_go_on(tmp_path):
    work = tmp_path / "my probe" / "training"
    (work / "tokens").mkdir(parents=True)
    (work / RUN).write_text(json.dumps({"seed": 0, "epochs": 2}))
    with pytest.raises(
        OutputError, match="start again: choose another folder by -o, and add"
    ) as told:
        check_same_run(work, {"seed": 0, "epochs": 3})
    assert f"--cache '{work / 'tokens'}' to use its tokens again" in str(told.value)
    with pytest.raises(OutputError, match="choose another folder, or give the same command"):
        check_same_run(work, {"seed": 1, "epochs": 3})
