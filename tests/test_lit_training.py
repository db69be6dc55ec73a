"""Training a text tower to a frozen image tower: numbers, split, and going on to the bit."""

import json
import math
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.backend import mx, tree_flatten
from aim_mlx.data.pairs import Pairs, epoch_batches, read_pairs, split
from aim_mlx.errors import AimError, Interrupted, OutputError, UsageError
from aim_mlx.files import locked
from aim_mlx.lit_training import run, trainer
from aim_mlx.lit_training.config import TEXT_SIZES, TextSize, TrainConfig, learning_rate
from aim_mlx.lit_training.evaluation import recalls
from aim_mlx.lit_training.features import Split
from aim_mlx.lit_training.matches import Matches
from aim_mlx.lit_training.model import decays, lit_config, new_model
from aim_mlx.lit_training.run import train_lit
from aim_mlx.lit_training.trainer import LitTrainer, contrastive_loss
from aim_mlx.tokens import cache as token_cache
from aim_mlx.training import loop
from aim_mlx.training.report import Silent
from aim_mlx.words.tokenizer import TokenIds, Tokenizer
from tests.probes import ArrayTokens
from tests.small import encoder, photo

QUICK = TrainConfig(epochs=3, batch_size=8, held_out=0.25)


@pytest.fixture(scope="module", autouse=True)
def small_text():
    """A text tower that trains in half the time; its projection is as wide as nothing else."""
    with mock.patch.dict(TEXT_SIZES, tiny=TextSize(32, 88, 2, 2, 8_192, 24)):
        yield


def loss_by_hand(images, texts, log_scale, left_out) -> float:
    """The loss in float64, term by term."""
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    logits = math.exp(log_scale) * images @ texts.T
    total = 0.0
    for i in range(len(logits)):
        row = [logits[i, j] for j in range(len(logits)) if not left_out[0][i, j]]
        column = [logits[j, i] for j in range(len(logits)) if not left_out[1][j, i]]
        total += np.log(np.exp(row).sum()) + np.log(np.exp(column).sum()) - 2 * logits[i, i]
    return total / (2 * len(logits))


def matches_of(*pairs: tuple[int, int]) -> Matches:
    """Those of pairs of an image's and a text's number."""
    images, texts = np.array(pairs).T
    ids = np.stack([texts, np.full(len(texts), 9), np.full(len(texts), 9)], axis=1)
    return Matches(images, TokenIds(ids, np.full(len(texts), 2), ()))


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    matches = matches_of((0, 0), (1, 0), (1, 1), (2, 1), (3, 2), (4, 3))
    return rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), 2.3, matches.left_out(np.arange(6))


def in_float32(images, texts, log_scale):
    return mx.array(images, mx.float32), mx.array(texts, mx.float32), mx.array(log_scale)


