"""`aim-mlx probe`: the real command line, with what is right and with everything that is wrong."""

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from aim_mlx.cli import main as cli
from aim_mlx.cli.reporter import ProbeReporter
from tests.commands import run, start
from tests.digits import write_digits
from tests.small import photo, save, wait_for
from tests.test_data_labelled import fill

FAST = ["--learning-rates", "0.01,0.03", "--epochs", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits", 20)


@pytest.fixture(scope="module")
def probe(digits, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "probe"
    assert (
        cli._run(["probe", "train", str(digits), "-o", str(folder), "--model", str(model)] + FAST)
        == 0
    )
    return folder


def test_training_tells_epochs_and_figures_and_writes_a_report(capsys, digits, model, tmp_path):
    out = tmp_path / "probe"
    code, lines, talk = run(
        capsys, "probe", "train", digits, "-o", out, "--model", model, "--json", *FAST
    )
    events = [json.loads(line) for line in lines.splitlines()]
    assert code == 0 and [event["event"] for event in events] == ["epoch"] * 6 + ["summary"]
    summary = events[-1]
    assert summary["images"] == {"train": 140, "val": 30, "test": 30}
    assert summary["measured_on"] == "test" and summary["figures"]["accuracy"] > 0.3
    assert "take 0.47 MB on the disk, at most" in talk and "test accuracy" in talk
    assert (out / "report.html").is_file()


def test_eval_of_all_prints_figures_and_classes_and_warns_of_images_it_has_seen(
    capsys, probe, digits
):
    code, lines, talk = run(capsys, "probe", "eval", probe, digits, "--split", "all")
    table = dict(line.split("\t")[:2] for line in lines.splitlines())
    assert code == 0 and set(map(str, range(10))) < set(table) and "balanced_accuracy" in table
    assert "warning: leak: 140 of the 200 images were trained on" in talk
    assert "warning: leak: 30 of the 200 images were used to choose the head" in talk
    assert "\033" not in talk


def test_a_longer_training_uses_the_tokens_again_as_it_is_told_to(capsys, probe, digits, model):
    given = ["probe", "train", digits, "--model", model, *FAST[:2], "--epochs", 7]
    code, _, talk = run(capsys, *given, "-o", probe)
    assert code == 5 and "its epochs: 6, not 7" in talk
    cache = re.search(r"--cache (\S+)", talk)
    assert cache is not None
    longer = probe.with_name("longer")
    code, _, talk = run(capsys, *given, "-o", longer, "--cache", cache[1])
    assert code == 0 and "on the disk" not in talk and not (longer / "training/tokens").exists()


def test_warnings_are_red_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ProbeReporter(False).warned("leak")
    assert re.search(r"\033\[[\d;]*31mwarning: leak", capsys.readouterr().err)


def test_eval_measures_the_test_split_of_training_unless_another_is_asked_for(
    capsys, probe, digits, tmp_path
):
    page = tmp_path / "eval.html"
    code, lines, talk = run(capsys, "probe", "eval", probe, digits, "--json", "--html", page)
    trained = json.loads((probe / "probe.json").read_text())["metrics"]["test"]
    summary = json.loads(lines.splitlines()[-1])
    assert code == 0 and "leak" not in talk and page.is_file()
    assert "170 images were not in test: --split all measures them too" in talk
    assert summary["measured_on"] == "test" and summary["figures"]["images"] == 30
    assert summary["figures"]["accuracy"] == pytest.approx(trained["accuracy"])
    code, again, talk = run(capsys, "probe", "eval", probe, digits, "--json", "--split", "test")
    assert json.loads(again.splitlines()[-1]) == summary and "not in test" not in talk


def test_eval_of_images_that_training_has_not_seen_measures_them_all(
    capsys, probe, digits, tmp_path
):
    data = write_digits(tmp_path / "new", 30)
    for path in data.glob("*/*.png"):
        if next(digits.glob(f"*/{path.name}"), None):
            path.unlink()
    code, lines, talk = run(capsys, "probe", "eval", probe, data, "--json")
    summary = json.loads(lines.splitlines()[-1])
    assert code == 0 and summary["measured_on"] == "all" and summary["figures"]["images"] == 100
    assert "leak" not in talk and "not in test" not in talk


def test_eval_of_unknown_classes_and_splits_is_refused(capsys, probe, tmp_path):
    fill(tmp_path / "data", cat=1, dog=1)
    code, _, talk = run(capsys, "probe", "eval", probe, tmp_path / "data")
    assert code == 2 and "'cat', 'dog' are not among the 10" in talk
    fill(tmp_path / "split", train__1=1, test__1=1)
    code, _, talk = run(capsys, "probe", "eval", probe, tmp_path / "split", "--split", "val")
    assert code == 2 and "no split 'val'" in talk


def test_predict_prints_the_class_of_each_photo_and_writes_a_table(capsys, probe, digits, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, lines, talk = run(capsys, "probe", "predict", probe, digits / "0", tmp_path / "bad.png")
    rows = [line.split("\t") for line in lines.splitlines()]
    assert code == 3 and len(rows) == 20 and "bad.png: not_image" in talk
    assert all(0 < float(score) <= 1 and label.isdigit() for score, label, _ in rows)
    table, page = tmp_path / "out.csv", tmp_path / "out.html"
    code, _, _ = run(
        capsys, "probe", "predict", probe, digits / "0", "-o", table, "--top", 3, "--html", page
    )
    written = list(csv.DictReader(table.read_text().splitlines()))
    assert code == 0 and len(written) == 60 and page.is_file()
    assert [row["label"] for row in written if row["rank"] == "1"] == [row[1] for row in rows]


def test_several_classes_are_predicted_where_they_are_likely(capsys, digits, model, tmp_path):
    rows = ["path,label"]
    for path in sorted(digits.glob("*/*.png")):
        digit = int(path.parent.name)
        rows.append(f"{path},{'even' if digit % 2 == 0 else ''}{';small' if digit < 5 else ''}")
    (tmp_path / "data.csv").write_text("\n".join(rows))
    given = ["probe", "train", tmp_path / "data.csv", "-o", tmp_path / "probe", "--model", model]
    assert run(capsys, *given, "--multi-label", *FAST)[0] == 0
    code, lines, _ = run(capsys, "probe", "predict", tmp_path / "probe", digits, "--json")
    found = [json.loads(line) for line in lines.splitlines()][:-1]
    assert code == 0 and len(found) == 200
    assert {len(row["labels"]) for row in found} >= {0, 1, 2}
    assert min(each["score"] for row in found for each in row["labels"]) >= 0.5
    assert run(capsys, "probe", "eval", tmp_path / "probe", tmp_path / "data.csv")[0] == 0


def bad_data(root: Path, kind: str) -> Path:
    """One of the data sets that nobody can learn from."""
    if kind == "empty class":
        fill(root, cat=5, dog=5, owl=0)
    elif kind == "one class":
        fill(root, cat=5)
    elif kind == "flat folder":
        fill(root.parent, **{root.name: 5})
    elif kind == "too few":
        fill(root, cat=5, dog=2)
    elif kind == "other classes in val":
        fill(root, train__cat=5, train__dog=5, val__cat=2, val__owl=2)
    elif kind == "names of two forms":
        (root / "data.csv").parent.mkdir(parents=True)
        (root / "data.csv").write_text("path,label\na.jpg,caf\u00e9\nb.jpg,cafe\u0301\n")
        return root / "data.csv"
    return root


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("empty class", "no images in '"),
        ("one class", "at least two classes, got"),
        ("flat folder", "expected a folder for each class"),
        ("too few", "class 'dog' has 2 images"),
        ("other classes in val", "train has no images of 'owl'"),
        ("names of two forms", "differ only by case or Unicode form"),
        ("missing", "check the path"),
    ],
)
def test_data_that_cannot_serve_is_refused_in_one_line_before_any_work(
    capsys, tmp_path, kind, line
):
    out = tmp_path / "probe"
    source = bad_data(tmp_path / "data", kind)
    code, lines, talk = run(capsys, "probe", "train", source, "-o", out, "--model", "none")
    assert code == 2 and lines == "" and line in talk.splitlines()[-1] and not out.exists()
    assert talk.splitlines()[-1].startswith("aim-mlx: error: ")


def test_an_empty_class_may_be_left_out(capsys, digits, model, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("0", "1"):
        (tmp_path / "data" / name).symlink_to(digits / name)
    (tmp_path / "data/none").mkdir()
    given = ["probe", "train", tmp_path / "data", "-o", tmp_path / "probe", "--model", model]
    assert run(capsys, *given, "--follow")[0] == 2
    assert run(capsys, *given, "--follow", "--allow-empty", "--epochs", 1)[0] == 0


def test_what_is_noticed_in_the_data_is_told_and_stands_in_the_report(capsys, model, tmp_path):
    data = tmp_path / "data"
    fill(data / "train", many=0, few=0, **{".ipynb_checkpoints": 2})
    fill(data / "val", many=0, few=0)
    for seed in range(63):
        Image.fromarray(photo(seed)).save(data / f"train/many/{seed}.png")
    for seed in range(3):
        Image.fromarray(photo(100 + seed)).save(data / f"train/few/{seed}.png")
        Image.fromarray(photo(200 + seed)).save(data / f"val/many/{seed}.png")
        Image.fromarray(photo(300 + seed)).save(data / f"val/few/{seed}.png")
    (data / "val/many/leak.png").write_bytes((data / "train/many/0.png").read_bytes())
    (data / "train/many/bad.png").write_bytes(b"no image")
    out = tmp_path / "probe"
    code, lines, talk = run(
        capsys, "probe", "train", data, "-o", out, "--model", model, "--epochs", 1, "--json"
    )
    assert code == 3 and ".ipynb_checkpoints" in talk and "bad.png: not_image" in talk
    summary = json.loads(lines.splitlines()[-1])
    told = summary["warnings"]
    assert [each.split(":")[0] for each in told[:2]] == ["leak", "imbalance"]
    assert "balanced_accuracy" in summary["figures"] and summary["measured_on"] == "val"
    page = (out / "report.html").read_text()
    assert "leak: 1 image is in train and in val" in page and "imbalance" in page


def test_a_probe_is_refused_with_another_encoder_or_preprocessing(capsys, probe, digits, tmp_path):
    other = save(tmp_path / "other")
    settings = other / "config.json"
    text = settings.read_text().replace('"shortest_edge": 56', '"shortest_edge": 64')
    settings.write_text(text)
    code, _, talk = run(capsys, "probe", "predict", probe, digits / "0", "--model", other)
    assert code == 4 and "preprocessing" in talk and len(talk.splitlines()) == 1


def test_a_folder_without_a_probe_is_refused(capsys, tmp_path, digits):
    code, _, talk = run(capsys, "probe", "predict", tmp_path, digits)
    assert code == 2 and "no probe.json" in talk


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--protocol", "slow"], "protocol must be one of"),
        (["--learning-rates", "fast"], "--learning-rates must be numbers"),
        (["--batch-norm", "maybe"], "--batch-norm must be off, on or both"),
        (["--views", "3"], "say --augment too"),
        (["--augment", "--views", "-1"], "--views must be from 0"),
        (["--max-cache-gb", "-1"], "--max-cache-gb must be from 0"),
        (["--val", "0"], "--val must be from"),
        (["--layers", "a"], "layers must be whole numbers"),
        (["--epochs", "0"], "epochs must be a whole number from 1"),
        (["--head", "big"], "head must be one of"),
    ],
)
def test_options_that_cannot_be_are_refused(capsys, tmp_path, options, line):
    fill(tmp_path / "data", cat=5, dog=5)
    given = ["probe", "train", tmp_path / "data", "-o", tmp_path / "probe", *options]
    code, _, talk = run(capsys, *given)
    assert code == 2 and line in talk and not (tmp_path / "probe").exists()


