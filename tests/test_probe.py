"""AttentiveProbe: trained, kept, loaded with its own encoder, and asked about images."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import aim_mlx
from aim_mlx import AttentiveProbe
from aim_mlx.backend import mx
from aim_mlx.config import VisionConfig
from aim_mlx.encoder.digest import parameters_digest
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import CheckpointError, ImageError, OutputError, UsageError
from aim_mlx.probe.head_files import load_head
from tests.small import NATIVE, SMALL, encoder, photo, save


def pictures(count: int = 24, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Three motifs, each in many brightnesses."""
    rng = np.random.default_rng(seed)
    images = [
        np.clip(photo(i % 3) * rng.uniform(0.5, 1.0), 0, 255).astype(np.uint8) for i in range(count)
    ]
    return images, ["ant bee cow".split()[i % 3] for i in range(count)]


IMAGES, LABELS = pictures()


def train(model: Encoder | None = None, **options) -> AttentiveProbe:
    return AttentiveProbe.train(
        model or encoder(), IMAGES, LABELS, **{"epochs": 8, "batch_size": 8, **options}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def trained(model) -> AttentiveProbe:
    return train(aim_mlx.load(model))


@pytest.fixture(scope="module")
def kept(trained, tmp_path_factory) -> Path:
    return trained.save(tmp_path_factory.mktemp("probe") / "kept")


def test_a_trained_probe_knows_pictures_it_has_not_seen(trained):
    images, labels = pictures(9, seed=1)
    assert trained.classes == ("ant", "bee", "cow")
    assert trained.predict(images) == labels
    found = trained.predict_proba(images)
    assert found.shape == (9, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_probabilities_are_the_softmax_of_the_head_on_the_final_tokens(trained):
    tokens = trained.encoder.features(trained.encoder.preprocess(IMAGES[:2])).tokens
    logits = np.array(trained.head(tokens), np.float64)
    powers = np.exp(logits)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        trained.predict_proba(IMAGES[:2]), expected, atol=4e-4
    )  # float16 tokens: seen 4e-5


def test_a_loaded_probe_finds_its_encoder_and_says_the_same(trained, kept):
    again = AttentiveProbe.load(kept)
    np.testing.assert_array_equal(again.predict_proba(IMAGES), trained.predict_proba(IMAGES))
    assert again.classes == trained.classes and again.identity == trained.identity
    assert again.metrics["validation"]["metric"] == trained.metrics["validation"]["metric"]
    assert json.dumps(again.training) == json.dumps(trained.training)


def test_images_of_a_generator_are_answered_like_a_list(trained):
    expected = trained.predict_proba(IMAGES[:3])
    np.testing.assert_array_equal(trained.predict_proba(iter(IMAGES[:3])), expected)
    assert len(list(trained.predict_stream(iter(IMAGES[:3])))) == 3
    assert trained.attention_maps(iter(IMAGES[:3])).shape[0] == 3


def test_attention_maps_lie_on_the_grid_and_sum_to_one(trained):
    maps = trained.attention_maps(IMAGES[:3])
    assert maps.shape == (3, 2, 4, 4)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, atol=1e-5)
    assert trained.attention_maps([]).shape == (0, 2, 4, 4)


def test_layers_are_averaged_in_training_and_in_use(model):
    base = aim_mlx.load(model)
    probe = train(base, layers=[0, 1])
    outputs = base.features(base.preprocess(IMAGES[:2]), [0, 1]).layers
    expected = probe.head((outputs[0] + outputs[1]) / 2)
    powers = np.exp(np.array(expected))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        probe.predict_proba(IMAGES[:2]), expected, atol=4e-4
    )  # float16 tokens: seen 4e-5


def test_pictures_may_have_several_names():
    labels = [[name, "big"] if i % 2 else [name] for i, name in enumerate(LABELS)]
    probe = AttentiveProbe.train(encoder(), IMAGES, labels, epochs=8, batch_size=8)
    assert probe.multi_label and probe.classes == ("ant", "bee", "big", "cow")
    found = probe.predict_proba(IMAGES)
    assert (found.sum(axis=1) > 1.05).any()
    names = [tuple(c for c, p in zip(probe.classes, row, strict=True) if p > 0.5) for row in found]
    assert probe.predict(IMAGES) == names