def test_the_loss_equals_its_definition_in_double_precision(case):
    *inputs, left_out = case
    assert [each.sum() for each in left_out] == [14, 10]
    ours = contrastive_loss(*in_float32(*inputs), left_out)
    assert float(ours) == pytest.approx(loss_by_hand(*case), abs=1e-5)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_gradient_of_the_loss_equals_finite_differences(case, which):
    *inputs, left_out = case
    gradient = mx.grad(lambda i, t, s: contrastive_loss(i, t, s, left_out), which)(
        *in_float32(*inputs)
    )
    ours = np.array(gradient, np.float64)
    expected = np.empty_like(ours)
    for index in np.ndindex(ours.shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = [np.array(value, np.float64) for value in inputs]
            moved[which][index] += step
            ends.append(loss_by_hand(moved[0], moved[1], float(moved[2]), left_out))
        expected[index] = (ends[0] - ends[1]) / 2e-6
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_what_belongs_together_by_any_pair_is_not_told_apart():
    # Image 1 has text 7, that of the first row, by a pair outside the batch; 2 has nothing of it.
    matches = matches_of((0, 7), (1, 8), (2, 9), (1, 7))
    for left_out in matches.left_out(np.array([0, 1, 2])):
        assert np.argwhere(left_out).tolist() == [[1, 0]]


def test_a_text_counts_once_for_an_image_and_an_image_once_for_a_text():
    # Rows: two images with text 0, one of them again with text 1, and one with text 2.
    texts, images = matches_of((0, 0), (1, 0), (1, 1), (2, 2)).left_out(np.arange(4))
    assert np.argwhere(texts & ~images).tolist() == [[3, 1]]  # text 0 stands before
    assert np.argwhere(images & ~texts).tolist() == [[2, 3]]  # image 1 stands before
    assert not texts.diagonal().any() and not images.diagonal().any()


def test_recall_counts_any_right_answer_and_takes_ties_as_lost():
    images = np.eye(3)
    texts = np.array([[0.9, 0, 0], [0.8, 0, 0], [0, 0.9, 0], [0, 0.9, 0], [0, 0, 0.5]])
    right = [[0, 1], [2], [4]]  # text 3 is as near to image 1 as its own, and belongs to image 2
    match = np.array([[j in each for j in range(5)] for each in right])
    match[2, 3] = True
    found = recalls(images, texts, match)
    assert found["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert found["image_to_text_recall@5"] == 1
    assert found["image_to_text_chance@1"] == pytest.approx(5 / 15)
    assert found["text_to_image_recall@1"] == pytest.approx(4 / 5)  # text 3 finds image 1 first


def test_recall_of_vectors_that_are_all_alike_is_none():
    vectors = np.ones((8, 4)) / 2
    found = recalls(vectors, vectors, np.eye(8, dtype=bool))
    assert found["image_to_text_recall@5"] == found["text_to_image_recall@5"] == 0


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero():
    rates = [learning_rate(TrainConfig(learning_rate=1.0, warmup=0.2), s, 50) for s in range(50)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) == max(rates)
    assert sorted(rates[10:], reverse=True) == rates[10:] and rates[-1] < 0.01


def test_weight_decay_leaves_gains_biases_positions_query_and_scale_alone():
    assert decays("text_encoder.trunk.blocks.0.mlp.fc1.weight")
    assert decays("text_encoder.preprocessor.text_embedding.weight")
    for name in (
        "text_encoder.trunk.blocks.0.norm_1.weight",
        "text_encoder.trunk.post_trunk_norm.weight",
        "image_encoder.head.linear.bias",
        "image_encoder.head.cls_token",
        "text_encoder.preprocessor.positional_embedding",
        "log_logit_scale",
    ):
        assert not decays(name)


@pytest.mark.parametrize("size", [7, 10, 64])
def test_an_epoch_deals_every_pair_once_and_an_images_captions_apart(size):
    images = np.repeat(np.arange(12), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2])
    batches = epoch_batches(images, size, seed=3, epoch=1)
    assert sorted(np.concatenate(batches)) == list(range(len(images)))
    assert max(map(len, batches)) <= size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    for batch in batches:
        _, counts = np.unique(images[batch], return_counts=True)
        assert counts.max() == 1 or len(batches) < 5
    again = epoch_batches(images, size, seed=3, epoch=1)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    other = epoch_batches(images, size, seed=3, epoch=2)
    assert any((a != b).any() for a, b in zip(batches, other, strict=True) if len(a) == len(b))


def write_table(folder: Path) -> Path:
    """24 pictures of 12 contents, each content under two names with a caption each."""
    folder.mkdir()
    rows = []
    for seed in range(24):
        Image.fromarray(photo(seed % 12)).save(folder / f"{seed}.png")
        rows.append({"path": f"{seed}.png", "caption": f"picture {seed % 12} by hand {seed // 12}"})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return write_table(tmp_path / "data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run on such a table."""
    folder = tmp_path_factory.mktemp("finished")
    train_lit(write_table(folder / "data"), folder / "out", encoder, QUICK)
    return folder / "out"


def test_an_image_is_known_by_its_content_and_a_pair_counts_once(table):
    with open(table, "a") as file:
        file.write('{"path": "13.png", "caption": "picture 1 by hand 1"}')
    pairs, skips = read_pairs(table)
    assert len(pairs.paths) == 12 and len(pairs.captions) == 24 and not skips
    assert sorted(np.bincount(pairs.images)) == [2] * 12


def test_the_split_parts_images_by_content_and_depends_on_nothing_else(table):
    pairs, _ = read_pairs(table)
    train, held_out = split(pairs, 0.25, seed=5)
    assert len(train.paths) == 9 and len(held_out.paths) == 3
    assert not set(train.digests) & set(held_out.digests)
    assert sorted(train.captions + held_out.captions) == sorted(pairs.captions)
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[::-1]))
    again = split(read_pairs(table)[0], 0.25, seed=5)
    assert set(again[1].digests) == set(held_out.digests)
    assert set(split(pairs, 0.25, seed=6)[1].digests) != set(held_out.digests)