def test_another_configuration_on_the_same_folder_is_refused(capsys, probe, digits, model):
    given = ["probe", "train", digits, "-o", probe, "--model", model, *FAST, "--seed", "1"]
    code, _, talk = run(capsys, *given)
    assert code == 5 and "holds another run (its seed: 0, not 1)" in talk


def training(digits, out, model, epochs: int) -> list[object]:
    given = ["probe", "train", digits, "-o", out, "--model", model, "--json"]
    return [*given, "--learning-rates", "0.01", "--epochs", epochs, "--patience", 0]


def finish(digits, out, model, epochs: int) -> bytes:
    assert cli._run(list(map(str, training(digits, out, model, epochs)))) == 0
    return (out / "probe.safetensors").read_bytes()


def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on_to_the_same_bits(
    digits, model, tmp_path
):
    out, epochs = tmp_path / "probe", 40
    process = start(*training(digits, out, model, epochs))
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate()
    assert process.returncode == 130 and "is kept: the same command resumes" in talk
    assert finish(digits, out, model, epochs) == finish(digits, tmp_path / "whole", model, epochs)


def test_a_killed_run_goes_on_to_the_same_bits(digits, model, tmp_path):
    out, epochs = tmp_path / "probe", 8
    process = start(*training(digits, out, model, epochs))
    wait_for(out / "training/run.json")
    time.sleep(0.3)  # anywhere: while tokens are computed, or later
    process.kill()
    process.communicate()
    assert finish(digits, out, model, epochs) == finish(digits, tmp_path / "whole", model, epochs)
    left = [path.name for path in out.rglob("*") if path.name.endswith(".tmp")]
    assert left == []