def test_an_image_that_cannot_be_decoded_keeps_its_place_in_a_stream_and_stops_a_list(
    trained, tmp_path
):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    Image.fromarray(IMAGES[0]).save(tmp_path / "good.png")
    paths = [tmp_path / "good.png", bad, tmp_path / "good.png"]
    rows = list(trained.predict_stream(paths))
    assert [row.failure and row.failure.reason for row in rows] == [None, "not_image", None]
    # At another place in a batch tokens may be rounded otherwise, by a unit of float16: seen 5e-7.
    np.testing.assert_allclose(rows[0].vector, rows[2].vector, atol=5e-6)
    for ask in (trained.predict, trained.predict_proba, trained.attention_maps):
        with pytest.raises(ImageError, match=r"image 1 .*bad\.jpg"):
            ask(paths)


@pytest.mark.parametrize("change", ["weights", "preprocessing", "encoder"])
def test_another_encoder_is_refused(kept, change):
    other = encoder(seed=1 if change == "weights" else 0)
    if change == "preprocessing":
        other.preprocessing = type(other.preprocessing).imagenet(56)
    if change == "encoder":
        other = encoder(type(SMALL)(64, 176, 2, 2, 14, 56))
    with pytest.raises(CheckpointError, match="trained on .*small"):
        AttentiveProbe.load(kept, other)


def test_a_probe_loads_its_encoder_in_the_dtype_that_it_was_trained_in(model, tmp_path):
    folder = train(aim_mlx.load(model, dtype="float16")).save(tmp_path / "probe")
    for given in (None, model):
        assert AttentiveProbe.load(folder, given).encoder.dtype == mx.float16


@pytest.mark.parametrize("name", ["gone", "some/folder/that/is/gone", "x" * 5000])
def test_an_encoder_that_is_not_where_it_was_is_asked_for(trained, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # as in another folder than that of the training
    folder = replace(trained, model={"model": name}).save(tmp_path / "probe")
    with pytest.raises(CheckpointError, match="cannot be loaded .*by --model, or give it as encod"):
        AttentiveProbe.load(folder, offline=True)


def test_an_image_whose_logits_are_no_numbers_is_a_failure_and_no_class(trained, tmp_path):
    """Finite weights may still be too large."""
    folder = trained.save(tmp_path / "probe")
    huge = AttentiveProbe.load(folder, trained.encoder)
    huge.head.linear.weight = mx.full(huge.head.linear.weight.shape, 3e38)
    (row,) = huge.predict_stream(IMAGES[:1])
    assert row.failure is not None and row.failure.reason == "non_finite"
    with pytest.raises(ImageError, match="image 0: the head gives no number"):
        huge.predict(IMAGES[:1])


def test_training_is_told_and_the_same_for_a_seed():
    one, same = train(seed=3), train(seed=3)
    np.testing.assert_array_equal(one.predict_proba(IMAGES), same.predict_proba(IMAGES))
    assert one.training["seed"] == 3 and one.training["epochs_done"] <= 8


def test_shuffled_labels_teach_nothing_about_new_pictures():
    rng = np.random.default_rng(0)
    shuffled = [LABELS[i] for i in rng.permutation(len(LABELS))]
    images, labels = pictures(60, seed=1)
    probe = AttentiveProbe.train(encoder(), IMAGES, shuffled, epochs=4, batch_size=8)
    right = np.mean([a == b for a, b in zip(probe.predict(images), labels, strict=True)])
    assert right < 0.75  # one motif may be right by chance, or two


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 24, "2 classes or more, got 1"),
        (["a", ["b"]] * 12, "all be lists"),
        ([str(i) for i in range(24)], "no class has two images"),
    ],
)
def test_labels_that_do_not_serve_are_refused(labels, message):
    with pytest.raises(UsageError, match=message):
        AttentiveProbe.train(encoder(), IMAGES, labels)


def test_a_validation_label_that_was_not_trained_on_is_refused():
    with pytest.raises(UsageError, match="'dog' are not among the 3"):
        AttentiveProbe.train(encoder(), IMAGES, LABELS, validation=(IMAGES[:1], ["dog"]), epochs=1)


def test_the_native_resolution_model_is_refused():
    with pytest.raises(UsageError, match="one image size"):
        AttentiveProbe.train(encoder(NATIVE), IMAGES, LABELS)


