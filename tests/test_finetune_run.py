"""A whole fine-tuning in a folder, and the classifier that it leaves."""

import json
import shutil

import numpy as np
import pytest

from aim_mlx.backend import FAST_DTYPES, device_name, mx
from aim_mlx.cli import main as cli
from aim_mlx.data.labelled import Data
from aim_mlx.errors import AimError, Interrupted, OutputError, UsageError
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.finetune.fuse import fuse
from aim_mlx.finetune.run import Finetuned, finetune
from aim_mlx.finetune.trainer import FinetuneTrainer
from aim_mlx.loading import load, load_encoder
from aim_mlx.probe.config import protocol
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.run import Plan, train_probe
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.training import loop
from aim_mlx.training.report import Report
from aim_mlx.weights.quantize import Quantization, quantize_modules, quantized_names
from aim_mlx.weights.sizes import expected_shapes
from tests.digits import write_digits
from tests.finetuning import QUICK
from tests.small import NATIVE, photo, save, save_lit


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Digits, a small encoder and a probe of it."""
    folder = tmp_path_factory.mktemp("scene")
    data = Data(write_digits(folder / "digits", 10))
    model = save(folder / "model")
    plan = Plan(protocol("fast", epochs=2, learning_rates=(0.01,), batch_norm=(True,)))
    train_probe(data, folder / "probe", lambda: load(model), plan)
    return data, model, folder / "probe"


def tuned(*given, **options) -> Finetuned:
    done = finetune(*given, **options)
    assert done is not None  # as it is in other processes than the first
    return done


def config(**options) -> FinetuneConfig:
    return FinetuneConfig(**{**QUICK, "learning_rate": 3e-3, **options})


@pytest.fixture(scope="module")
def finished(scene, tmp_path_factory):
    """The folder of an uninterrupted run from the probe, and its outcome."""
    data, model, probe = scene
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, tuned(data, out, lambda: load(model), config(), probe=probe)


@pytest.fixture(scope="module")
def adapted(scene, tmp_path_factory):
    """The folder of one epoch without a probe."""
    data, model, _ = scene
    out = tmp_path_factory.mktemp("adapted") / "out"
    tuned(data, out, lambda: load(model), config(epochs=1))
    return out


def test_a_classifier_is_trained_from_a_probe_and_compared_with_it(finished):
    out, done = finished
    assert done.measured_on == "test" and done.images == {"train": 60, "val": 20, "test": 20}
    beside = done.beside_probe
    assert beside is not None and beside.images == 20
    assert beside.interval[0] <= beside.difference <= beside.interval[1]
    assert not any("leak" in each for each in done.warnings)
    assert beside.finetuned == done.figures["accuracy"]
    made = AttentiveProbe.load(out)
    assert made.metrics["test"]["accuracy"] == done.figures["accuracy"]
    lines = [json.loads(line) for line in (out / "splits.jsonl").read_text().splitlines()]
    test = [line for line in lines if line["split"] == "test"]
    right = [made.predict([line["path"]]) == line["labels"] for line in test]
    assert np.mean(right) == done.figures["accuracy"]
    page = (out / "report.html").read_text()
    assert "beside" in page and "loss on val by epoch" in page


@pytest.mark.parametrize(
    ("options", "width", "rate"),
    [
        ({}, 1024, 5e-4),
        ({}, 192, 2.7e-3),
        ({"full": True}, 3072, 3.3e-5),
        ({"learning_rate": 0.01}, 192, 0.01),
    ],
)
def test_without_a_rate_narrow_encoders_learn_faster(options, width, rate):
    assert FinetuneConfig(**options).with_rate(width).learning_rate == rate


def test_a_run_tells_the_rate_that_it_chose(scene, tmp_path):
    data, model, _ = scene  # 64 channels
    tuned(data, tmp_path / "out", lambda: load(model), config(epochs=1, learning_rate=None))
    made = AttentiveProbe.load(tmp_path / "out", load(model, adapter=tmp_path / "out"))
    assert made.training["learning_rate"] == 8e-3
    assert "0.008, weight decay" in (tmp_path / "out/report.html").read_text()


def test_a_probe_that_has_seen_the_test_images_is_named(scene, tmp_path):
    data, model, probe = scene
    options = config(epochs=1, seed=1)  # another split than the probe's
    done = tuned(data, tmp_path / "out", lambda: load(model), options, probe=probe)
    assert any("leak: " in each and "--seed" in each for each in done.warnings)


def test_labels_dealt_out_by_chance_are_not_learned(scene, tmp_path):
    _, model, _ = scene
    data = Data(write_digits(tmp_path / "digits", 10, shuffled=True))
    done = tuned(data, tmp_path / "out", lambda: load(model), config(epochs=6))
    assert done.figures["accuracy"] <= 0.3  # chance: 0.1 of 20 images
    assert any("near chance" in each for each in done.warnings)


def test_a_probe_that_no_epoch_betters_is_kept(scene, tmp_path):
    data, model, probe = scene
    options = config(learning_rate=5.0, warmup=0.0)
    done = tuned(data, tmp_path / "out", lambda: load(model), options, probe=probe)
    assert done.best["epoch"] == 0 and done.epochs == 2
    assert done.beside_probe is not None and done.beside_probe.difference == 0
    image = photo(0)
    made, before = AttentiveProbe.load(tmp_path / "out"), AttentiveProbe.load(probe)
    assert np.array_equal(made.predict_proba([image]), before.predict_proba([image]))


def test_an_interrupted_run_goes_on_to_the_same_files(scene, finished, tmp_path, monkeypatch):
    data, model, probe = scene
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Interrupted, match="after step 3 of 8"):
        finetune(
            data, tmp_path / "out", lambda: load(model), config(),
            probe=probe, report=_Stopping(), stop=lambda: _Stopping.steps >= 3,
        )  # fmt: skip
    finetune(data, tmp_path / "out", lambda: load(model), config(), probe=probe)
    names = ["adapters.safetensors", "probe.safetensors", "probe.json", "splits.jsonl"]
    names += ["report.html", "training/checkpoint.safetensors", "training/metrics.jsonl"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (finished[0] / name).read_bytes()
    with pytest.raises(OutputError, match="holds another run"):
        finetune(data, tmp_path / "out", lambda: load(model), config(rank=4), probe=probe)


class _Stopping(Report):
    """Counts the steps done."""

    steps = 0

    def advanced(self, what: str, done: int, total: int) -> None:
        if what == "training":
            _Stopping.steps = done


@pytest.mark.parametrize("head", ["ep", "coca", "max"])
def test_every_kind_of_head_is_trained(scene, tmp_path, head):
    data, model, _ = scene
    finetune(data, tmp_path / "out", lambda: load(model), config(epochs=1, head=head))
    made = AttentiveProbe.load(tmp_path / "out")
    assert made.head.config.kind == head
    assert made.head.config.queries == (32 if head == "ep" else 1)


def test_a_probe_of_other_classes_is_refused(scene, tmp_path):
    data, model, probe = scene
    other = Data(write_digits(tmp_path / "digits", 6))
    (tmp_path / "digits" / "9").rename(tmp_path / "digits" / "nine")
    with pytest.raises(UsageError, match="trained on other classes"):
        finetune(other, tmp_path / "out", lambda: load(model), config(), probe=probe)


def test_an_encoder_loads_with_its_adapter_and_is_fused(scene, adapted, tmp_path, monkeypatch):
    model, out = scene[1], adapted
    encoder, base = load(model, adapter=out), load(model)
    photos = [photo(0), photo(1)]
    ours, pixels = encoder.embed(photos), base.preprocess(photos)
    assert np.abs(ours - base.embed(photos)).max() > 1e-3
    fused = load(fuse(base, out, tmp_path / "fused"))
    tokens = np.array(encoder.features(pixels).tokens)
    assert np.array_equal(np.array(fused.features(pixels).tokens), tokens)
    assert fused.preprocessing == base.preprocessing
    theirs = load(fuse(base, out, tmp_path / "theirs", "transformers"))
    assert theirs.identity["layout"] == "transformers"
    assert theirs.preprocessing == base.preprocessing
    assert np.array_equal(np.array(theirs.features(pixels).tokens), tokens)
    halves = load(model, adapter=out, dtype="float16")
    assert halves.dtype == mx.float16 and halves.weights_digest != encoder.weights_digest
    # Ten times the largest difference seen: float16 through three blocks.
    assert np.abs(halves.embed(photos) - ours).max() < 0.02
    with monkeypatch.context() as on_a_mac:
        on_a_mac.setitem(FAST_DTYPES, device_name(), "float16")
        assert load(model, adapter=out).weights_digest == halves.weights_digest
        tuned = AttentiveProbe.load(out)
    for name in ("fused", "theirs"):
        classifier = AttentiveProbe.load(tmp_path / name)
        assert "adapter" not in classifier.encoder.identity
        # float32 through another copy of the same weights.
        assert np.allclose(classifier.predict_proba(photos), tuned.predict_proba(photos), atol=1e-6)
    with pytest.raises(UsageError, match="has no adapter_config.json"):
        fuse(base, tmp_path, tmp_path / "none")


def test_images_of_several_classes_are_learned_from_a_table(scene, tmp_path):
    _, model, _ = scene
    digits = write_digits(tmp_path / "digits", 8)
    lines = ["path,label"]
    for number in range(5):
        parity = "even" if number % 2 == 0 else "odd"
        lines += [f"{path},{number};{parity}" for path in sorted((digits / str(number)).iterdir())]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    data = Data(tmp_path / "table.csv", multi_label=True, val=0.2, test=0.2)
    done = tuned(data, tmp_path / "out", lambda: load(model), config(epochs=6, head="mean"))
    assert done.classes == 7 and "exact_match" in done.figures
    assert done.figures["mean_average_precision"] > 0.35  # a random order: 0.29
    made = AttentiveProbe.load(tmp_path / "out")
    assert made.multi_label and made.predict_proba([photo(0)]).shape == (1, 7)


def test_a_loss_that_is_not_finite_keeps_the_best_epoch(scene, tmp_path, monkeypatch):
    data, model, _ = scene
    step, calls = FinetuneTrainer.run_step, iter(range(100))

    def fails_late(trainer):
        if next(calls) == 6:
            trainer.model.head.linear.bias = mx.full((10,), float("nan"))
        return step(trainer)

    monkeypatch.setattr(FinetuneTrainer, "run_step", fails_late)
    with pytest.raises(AimError, match="loss of step 7 is nan.*after epoch 1 is kept"):
        finetune(data, tmp_path / "out", lambda: load(model), config())
    made = AttentiveProbe.load(tmp_path / "out")
    assert made.metrics["validation"]["epoch"] == 1
    assert np.isfinite(made.predict_proba([photo(0)])).all()


def packed(encoder):
    """With its products quantised, as a GPU multiplies them."""
    how = Quantization(8, 32)
    quantize_modules(
        encoder.model, quantized_names(expected_shapes(encoder.model.config), how), how
    )
    return encoder


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: load(save(folder, NATIVE)), "model of one image size"),
        (lambda folder: load(save_lit(folder)), "this is a LiT model"),
        (lambda folder: packed(load(save(folder))), "this model is quantised"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_written(
    scene, tmp_path, make, words
):
    made = make(tmp_path / "model")
    with pytest.raises(UsageError, match=words):
        finetune(scene[0], tmp_path / "out", lambda: made, config())
    assert not (tmp_path / "out").exists()


def test_a_store_and_a_probe_remember_the_adapter(scene, adapted, tmp_path):
    data, model, _ = scene
    out = shutil.copytree(adapted, tmp_path / "out")
    encoder = load(model, adapter=out)
    photos = write_digits(tmp_path / "photos", 1)
    embed(["embed", photos, "-o", tmp_path / "store", "--model", model, "--adapter", out])
    store = EmbeddingStore(tmp_path / "store")
    again = load_encoder(store)
    assert again.weights_digest == encoder.weights_digest
    assert np.abs(again.embed([store.paths[0]]) - store.vectors[0]).max() < 1e-5
    plan = Plan(protocol("fast", epochs=1, learning_rates=(0.01,), batch_norm=(False,)))
    train_probe(data, tmp_path / "probe", lambda: load(model, adapter=out), plan)
    probe = AttentiveProbe.load(tmp_path / "probe")
    assert probe.encoder.weights_digest == encoder.weights_digest
    shutil.rmtree(out)
    with pytest.raises(UsageError, match="has no adapter_config.json"):
        AttentiveProbe.load(tmp_path / "probe")


def embed(arguments) -> None:
    assert cli._run([str(each) for each in arguments]) == 0
