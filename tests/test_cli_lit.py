"""`aim-mlx lit train` as a user meets it."""

import json
import re
import signal
from pathlib import Path

import pytest
from PIL import Image

import aim_mlx
from aim_mlx.backend import FAST_DTYPES, device_name
from tests.commands import run, start
from tests.small import photo, save


@pytest.fixture
def model(tmp_path) -> Path:
    return save(tmp_path / "model")


@pytest.fixture
def table(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["path,caption"]
    for seed in range(12):
        Image.fromarray(photo(seed)).save(folder / f"{seed}.png")
        lines.append(f'{seed}.png,"picture number {seed}, so to speak"')
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines))
    return path


def arguments(table, model, out, *more) -> list[str]:
    options = ["--epochs", "3", "--batch-size", "4", "--held-out", "0.25"]
    return ["lit", "train", *map(str, [table, "--model", model, "-o", out, *options, *more])]


def test_pairs_become_a_model_that_other_commands_take(capsys, table, model, tmp_path):
    out = tmp_path / "lit"
    code, stdout, stderr = run(capsys, *arguments(table, model, out))
    assert code == 0 and stdout == "", stderr
    assert "12 pairs of 12 images, 3 of them held out, 0 skipped, 9 steps" in stderr
    assert "recall@1 image to text" in stderr and "(chance 0.333)" in stderr
    code, _, stderr = run(capsys, "embed", table.parent, "-o", tmp_path / "v.npz", "--model", out)
    assert code == 0 and "12 embedded" in stderr
    assert isinstance(aim_mlx.load(out), aim_mlx.LiT)


def test_a_gpus_dtype_does_not_round_the_tower_that_is_written(
    capsys, table, model, tmp_path, monkeypatch
):
    monkeypatch.setitem(FAST_DTYPES, device_name(), "float16")
    code, _, stderr = run(capsys, *arguments(table, model, tmp_path / "lit", "--epochs", 1))
    assert code == 0, stderr
    assert aim_mlx.load(tmp_path / "lit").identity["stored_dtype"] == "float32"


def test_json_gives_the_steps_the_skips_and_a_summary(capsys, table, model, tmp_path):
    (table.parent / "3.png").write_bytes(b"not an image")
    code, stdout, _ = run(capsys, *arguments(table, model, tmp_path / "lit", "--json"))
    records = [json.loads(line) for line in stdout.splitlines()]
    assert code == 3
    assert [r["reason"] for r in records if r["event"] == "skipped"] == ["not_image"]
    steps = [r for r in records if r["event"] == "step"]
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6]  # 8 to train on
    assert steps[-1]["metrics"] == records[-1]["metrics"]
    assert records[-1]["event"] == "summary" and records[-1]["exit_code"] == 3
    assert records[-1]["pairs"] == 11 and records[-1]["skipped"] == 1
    written = json.loads((tmp_path / "lit" / "training" / "metrics.json").read_text())
    assert written == [{k: v for k, v in r.items() if k != "event"} for r in steps]


def test_ctrl_c_keeps_the_checkpoint_and_the_same_command_ends_in_the_same_model(
    capsys, table, model, tmp_path
):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    given = ["--json", "--epochs", "10"]
    assert run(capsys, *arguments(table, model, straight, *given))[0] == 0
    process = start(*arguments(table, model, broken, *given))
    assert process.stdout is not None
    while '"step": 5,' not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    said = re.search(r"after step (\d+) of 30; the checkpoint of step (\d+) is kept", stderr)
    assert said and said[1] == said[2] and "the same command resumes" in stderr
    code, _, stderr = run(capsys, *arguments(table, model, broken, *given))
    assert code == 0 and "goes on after step" in stderr, stderr
    models = [(folder / "model.safetensors").read_bytes() for folder in (straight, broken)]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--caption-column", "text"], 2, "no column 'text': it has 'path', 'caption'"),
        (["--text-config", "huge"], 2, "text config must be one of nano, tiny, base"),
        (["--learning-rate", "nan"], 2, "learning rate must be from 0"),
        (["--max-cache-gb", "-1"], 2, "--max-cache-gb"),
        (["--held-out", "0.01"], 2, "too few"),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, table, model, tmp_path, more, code, words):
    found, stdout, stderr = run(capsys, *arguments(table, model, tmp_path / "lit", *more))
    assert found == code and stdout == ""
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("aim-mlx: error:") and words in line
    assert not (tmp_path / "lit" / "config.json").exists()


def test_another_configuration_on_the_same_folder_is_refused(capsys, table, model, tmp_path):
    assert run(capsys, *arguments(table, model, tmp_path / "lit"))[0] == 0
    code, _, stderr = run(capsys, *arguments(table, model, tmp_path / "lit", "--seed", 1))
    assert code == 5 and "another run (its seed: 0, not 1)" in stderr


def test_a_missing_parent_is_said_before_any_work(capsys, table, model, tmp_path):
    code, _, stderr = run(capsys, *arguments(table, model, tmp_path / "no" / "lit"))
    assert code == 5 and "create it first" in stderr and "note" not in stderr


def test_every_option_of_training_is_an_option_of_the_command(capsys):
    code, stdout, _ = run(capsys, "lit", "train", "--help")
    assert code == 0
    for name in ("--text-config", "--epochs", "--batch-size", "--learning-rate", "--seed"):
        assert name in stdout