def test_names_from_outside_are_escaped_on_the_terminal_and_the_page(capsys, model, tmp_path):
    for name in ("\x1b[31mred", "<b>bold</b>"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for seed in range(5):
            picture = photo(seed + 10 * len(name))
            Image.fromarray(picture).save(tmp_path / "data" / name / f"\x1b[2J{seed}.png")
    out = tmp_path / "probe"
    given = ["probe", "train", tmp_path / "data", "-o", out, "--model", model, "--epochs", 1]
    code, _, _ = run(capsys, *given)
    assert code == 0
    code, lines, talk = run(capsys, "probe", "predict", out, tmp_path / "data")
    assert code == 0 and "\x1b" not in lines + talk and "\\x1b[2J0.png" in lines
    page = (out / "report.html").read_text()
    assert "\x1b" not in page and "<b>bold" not in page and "&lt;b&gt;bold" in page


def test_a_probe_may_lie_in_its_data_and_classes_have_any_name(capsys, digits, model, tmp_path):
    data = tmp_path / "data"
    for name, source in ((os.fsdecode(b"caf\xe9"), "1"), ("y", "2")):
        shutil.copytree(digits / source, data / name)
    given = ["probe", "train", data, "-o", data / "probe", "--model", model, "--epochs", 1]
    assert run(capsys, *given)[0] == 0
    assert run(capsys, *given)[0] == 0  # now that the probe is there
    code, lines, _ = run(capsys, "probe", "eval", data / "probe", data)
    assert code == 0 and "caf\\udce9\t" in lines
    code, _, _ = run(capsys, "probe", "predict", data / "probe", data, "-o", tmp_path / "out.csv")
    assert code == 0 and b"caf\xe9" in (tmp_path / "out.csv").read_bytes()


def test_a_folder_in_use_is_refused_with_the_process(capsys, digits, model, tmp_path):
    out = tmp_path / "probe"
    process = start(*training(digits, out, model, 10**6))
    assert process.stdout is not None
    process.stdout.readline()
    given = ["probe", "train", digits, "-o", out, "--model", model]
    given += ["--learning-rates", "0.01", "--epochs", 10**6, "--patience", 0]
    code, _, talk = run(capsys, *given)
    process.kill()
    process.communicate()
    assert code == 5 and f"process {process.pid} is writing" in talk


def test_what_does_not_fit_into_the_cache_is_said_and_trained_on_all_the_same(
    capsys, digits, model, tmp_path
):
    out = tmp_path / "probe"
    given = ["probe", "train", digits, "-o", out, "--model", model, "--epochs", 1]
    code, _, talk = run(capsys, *given, "--max-cache-gb", 0.0001)
    assert code == 0 and "the tokens of train would take 0.33 MB, over the limit" in talk
    shards = (out / "training/tokens").glob("*/tokens-*.npy")
    assert 0 < sum(path.stat().st_size for path in shards) <= 100_000