def test_images_that_cannot_be_read_are_left_out_with_the_reason(table):
    (table.parent / "3.png").unlink()
    pairs, skips = read_pairs(table)
    assert len(pairs.captions) == 23 and [skip.reason for skip in skips] == ["vanished"]


def test_a_table_whose_images_are_elsewhere_is_refused(table, tmp_path):
    moved = tmp_path / "pairs.jsonl"
    moved.write_text(table.read_text())
    with pytest.raises(UsageError, match="relative to the table's own folder"):
        read_pairs(moved)


def test_half_a_character_in_a_caption_is_refused(table):
    table.write_text('{"path": "1.png", "caption": "\\ud83d"}')
    with pytest.raises(UsageError, match="line 1 of pairs.jsonl"):
        read_pairs(table)


def test_too_few_images_to_hold_some_out_are_refused(table):
    pairs, _ = read_pairs(table)
    with pytest.raises(UsageError, match="too few"):
        split(pairs.of([0, 1, 2]), 0.1, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": math.nan}, {"text_config": "huge"}],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", " ")):
        TrainConfig(**wrong)


def small_trainer(**changes) -> LitTrainer:
    """Eight pairs in one batch, noise in every parameter, so that no gradient is zero."""
    rng, tower = np.random.default_rng(0), encoder()
    captions = tuple(f"picture {i} by hand" for i in range(8))
    tokenizer = Tokenizer.train(captions, 514)
    model = new_model(tower, lit_config(tower, "tiny", tokenizer), 0)
    noise = {
        name: value + mx.array(rng.normal(0, 0.1, value.shape), mx.float32)
        for name, value in dict(tree_flatten(model.trainable_parameters())).items()
    }
    model.load_weights(list(noise.items()), strict=False)
    tokens = ArrayTokens(rng.normal(size=(8, 16, 64)).astype(np.float16))
    pairs = Pairs(("",) * 8, (), captions, np.arange(8))
    config = TrainConfig(**{"epochs": 6, "batch_size": 8, "warmup": 0.0, **changes})
    return LitTrainer(model, tokenizer, config, Split(pairs, tokens, tokenizer.encode(captions)))


