"""Whole runs on real handwritten digits: they learn, resume, choose on val and leave test alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.data.labelled import Data
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import AimError, Interrupted, OutputError, UsageError
from aim_mlx.files import TEMPORARY
from aim_mlx.probe import run as runs
from aim_mlx.probe.config import protocol
from aim_mlx.probe.features import Augmentation
from aim_mlx.probe.outcome import TrainedProbe
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.run import Plan, train_probe
from aim_mlx.tokens import cache as token_cache
from aim_mlx.training.report import never
from tests.digits import write_digits
from tests.small import NATIVE, encoder

FAST: dict[str, Any] = {"learning_rates": (0.01, 0.03), "epochs": 12, "warmup_epochs": 1.0}


class Report:
    """Keeps what it is told."""

    def __init__(self):
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.skips: list[str] = []
        self.records: list[Mapping[str, Any]] = []
        self.steps = 0

    def skipped(self, skip) -> None:
        self.skips.append(skip.path)

    def noted(self, note: str) -> None:
        self.notes.append(note)

    def warned(self, warning: str) -> None:
        self.warnings.append(warning)

    def advanced(self, what: str, done: int, total: int) -> None:
        self.steps += what == "training"

    def recorded(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits", 40)


@pytest.fixture(scope="module")
def model() -> Encoder:
    return encoder()


def train(digits, folder, model, report=None, stop=never, **options) -> TrainedProbe:
    plan = {
        key: options.pop(key)
        for key in ("layers", "augmentation", "cache", "cache_limit")
        if key in options
    }
    config = protocol("fast", **(FAST | options))
    return train_probe(
        Data(str(digits)),
        folder,
        lambda: model,
        Plan(config, **plan),
        report or Report(),
        stop=stop,
    )


def weights(folder: Path) -> bytes:
    return (folder / "probe.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(digits, model, tmp_path_factory) -> tuple[Path, TrainedProbe, Report]:
    """A finished run, its result and what it told."""
    folder, report = tmp_path_factory.mktemp("probe") / "probe", Report()
    return folder, train(digits, folder, model, report), report


@pytest.fixture(scope="module")
def tokens(trained) -> Path:
    """The tokens of the digits, for runs that are about other things."""
    return trained[0] / "training/tokens"


def test_digits_are_told_apart_far_better_than_by_the_largest_class(trained):
    _, result, report = trained
    assert result.images == {"train": 280, "val": 60, "test": 60} and result.exit_code == 0
    # The encoder is untrained; seen 0.80 on test.
    assert result.measured_on == "test" and result.figures["accuracy"] > 0.6
    assert result.figures["majority"] == 0.1
    assert len(report.records) == result.epochs and len(report.records[0]["metric"]) == 4


def test_the_head_is_chosen_by_its_score_on_val(trained, model):
    """Not on train, where it scores otherwise."""
    metrics = AttentiveProbe.load(trained[0], model).metrics
    assert metrics["validation"]["metric"] == pytest.approx(metrics["val"]["accuracy"])
    assert metrics["val"]["images"] == 60


def test_shuffled_labels_stay_at_chance(tmp_path, model, tokens):
    """Nothing of val or test reaches the training."""
    report, data = Report(), write_digits(tmp_path / "data", 40, shuffled=True)
    result = train(data, tmp_path / "probe", model, report, cache=tokens)
    assert result.figures["accuracy"] < 0.28  # 60 images, 10 classes: once in 10,000 by chance
    assert any(warning.startswith("near chance: ") for warning in report.warnings)
    assert "near chance: " in (tmp_path / "probe/report.html").read_text()


def test_the_same_run_gives_the_same_bits_and_another_seed_another_split(
    tmp_path, digits, model, trained, tokens
):
    train(digits, tmp_path / "again", model)
    assert weights(tmp_path / "again") == weights(trained[0])
    train(digits, tmp_path / "other", model, seed=1, epochs=1, cache=tokens)
    splits = [(folder / "splits.jsonl").read_text() for folder in (tmp_path / "other", trained[0])]
    assert splits[0] != splits[1]


def test_a_probe_folder_holds_the_probe_its_splits_its_figures_and_its_report(trained, model):
    folder, result, _ = trained
    rows = [json.loads(line) for line in (folder / "splits.jsonl").read_text().splitlines()]
    assert len(rows) == 400 and {row["split"] for row in rows} == {"train", "val", "test"}
    probe = AttentiveProbe.load(folder, model)
    assert probe.metrics["test"]["accuracy"] == result.figures["accuracy"]
    tested = [row for row in rows if row["split"] == "test"]
    said = probe.predict([row["path"] for row in tested])
    right = np.mean([name == row["labels"][0] for name, row in zip(said, tested, strict=True)])
    assert right == pytest.approx(result.figures["accuracy"])
    page = (folder / "report.html").read_text()
    assert page.count("<figure>") == 12 and f"{result.figures['accuracy']:.1%}" in page


def test_the_test_split_is_looked_at_once_after_the_choice(
    tmp_path, digits, model, tokens, monkeypatch
):
    looked: list[tuple[str, int]] = []
    report, measured = Report(), runs._measured
    monkeypatch.setattr(
        runs,
        "_measured",
        lambda *given: looked.append((given[-2], report.steps)) or measured(*given),
    )
    train(digits, tmp_path / "probe", model, report, epochs=2, cache=tokens)
    assert looked == [("val", report.steps), ("test", report.steps)] and report.steps == 10


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, digits, model, trained):
    folder, report = tmp_path / "probe", Report()
    with pytest.raises(Interrupted, match="step 17 of 60.*is kept"):
        train(digits, folder, model, report, stop=lambda: report.steps == 17)
    assert not (folder / "probe.safetensors").exists()
    again = Report()
    train(digits, folder, model, again)
    assert again.notes[0] == "goes on after step 17 of 60" and weights(folder) == weights(
        trained[0]
    )
    assert again.steps + 17 == trained[2].steps


def test_a_run_stopped_while_tokens_are_computed_keeps_them(tmp_path, digits, model, monkeypatch):
    monkeypatch.setattr(token_cache, "block_size", lambda *_: 8)
    calls = iter(range(10**6))
    with pytest.raises(Interrupted, match="before the training"):
        train(digits, tmp_path / "probe", model, stop=lambda: next(calls) > 600)
    assert list((tmp_path / "probe/training/tokens").glob("*/tokens-*.npy"))


def test_a_finished_run_is_only_measured_again(tmp_path, digits, model, tokens):
    first = train(digits, tmp_path / "probe", model, epochs=2, cache=tokens)
    report = Report()
    second = train(digits, tmp_path / "probe", model, report, epochs=2, cache=tokens)
    assert report.steps == 0 and second.figures == first.figures


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"epochs": 3}, "epochs"),
        ({"layers": (0,)}, "layers"),
        ({"seed": 1}, "seed"),
        ({"augmentation": Augmentation()}, "augmentation"),
    ],
)
def test_another_configuration_on_the_same_folder_is_refused(
    tmp_path, digits, model, trained, options, name
):
    before = weights(trained[0])
    with pytest.raises(OutputError, match=f"holds another run .its {name}: "):
        train(digits, trained[0], model, **options)
    assert weights(trained[0]) == before


def test_other_images_or_another_encoder_on_the_same_folder_are_refused(
    tmp_path, digits, model, trained
):
    with pytest.raises(OutputError, match="another run .its data set: "):
        train(write_digits(tmp_path / "few", 20), trained[0], model)
    with pytest.raises(OutputError, match="another run .its weights: "):
        train(digits, trained[0], encoder(seed=1))


def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path, digits, model):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        train(digits, tmp_path / "probe", model)
    assert [path.name for path in (tmp_path / "probe").iterdir()] == ["letter.txt"]
    with pytest.raises(OutputError, match="does not exist"):
        train(digits, tmp_path / "missing/probe", model)


def test_streamed_tokens_train_as_cached_ones_do_but_for_rounding(tmp_path, digits, model, tokens):
    report, cached = Report(), Report()
    train(digits, tmp_path / "streamed", model, report, cache_limit=0, epochs=3)
    train(digits, tmp_path / "cached", model, cached, epochs=3, cache=tokens)
    assert sum("computed from the images in every epoch" in note for note in report.notes) == 3
    # In another batch tokens may be rounded otherwise, by a unit of float16: seen 2e-6 apart.
    losses = [[each["val_loss"] for each in told.records] for told in (report, cached)]
    np.testing.assert_allclose(*losses, rtol=2e-5)


def test_a_stopped_run_on_streamed_tokens_goes_on_to_the_same_bits(tmp_path, model):
    straight, folder, report = tmp_path / "straight", tmp_path / "probe", Report()
    digits = write_digits(tmp_path / "digits", 10)
    streamed: dict[str, Any] = {"cache_limit": 0, "epochs": 3, "batch_size": 14}
    train(digits, straight, model, **streamed)
    with pytest.raises(Interrupted, match="step 8 of 15"):
        train(digits, folder, model, report, lambda: report.steps == 8, **streamed)
    train(digits, folder, model, **streamed)
    assert weights(folder) == weights(straight)


@pytest.mark.parametrize("views", [0, 2])
def test_random_views_train_too(tmp_path, digits, model, views):
    report = Report()
    train(digits, tmp_path / "probe", model, report, augmentation=Augmentation(0, views), epochs=3)
    first, last = (min(report.records[epoch]["train_loss"]) for epoch in (0, -1))
    assert last < first - 0.1  # seen 0.3: mirrored digits of another colour are hard


def test_figures_without_a_test_split_say_so(tmp_path, digits, model, tokens):
    data, report = Data(str(digits), test=0.0), Report()
    plan = Plan(protocol("fast", epochs=1), cache=tokens)
    result = train_probe(data, tmp_path / "probe", lambda: model, plan, report)
    assert result.measured_on == "val" and any("no test split" in w for w in report.warnings)
    assert "no test split" in (tmp_path / "probe/report.html").read_text()


def test_images_with_several_classes_are_learned(tmp_path, digits, model, tokens):
    rows = ["path,label"]
    for path in sorted(digits.glob("*/*.png")):
        digit = int(path.parent.name)
        rows.append(f"{path},{'even' if digit % 2 == 0 else ''}{';small' if digit < 5 else ''}")
    (tmp_path / "data.csv").write_text("\n".join(rows))
    data = Data(str(tmp_path / "data.csv"), multi_label=True)
    plan = Plan(protocol("fast", **FAST), cache=tokens)
    result = train_probe(data, tmp_path / "probe", lambda: model, plan, Report())
    assert result.figures["mean_average_precision"] > 0.75  # half of the images have each: 0.5
    page = (tmp_path / "probe/report.html").read_text()
    assert "exact match" in page and "average precision" in page


def test_images_that_cannot_be_decoded_are_listed_and_left_out(tmp_path, model):
    data = write_digits(tmp_path / "data", 10)
    (data / "3/bad.png").write_bytes(b"no image")
    report = Report()
    result = train(data, tmp_path / "probe", model, report, epochs=1)
    assert report.skips == [str(data / "3/bad.png")] and result.exit_code == 3


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_probe(
    tmp_path, digits, model, tokens, monkeypatch
):
    from aim_mlx.probe import training

    gradients = training.batch_gradients

    def failing(*arguments):
        found = gradients(*arguments)
        if report.steps >= 12:
            found.losses[:] = np.nan
        return found

    report = Report()
    monkeypatch.setattr(training, "batch_gradients", failing)
    with pytest.raises(AimError, match="no head is finite.*epoch 2, is kept") as raised:
        train(digits, tmp_path / "probe", model, report, cache=tokens)
    assert raised.value.exit_code == 1
    probe = AttentiveProbe.load(tmp_path / "probe", model)
    assert probe.metrics["validation"]["epoch"] <= 2


def test_blocks_that_the_model_lacks_are_refused_before_any_work(tmp_path, digits, model):
    with pytest.raises(UsageError):
        train(digits, tmp_path / "probe", model, layers=(7,))
    assert not (tmp_path / "probe").exists()


def test_a_native_resolution_model_is_refused_before_anything_is_written(tmp_path, digits):
    with pytest.raises(UsageError, match="one image size"):
        train(digits, tmp_path / "probe", encoder(NATIVE))
    assert not (tmp_path / "probe").exists()


def test_what_a_killed_run_was_writing_is_removed(tmp_path, digits, model, tokens):
    left = [tmp_path / "probe" / f".{name}.1{TEMPORARY}" for name in ("probe.json", "report.html")]
    left.append(tmp_path / "probe/training" / f".checkpoint.safetensors.1{TEMPORARY}")
    left[2].parent.mkdir(parents=True)
    for path in left:
        path.write_bytes(b"half")
    train(digits, tmp_path / "probe", model, epochs=1, cache=tokens)
    assert not any(path.exists() for path in left)
