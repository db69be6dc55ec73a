"""Fine-tunings in two processes: the numbers of one, one folder, and one end for both."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file

from aim_mlx.data.labelled import Data
from aim_mlx.errors import UsageError
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.finetune.run import finetune
from aim_mlx.loading import load
from aim_mlx.probe.config import protocol
from aim_mlx.probe.run import Plan, train_probe
from aim_mlx.training import loop
from aim_mlx.training.parallel import ProcessGroup
from tests.digits import write_digits
from tests.parallel_runs import run_all
from tests.small import save

CONFIG = FinetuneConfig(epochs=2, batch_size=21, learning_rate=3e-3, dropout=0.0)  # 3 steps each
OPTIONS = ["--epochs", 2, "--batch-size", 21, "--learning-rate", 3e-3, "--dropout", 0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> dict[str, Path]:
    """Digits, a model, a probe of it, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("scene")
    digits, model = write_digits(folder / "digits", 10), save(folder / "model")
    made = {"digits": digits, "model": model, "probe": folder / "probe", "alone": folder / "alone"}
    plan = Plan(protocol("fast", epochs=2, learning_rates=(0.01,), batch_norm=(True,)))
    train_probe(Data(digits), made["probe"], lambda: load(model), plan)
    train(made, made["alone"])
    return made


def train(scene: dict[str, Path], folder: Path, **more: Any) -> None:
    """The same training as the jobs', in this process."""
    model, probe = scene["model"], scene["probe"]
    finetune(Data(scene["digits"]), folder, lambda: load(model), CONFIG, probe=probe, **more)


def job(scene: dict[str, Path], folder: Path, **signals: int) -> dict[str, Any]:
    given = ["finetune", scene["digits"], "-o", folder, "--model", scene["model"], *OPTIONS]
    given += ["--from-probe", scene["probe"]]
    return {"arguments": [str(each) for each in given], "signals": signals}


def assert_same_training(folder: Path, other: Path) -> None:
    ours, theirs = records(folder), records(other)
    assert [each["metric"] for each in ours] == [each["metric"] for each in theirs]
    assert len(ours) == 3 and ours[0]["train_loss"] is None  # the probe as it was
    for name in ("val_loss", "train_loss"):
        for first, second in zip(ours[1:], theirs[1:], strict=True):
            # Sums of float32 in another order, over 6 steps.
            assert first[name] == pytest.approx(second[name], rel=1e-5)
    for name in ("adapters.safetensors", "probe.safetensors"):
        first, second = (load_file(each / name) for each in (folder, other))
        assert first.keys() == second.keys()
        assert max(float(np.abs(first[key] - second[key]).max()) for key in first) < 1e-4


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_train_as_one_does_and_the_first_alone_writes(scene, tmp_path):
    run, nowhere = tmp_path / "run", tmp_path / "not there" / "run"
    first, second = run_all(tmp_path, job(scene, run), job(scene, nowhere))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "10 classes, 60 train, 20 val, 20 test" in first.stderr and "right: " in first.stderr
    assert second.stdout == second.stderr == "" and not nowhere.parent.exists()
    assert_same_training(run, scene["alone"])
    names = [sorted(p.relative_to(f) for p in f.rglob("*")) for f in (run, scene["alone"])]
    assert names[0] == names[1]


def test_when_the_writing_process_is_killed_the_other_ends_and_one_alone_goes_on(scene, tmp_path):
    run, nowhere = tmp_path / "run", tmp_path / "not there" / "run"
    killed, left = run_all(tmp_path, job(scene, run, SIGKILL=4), job(scene, nowhere))
    assert killed.returncode == -9 and left.returncode == 1, left.stderr
    errors = [line for line in left.stderr.splitlines() if "aim-mlx: error" in line]
    assert len(errors) == 1 and "another process of this run ended" in errors[0]
    assert "Traceback" not in left.stderr and not (run / "probe.json").exists()
    with mock.patch.object(loop.Silent, "noted") as noted:
        train(scene, run)
    assert mock.call("goes on after step 4 of 6") in noted.mock_calls
    assert_same_training(run, scene["alone"])


def test_a_batch_has_an_image_for_every_process_at_least(scene, tmp_path):
    group = ProcessGroup(mock.Mock(**{"rank.return_value": 3, "size.return_value": 32}))
    with (
        mock.patch.object(group, "check_same"),
        pytest.raises(UsageError, match="a batch has only 20 images for 32 processes"),
    ):
        train(scene, tmp_path / "run", group=group)