@pytest.mark.parametrize("clip_norm", [1.0, 1e-7])
def test_steps_are_those_of_adamw_in_double_precision(clip_norm):
    """Betas of 0.9 and 0.98, decay of the matrices alone; AdamW sees a clipped gradient only where
    it is as small as its epsilon of 1e-8.
    """
    trainer = small_trainer(clip_norm=clip_norm, weight_decay=0.3, learning_rate=1e-2)
    taken: list[dict[str, np.ndarray]] = []
    compute = trainer._loss_and_gradient

    def kept(*given):
        loss, gradient = compute(*given)
        taken.append({n: np.array(v, np.float64) for n, v in tree_flatten(gradient)})
        return loss, gradient

    trainer._loss_and_gradient = kept  # pyright: ignore[reportAttributeAccessIssue]
    parameters = lambda: {  # noqa: E731
        n: np.array(v, np.float64) for n, v in tree_flatten(trainer.model.trainable_parameters())
    }
    expected = parameters()
    first, second = ({n: np.zeros_like(v) for n, v in expected.items()} for _ in range(2))
    for step in range(1, 4):
        before = parameters()
        trainer.run_step()
        rate = learning_rate(trainer.config, step - 1, 6)
        norm = math.sqrt(sum((each**2).sum() for each in taken[-1].values()))
        for name, gradient in taken[-1].items():
            gradient = gradient * min(1.0, clip_norm / norm)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            moved = first[name] / (1 - 0.9**step)
            moved /= np.sqrt(second[name] / (1 - 0.98**step)) + 1e-8
            decay = 0.3 if decays(name) else 0.0
            expected[name] = before[name] * (1 - rate * decay) - rate * moved
        for name, value in parameters().items():
            # Parameters of float32 up to about 3, rounded at each step: seen 2e-7.
            assert abs(value - expected[name]).max() < 2e-6, name


@pytest.mark.parametrize(("log_scale", "bound"), [(9.0, math.log(100)), (-3.0, 0.0)])
def test_the_temperature_stays_within_its_bounds(log_scale, bound):
    trainer = small_trainer()
    trainer.model.log_logit_scale = mx.array(log_scale)
    record = trainer.update()
    assert float(trainer.model.log_logit_scale) == pytest.approx(bound, abs=1e-6)
    assert record["scale"] == pytest.approx(math.exp(bound), rel=1e-5)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_trained_folder_loads_and_gives_the_vectors_of_the_model_in_training(
    table, tmp_path, monkeypatch
):
    models = []
    kept = run._save
    monkeypatch.setattr(run, "_save", lambda *a: (models.append(a[1].model), kept(*a)))
    model = encoder()
    before = dict(tree_flatten(model.model.parameters()))
    done = train_lit(table, tmp_path / "out", lambda: model, QUICK)
    assert (done.pairs, done.images, done.held_out, done.steps) == (24, 12, 3, 9)
    lit = aim_mlx.load(tmp_path / "out")
    assert isinstance(lit, aim_mlx.LiT)
    pixels = lit.preprocess([table.parent / "0.png"])
    expected = models[0].encode_image(mx.array(pixels))
    np.testing.assert_array_equal(lit.encode_image(pixels), expected)
    after = dict(tree_flatten(lit.model.parameters()))
    assert all((np.array(before[name]) == np.array(after[name])).all() for name in before)
    words = lit.encode_text(["picture 3 by hand 1", "something else"])
    assert words.shape == (2, 24)
    assert lit.identity["provenance"]["pairs"]["trained_on"] == 18


def test_the_first_weights_depend_on_the_seed_alone_in_every_tensor():
    def first(seed: int) -> dict[str, np.ndarray]:
        tower = encoder()
        tokenizer = Tokenizer.train(["a cat", "a dog"], 514)
        model = new_model(tower, lit_config(tower, "tiny", tokenizer), seed)
        return {name: np.array(v) for name, v in tree_flatten(model.trainable_parameters())}

    one, same, other = first(1), first(1), first(2)
    assert all((one[name] == same[name]).all() for name in one)
    drawn = {name for name in one if one[name].std() > 0}
    assert all((one[name] != other[name]).any() for name in drawn)
    assert {name for name in one if name not in drawn and one[name].any()} == {
        name for name in one if "norm" in name or name == "log_logit_scale"
    }
    assert not [name for name in one if name.startswith("image_encoder.trunk")]
    assert float(one["log_logit_scale"]) == pytest.approx(math.log(1 / 0.07))


