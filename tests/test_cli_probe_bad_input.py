"""`aim-mlx probe` and `aim-mlx knn`: options, folders and pipes that do not serve."""

import json
import os
from pathlib import Path

import pytest

from aim_mlx.cli import main as cli
from tests.commands import run, start
from tests.digits import write_digits
from tests.small import save

FAST = ["--learning-rates", "0.01", "--batch-norm", "off", "--epochs", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, digits and a probe of them."""
    place = tmp_path_factory.mktemp("place")
    model, digits = save(place / "model"), write_digits(place / "digits", 8)
    given = ["probe", "train", digits, "-o", place / "probe", "--model", model, *FAST]
    assert cli._run([str(each) for each in given]) == 0
    return place


@pytest.mark.parametrize("top", [0, -1])
def test_no_classes_at_all_cannot_be_asked_for(capsys, place, top):
    code, lines, talk = run(
        capsys, "probe", "predict", place / "probe", place / "digits", "--top", top
    )
    assert code == 2 and lines == "" and f"top must be a whole number from 1, got {top}" in talk


def test_a_split_that_is_none_is_refused(capsys, place):
    code, _, talk = run(
        capsys, "probe", "eval", place / "probe", place / "digits", "--split", "dev"
    )
    assert code == 2 and "a split is train, val, test or all, got 'dev'" in talk


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        ("missing", 2, "which would say what was in test, is not there"),
        ("nested", 5, "cannot be read"),
        ("pipe", 5, "cannot be read (not a regular file): remove it"),
    ],
)
def test_damaged_splits_of_a_probe_are_refused(capsys, place, tmp_path, damage, code, message):
    for name in ("probe.json", "probe.safetensors"):
        os.link(place / "probe" / name, tmp_path / name)
    if damage == "nested":
        (tmp_path / "splits.jsonl").write_text("[" * 100_000)
    elif damage == "pipe":
        os.mkfifo(tmp_path / "splits.jsonl")
    given = ["probe", "eval", tmp_path, place / "digits", "--split", "test"]
    found, _, talk = run(capsys, *given)
    assert found == code and message in talk


def test_a_reader_that_has_seen_enough_ends_a_training_quietly(place, tmp_path):
    given = ["probe", "train", place / "digits", "-o", tmp_path / "p", "--model", place / "model"]
    given += ["--json", "--learning-rates", "0.01", "--epochs", 1000]
    with start(*given) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "epoch"
        process.stdout.close()
        talk = process.stderr.read()
    assert process.returncode == 1 and "error" not in talk


def test_a_linked_class_folder_is_left_out_with_a_hint(capsys, place, tmp_path):
    os.symlink(place / "digits" / "0", tmp_path / "zero")
    (tmp_path / "real").mkdir()
    os.link(next((place / "digits" / "3").iterdir()), tmp_path / "real" / "one.png")
    code, _, talk = run(capsys, "knn", tmp_path, "--model", place / "model")
    assert code == 2 and "follow links with --follow" in talk


def test_neighbours_name_the_number_that_was_taken(capsys, place):
    code, lines, _ = run(capsys, "knn", place / "digits", "--model", place / "model", "--k", "1,5")
    # Two numbers, each at two temperatures.
    assert code == 0 and lines.count("\ton val\n") == 3
    assert lines.count("\ton val, the best\n") == 1


def test_the_commands_of_probes_are_told_in_whole_sentences(capsys):
    code, lines, _ = run(capsys, "probe", "--help")
    assert code == 0 and "..." not in lines.split("Commands:")[1]