def test_a_folder_with_a_probe_is_not_overwritten_unasked(trained, tmp_path):
    trained.save(tmp_path / "probe")
    with pytest.raises(OutputError, match="has probe.json already"):
        trained.save(tmp_path / "probe")
    trained.save(tmp_path / "probe", overwrite=True)
    with pytest.raises(OutputError, match="cannot write"):
        trained.save(tmp_path / "missing" / "probe")


def test_a_folder_without_a_probe_is_refused(tmp_path):
    with pytest.raises(UsageError, match="expected a folder with a trained probe"):
        AttentiveProbe.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "something"),
        ("format_version", 2),
        ("classes", ["ant", "bee"]),
        ("classes", ["ant", "bee", 3]),
        ("classes", ["ant", "bee", "ant"]),
        ("layers", ["0"]),
        ("identity", []),
        ("identity", {}),
        ("head", {"dim": 64}),
        ("multi_label", 1),
        ("sha256", "0" * 64),
        ("extra", 1),
    ],
)
def test_a_damaged_description_is_refused(trained, tmp_path, field, value):
    trained.save(tmp_path / "probe")
    path = tmp_path / "probe" / "probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match="probe"):
        AttentiveProbe.load(tmp_path / "probe", trained.encoder)


@pytest.mark.parametrize("damage", ["cut", "nan", "missing"])
def test_damaged_weights_are_refused(trained, tmp_path, damage):
    trained.save(tmp_path / "probe")
    path, facts = tmp_path / "probe" / "probe.safetensors", tmp_path / "probe" / "probe.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        tensors = safetensors.numpy.load_file(path)
        tensors["head.k.weight"] = tensors["head.k.weight"] * np.nan
        safetensors.numpy.save_file(tensors, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"sha256": digest}))
    with pytest.raises(CheckpointError, match=r"probe\.safetensors"):
        AttentiveProbe.load(tmp_path / "probe", trained.encoder)


HEAD = Path(__file__).parent / "data" / "aimv1_probe" / "head.safetensors"
NAMES = tuple("abcdefg")


def test_a_head_trained_elsewhere_becomes_a_probe_of_its_encoder(model, tmp_path):
    found = aim_mlx.load(model)
    probe = AttentiveProbe.from_head(HEAD, found, NAMES, layers=(0, -1))
    logits = found.features(found.preprocess(IMAGES[:2]), layers=(0, -1)).layers
    tokens = (logits[0] + logits[-1]) / 2
    expected = np.array(mx.softmax(load_head(HEAD, heads=2)(tokens), axis=-1))
    np.testing.assert_allclose(
        probe.predict_proba(IMAGES[:2]), expected, atol=4e-4
    )  # float16 tokens: seen 4e-5
    again = AttentiveProbe.load(probe.save(tmp_path / "probe"))
    assert again.predict(IMAGES[:2]) == probe.predict(IMAGES[:2])
    assert again.classes == NAMES and again.layers == (0, -1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": NAMES[:6]}, UsageError, "7 outputs.*got 6, 6 of them different"),
        ({"classes": (*NAMES[:6], "a")}, UsageError, "got 7, 6 of them different"),
        ({"layers": (9,)}, UsageError, "9"),
        ({"encoder": encoder(VisionConfig(32, 88, 1, 2, 14, 56))}, CheckpointError, "64 channels"),
        ({"encoder": encoder(NATIVE)}, UsageError, "one image size"),
        ({"path": "head.pth"}, CheckpointError, "python -m convert"),
    ],
    ids=["few", "twice", "layers", "width", "native", "pickle"],
)
def test_a_head_that_does_not_fit_is_refused(options, error, message):
    values = {"path": HEAD, "encoder": encoder(), "classes": NAMES, **options}
    with pytest.raises(error, match=message):
        AttentiveProbe.from_head(**values)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("head.pth", CheckpointError, "python -m convert"),
        ("head.safetensors", UsageError, "from_head"),
    ],
)
def test_a_file_in_place_of_a_probe_gets_a_hint(tmp_path, name, error, message):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(error, match=message):
        AttentiveProbe.load(tmp_path / name)


def test_probes_leave_the_encoder_as_it_was():
    model = encoder()
    train(model)
    assert parameters_digest(model.model) == parameters_digest(encoder().model)