def test_the_same_content_under_two_names_is_computed_once(finished):
    (shard,) = finished.rglob("tokens-*.npy")
    assert len(np.load(shard)) == 12


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(
    table, finished, tmp_path, monkeypatch
):
    broken = tmp_path / "broken"
    step = LitTrainer.run_step

    def interrupted(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(LitTrainer, "run_step", interrupted)
    with pytest.raises(Interrupted, match="after step 5 of 9; the checkpoint of step 5 is kept"):
        train_lit(table, broken, encoder, QUICK)
    assert not (broken / "model.safetensors").exists()
    monkeypatch.setattr(LitTrainer, "run_step", step)
    notes = []
    report = Silent()
    report.noted = notes.append  # pyright: ignore[reportAttributeAccessIssue]
    train_lit(table, broken, encoder, QUICK, report)
    assert "goes on after step 5 of 9" in notes
    assert weights(broken) == weights(finished)
    metrics = [(folder / "training" / "metrics.json").read_text() for folder in (finished, broken)]
    assert metrics[0] == metrics[1]


def test_asked_to_stop_a_run_keeps_what_it_has_done(table, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "block_size", lambda *_: 2)
    calls = iter(range(1000))
    with pytest.raises(Interrupted, match="before the training; what is finished is kept"):
        train_lit(table, tmp_path / "early", encoder, QUICK, stop=lambda: next(calls) >= 24 + 5)
    assert list((tmp_path / "early").rglob("tokens-*.npy"))
    calls = iter(range(1000))
    with pytest.raises(Interrupted, match="after step 4 of 9; the checkpoint of step 4 is kept"):
        # Asked once for each of 24 files, each of 12 images, and each step.
        train_lit(table, tmp_path / "out", encoder, QUICK, stop=lambda: next(calls) >= 36 + 3)
    train_lit(table, tmp_path / "out", encoder, QUICK)
    train_lit(table, tmp_path / "straight", encoder, QUICK)
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_captions_that_are_cut_and_images_that_are_not_evaluated_are_told(
    table, tmp_path, monkeypatch
):
    with open(table, "a") as file:
        file.write(json.dumps({"path": "1.png", "caption": "and so on " * 40}) + "\n")
    monkeypatch.setattr(run, "_LARGEST_EVALUATION", 2)
    notes = []
    report = Silent()
    report.noted = notes.append  # pyright: ignore[reportAttributeAccessIssue]
    train_lit(table, tmp_path / "out", encoder, QUICK, report)
    assert notes[1:] == [
        "1 caption cut off after 77 tokens",
        "of 3 held-out images 2 are evaluated",
    ]


def test_what_a_killed_run_was_writing_is_removed(table, tmp_path):
    left = tmp_path / "out" / "training" / ".checkpoint.safetensors.1.aim-mlx.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a checkpoint")
    train_lit(table, tmp_path / "out", encoder, QUICK)
    assert not left.exists()


def test_a_second_run_on_a_folder_in_use_is_refused(table, tmp_path):
    work = tmp_path / "out" / "training"
    work.mkdir(parents=True)
    with locked(work), pytest.raises(OutputError, match=f"process {os.getpid()} is writing"):
        train_lit(table, tmp_path / "out", encoder, QUICK)


def test_a_finished_run_called_again_leaves_the_same_model_and_records(table, finished, tmp_path):
    """Also where it was killed between its last state and its records."""
    shutil.copytree(finished, tmp_path / "out")
    before, records = weights(tmp_path / "out"), tmp_path / "out/training/metrics.json"
    kept = records.read_bytes()
    records.unlink()
    again = train_lit(table, tmp_path / "out", encoder, QUICK)
    assert weights(tmp_path / "out") == before and again.metrics
    assert records.read_bytes() == kept


