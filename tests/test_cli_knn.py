"""`aim-mlx knn`: neighbours on real digits, and what is wrong with a command."""

import json
from pathlib import Path

import numpy as np
import pytest

from aim_mlx.data.labelled import Data
from aim_mlx.data.splits import divided
from aim_mlx.encoder.encoder import EmbedOptions
from aim_mlx.probe import knn
from tests.commands import run
from tests.digits import write_digits
from tests.small import encoder, save


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits", 20)


def test_neighbours_tell_digits_apart_and_the_best_number_on_val_is_taken(capsys, digits, model):
    code, lines, talk = run(capsys, "knn", digits, "--model", model, "--k", "1,5,140")
    rows = [line.split("\t") for line in lines.splitlines()]
    assert code == 0 and [row[0] for row in rows[:6:2]] == ["k=1", "k=5", "k=140"]
    assert [row[1] for row in rows[:6]] == ["temperature=0.07", "temperature=0.2"] * 3
    figures = dict(row[:2] for row in rows[6:])
    assert float(figures["accuracy"].rstrip("%")) > 50 and "30 images of test" in talk


def test_neighbours_and_temperature_are_chosen_on_val_and_test_has_no_say(monkeypatch, digits):
    """One neighbour at 0.2 is always right on val, never on test; seven the other way round."""
    data = divided(Data(str(digits)))
    names, best = list(data.parts), {"val": (1, 0.2), "test": (7, 0.07)}

    def vectors(_encoder, part, *_):
        place = next(i for i, name in enumerate(names) if data.parts[name] is part)
        return np.full((len(part), 1), place, np.float32), []

    def scores(_train, _labels, queries, classes, points):
        name = names[int(queries[0, 0])]
        labels = data.parts[name].labels
        return {at: np.eye(classes)[(labels + (at != best[name])) % classes] for at in points}

    monkeypatch.setattr(knn, "divided", lambda *_: data)
    monkeypatch.setattr(knn, "_vectors", vectors)
    monkeypatch.setattr(knn, "voted", scores)
    found = knn.nearest_neighbours(Data(str(digits)), encoder, EmbedOptions(), ks=(1, 7))
    assert found.scores == {(1, 0.07): 0.0, (1, 0.2): 1.0, (7, 0.07): 0.0, (7, 0.2): 0.0}
    assert found.best == (1, 0.2)
    assert found.measured_on == "test" and found.figures["accuracy"] == 0.0


def test_the_figures_are_those_of_the_vectors_themselves(capsys, digits, model):
    code, lines, _ = run(capsys, "knn", digits, "--model", model, "--k", "1", "--json")
    summary = json.loads(lines.splitlines()[-1])
    data, embed = divided(Data(digits)), encoder().embed
    train, test = (data.parts[name] for name in ("train", "test"))
    nearest = (embed(test.paths) @ embed(train.paths).T).argmax(axis=1)
    right = (train.labels[nearest] == test.labels).mean()
    assert code == 0 and summary["k"] == 1 and list(summary["val"]["1"]) == ["0.07", "0.2"]
    assert summary["figures"]["accuracy"] == pytest.approx(right)


def test_images_that_cannot_be_decoded_are_told(capsys, model, tmp_path):
    data = write_digits(tmp_path / "data", 6)
    (data / "3/bad.png").write_bytes(b"no image")
    code, lines, talk = run(capsys, "knn", data, "--model", model, "--json")
    assert code == 3 and "bad.png: not_image" in talk
    events = [json.loads(line) for line in lines.splitlines()]
    assert [event["event"] for event in events] == ["skipped", "summary"]
    assert events[-1]["skipped"] == 1 and np.isfinite(events[-1]["figures"]["accuracy"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--k", "many"], "--k must be whole numbers"),
        (["--k", "0"], "k must be from 1"),
        (["--temperature", "0.1,0"], "the temperature above 0"),
        (["--pooling", "big"], "pooling"),
        (["--layers", "9"], "layer"),
    ],
)
def test_options_that_cannot_be_are_refused(capsys, digits, model, options, line):
    code, lines, talk = run(capsys, "knn", digits, "--model", model, *options)
    assert code == 2 and line in talk and lines == ""
