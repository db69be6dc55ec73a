"""Zero-shot heads: what they compute, keep and refuse."""

import json
from pathlib import Path

import numpy as np
import pytest

import aim_mlx
from aim_mlx.errors import CheckpointError, OutputError, TruncatedTextWarning, UsageError
from aim_mlx.words import zeroshot
from aim_mlx.words.lit import LiT
from aim_mlx.words.zeroshot import ZeroShotHead
from tests.small import photo, save_lit
from tests.weights_files import write_tensors

LABELS = ["cat", "big dog", "a house by the sea"]
TEMPLATES = ["a photo of a {}.", "{}!", "the {}, again"]
CLOSE = 1e-5  # float32 sums over batches of another shape


@pytest.fixture(scope="module")
def lit(tmp_path_factory) -> LiT:
    loaded = aim_mlx.load(save_lit(tmp_path_factory.mktemp("lit") / "model"))
    assert isinstance(loaded, LiT)
    return loaded


@pytest.fixture(scope="module")
def head(lit) -> ZeroShotHead:
    return ZeroShotHead.build(lit, LABELS, TEMPLATES)


@pytest.fixture(scope="module")
def images(lit) -> np.ndarray:
    return lit.embed([photo(seed) for seed in range(4)])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_class_is_the_mean_of_its_prompts_of_length_one(lit, head):
    for label, vector in zip(LABELS, head.vectors, strict=True):
        prompts = [template.replace("{}", label) for template in TEMPLATES]
        each = np.concatenate([np.array(lit.encode_text([prompt])) for prompt in prompts])
        np.testing.assert_allclose(vector, unit(unit(each).mean(axis=0)), atol=CLOSE)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_blocks_in_which_prompts_run_change_nothing(lit, head, block, monkeypatch):
    monkeypatch.setattr(zeroshot, "_PROMPTS_AT_ONCE", block)
    progress = []
    again = ZeroShotHead.build(
        lit, LABELS, TEMPLATES, progress=lambda done, total: progress.append((done, total))
    )
    np.testing.assert_allclose(again.vectors, head.vectors, atol=CLOSE)
    assert progress[-1] == (9, 9) and len(progress) == -(-9 // block)


def test_scores_are_the_softmax_of_scaled_cosines(head, images):
    logits = np.exp(2.5) * images.astype(np.float64) @ head.vectors.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.scores(images), expected, atol=CLOSE)
    assert head.scores(images).dtype == np.float32


def test_with_several_labels_to_an_image_scores_are_cosines(head, images):
    np.testing.assert_allclose(
        head.scores(images, multi_label=True), images @ head.vectors.T, atol=CLOSE
    )


def test_the_length_of_an_image_vector_does_not_matter(head, images):
    np.testing.assert_allclose(head.scores(3 * images), head.scores(images), atol=CLOSE)


def test_a_large_scale_overflows_nothing(head, images):
    steep = ZeroShotHead(
        head.labels, head.templates, head.vectors, 1e4, head.weights, head.model
    ).scores(images)
    assert np.isfinite(steep).all() and np.allclose(steep.sum(axis=1), 1)


def test_vectors_of_another_length_are_refused(head):
    with pytest.raises(UsageError, match="another model"):
        head.scores(np.ones((1, 64), np.float32))


def test_the_logit_scale_of_a_head_is_bounded_as_that_of_the_model(lit):
    before = lit.lit.log_logit_scale
    try:
        lit.lit.log_logit_scale = before + 9
        assert ZeroShotHead.build(lit, LABELS).scale == pytest.approx(100, rel=1e-5)
    finally:
        lit.lit.log_logit_scale = before


def test_a_model_classifies_images_by_words(lit, images):
    pictures = [photo(seed) for seed in range(4)]
    plain = ZeroShotHead.build(lit, LABELS, ["a photo of a {}."])
    scores = lit.classify(pictures, LABELS)
    np.testing.assert_allclose(scores, plain.scores(images), atol=CLOSE)
    alone = lit.classify(pictures, ["cat"], "varied", multi_label=True)
    assert alone.shape == (4, 1) and (np.abs(alone) <= 1).all()


def test_prompts_over_the_context_length_are_counted_and_warned_of(lit):
    long = ["cat", "2 " * 100]
    assert ZeroShotHead.build(lit, long, TEMPLATES).cut == 3
    with pytest.warns(TruncatedTextWarning, match="1 text of more than 32 tokens"):
        lit.classify([photo(0)], long)


def test_vectors_that_are_not_finite_are_named(lit, monkeypatch):
    monkeypatch.setattr(
        lit.lit, "encode_text", lambda ids, _: aim_mlx.backend.mx.full((len(ids), 32), np.inf)
    )
    with pytest.raises(CheckpointError, match="'cat' is not finite"):
        ZeroShotHead.build(lit, LABELS)


def test_a_saved_head_gives_the_same_scores_without_a_model(head, images, tmp_path):
    again = ZeroShotHead.load(head.save(tmp_path / "head"))
    assert {p.name for p in (tmp_path / "head").iterdir()} == {"labels.safetensors", "labels.json"}
    np.testing.assert_array_equal(again.scores(images), head.scores(images))
    assert (again.labels, again.templates, again.model) == (
        head.labels,
        head.templates,
        head.model,
    )


def test_a_head_knows_its_model(head, lit, tmp_path):
    head.check(lit.weights_digest)
    other = aim_mlx.load(save_lit(tmp_path / "other", seed=1))
    with pytest.raises(CheckpointError, match="make them again"):
        head.check(other.weights_digest, "the other model")


def test_a_head_is_not_written_over_another_unless_asked(head, tmp_path):
    head.save(tmp_path)
    with pytest.raises(OutputError, match="already"):
        head.save(tmp_path)
    head.save(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="cannot write into"):
        head.save(tmp_path / "missing" / "head")


def edited(head: ZeroShotHead, folder: Path, **changes) -> Path:
    head.save(folder)
    values = json.loads((folder / "labels.json").read_text()) | changes
    (folder / "labels.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"format_version": 2},
        {"labels": ["cat", "dog"]},
        {"labels": ["cat", "cat", "dog"]},
        {"labels": 3},
        {"templates": ["none"]},
        {"scale": -1},
        {"scale": "much"},
        {"dim": 31},
        {"sha256": "0" * 64},
        {"weights": None},
        {"model": []},
    ],
)
def test_a_head_that_was_changed_is_refused(head, changes, tmp_path):
    with pytest.raises(CheckpointError):
        ZeroShotHead.load(edited(head, tmp_path, **changes))


def test_a_head_with_other_tensors_is_refused(head, tmp_path):
    import hashlib

    for number, tensors in enumerate(
        [{"other": ("F32", np.ones((3, 32)))}, {"vectors": ("F32", np.full((3, 32), np.nan))}]
    ):
        folder = edited(head, tmp_path / str(number))
        write_tensors(folder / "labels.safetensors", tensors)
        digest = hashlib.sha256((folder / "labels.safetensors").read_bytes()).hexdigest()
        values = json.loads((folder / "labels.json").read_text()) | {"sha256": digest}
        (folder / "labels.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match="make it again"):
            ZeroShotHead.load(folder)


def test_half_a_head_is_refused(head, tmp_path):
    head.save(tmp_path)
    (tmp_path / "labels.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        ZeroShotHead.load(tmp_path)
    with pytest.raises(UsageError, match="no labels.json"):
        ZeroShotHead.load(tmp_path / "nothing")