@pytest.mark.parametrize("change", ["option", "encoder", "pairs"])
def test_another_run_on_the_same_folder_is_refused(table, finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "out")
    before = weights(tmp_path / "out")
    config, seed = QUICK, 0
    if change == "option":
        config = TrainConfig(epochs=4, batch_size=8, held_out=0.25)
    elif change == "encoder":
        seed = 1
    else:
        table.write_text(table.read_text().replace("by hand 1", "by foot"))
    named = {"option": "epochs", "encoder": "weights", "pairs": "pairs"}[change]
    with pytest.raises(OutputError, match=f"another run .its {named}: "):
        train_lit(table, tmp_path / "out", lambda: encoder(seed=seed), config)
    assert weights(tmp_path / "out") == before


def test_a_folder_with_something_else_in_it_is_refused(table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        train_lit(table, tmp_path / "out", encoder, QUICK)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    table, tmp_path, monkeypatch
):
    kept = []
    step = LitTrainer.run_step

    def spoiled(self):
        if self.step == 4:
            kept.append((tmp_path / "out/training/checkpoint.safetensors").read_bytes())
            self.model.text_projector.weight *= math.inf
        return step(self)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(LitTrainer, "run_step", spoiled)
    with pytest.raises(AimError, match="the loss of step 5 is nan"):
        train_lit(table, tmp_path / "out", encoder, QUICK)
    assert (tmp_path / "out/training/checkpoint.safetensors").read_bytes() == kept[0]


def test_running_out_of_memory_names_a_smaller_batch(table, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[malloc] Unable to allocate 17179869184 bytes.")

    monkeypatch.setattr(trainer, "contrastive_loss", full)
    with pytest.raises(AimError, match="try --batch-size 4"):
        train_lit(table, tmp_path / "out", encoder, TrainConfig(batch_size=9, held_out=0.25))


def test_without_room_for_the_tokens_they_are_computed_from_the_images(table, finished, tmp_path):
    notes = []
    report = Silent()
    report.noted = notes.append  # pyright: ignore[reportAttributeAccessIssue]
    done = train_lit(table, tmp_path / "out", encoder, QUICK, report, cache_limit=1000)
    assert "over the limit" in notes[0]
    assert not list((tmp_path / "out").rglob("tokens-*.npy"))
    losses = [
        [record["loss"] for record in json.loads((folder / "training/metrics.json").read_text())]
        for folder in (tmp_path / "out", finished)
    ]
    # In another batch tokens may be rounded otherwise, by a unit of float16: seen 2e-5 apart.
    np.testing.assert_allclose(*losses, rtol=2e-4)
    assert done.steps == 9


def test_an_interrupted_run_on_streamed_tokens_goes_on_to_the_same_bits(table, tmp_path):
    train_lit(table, tmp_path / "straight", encoder, QUICK, cache_limit=0)
    calls = iter(range(1000))
    with pytest.raises(Interrupted, match="after step 4 of 9"):
        stop = lambda: next(calls) >= 36 + 3  # noqa: E731
        train_lit(table, tmp_path / "out", encoder, QUICK, cache_limit=0, stop=stop)
    train_lit(table, tmp_path / "out", encoder, QUICK, cache_limit=0)
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_an_image_that_cannot_be_decoded_is_left_out_whichever_way_tokens_come(table, tmp_path):
    (table.parent / "3.png").write_bytes(b"not an image")
    for name, limit in (("cached", 10**9), ("streamed", 0)):
        skipped = []
        report = Silent()
        report.skipped = skipped.append  # pyright: ignore[reportAttributeAccessIssue]
        done = train_lit(table, tmp_path / name, encoder, QUICK, report, cache_limit=limit)
        assert [skip.reason for skip in skipped] == ["not_image"]
        assert done.pairs == 23 and done.exit_code == 3


def test_a_lit_model_serves_as_image_tower_by_its_trunk_alone(table, finished, tmp_path):
    load = lambda: aim_mlx.load(finished)  # noqa: E731
    train_lit(table, tmp_path / "second", load, QUICK)
    assert weights(finished) == weights(tmp_path / "second")
