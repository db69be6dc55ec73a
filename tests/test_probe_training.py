"""A grid of heads trained together: each as if alone, reproducible, safe from the others."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aim_mlx.backend import mx, nn, optim, tree_map
from aim_mlx.errors import AimError, Interrupted, OutputError, UsageError
from aim_mlx.probe import chunks
from aim_mlx.probe.chunks import ImageMoments, measured, widen, widened
from aim_mlx.probe.config import PROTOCOLS, GridPoint, ProbeConfig, protocol
from aim_mlx.probe.gradients import batch_gradients, logits_of
from aim_mlx.probe.heads import KINDS, flat
from aim_mlx.probe.losses import loss_sum, probabilities, targets_of, total_weight
from aim_mlx.probe.training import GridTrainer, LabelledTokens, _is_matrix, epoch_rows
from aim_mlx.report.figures import balanced_accuracy, mean_average_precision
from aim_mlx.training import loop
from aim_mlx.training.optimizer import adamw
from aim_mlx.training.report import Silent
from tests.probes import ArrayTokens, labelled, noisy_head, noisy_tokens, plain

QUICK = protocol("fast", epochs=4, batch_size=16, patience=None)
TRAIN, VALIDATION = labelled(60, 0), labelled(30, 1)


def trainer(config: ProbeConfig = QUICK, train: LabelledTokens = TRAIN) -> GridTrainer:
    return GridTrainer(config, 4, train, VALIDATION, heads=4)


def logits(found: GridTrainer, index: int | None = None) -> np.ndarray:
    """What the heads in training, or one of them, say of the validation images."""
    heads = found._heads if index is None else [found._heads[index]]
    return logits_of(heads, VALIDATION.tokens.for_epoch(0), np.arange(30), 16)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_trained_together_equal_heads_trained_alone(kind):
    config = replace(QUICK, head=kind, queries=2, learning_rates=(1e-3, 5e-3))
    together = trainer(config)
    loop.run(together)
    for index, point in enumerate(config.grid):
        alone = replace(
            config,
            learning_rates=(point.learning_rate,),
            weight_decays=(point.weight_decay,),
            batch_norm=(point.batch_norm,),
        )
        single = trainer(alone)
        loop.run(single)
        # Products of other sizes round otherwise, by 1e-7 a step.
        np.testing.assert_allclose(logits(together, index), logits(single), atol=1e-5)


@pytest.mark.parametrize("clip_norm", [3.0, 1e-7])
def test_the_state_after_a_step_is_that_of_mlx_adamw_on_the_plain_head(clip_norm):
    """A gradient is never so small that AdamW sees its clipping, unless to its epsilon of 1e-8."""
    norms: Any = {"batch_norm": (True,), "clip_norm": clip_norm}
    config = replace(QUICK, learning_rates=(1e-2,), warmup_epochs=0, **norms)
    ours = trainer(config)
    theirs = trainer(config)._heads[0]
    kinds = [
        optim.AdamW(1e-2, [0.9, 0.999], weight_decay=d, bias_correction=True) for d in (0.05, 0)
    ]
    optimizer = optim.MultiOptimizer(kinds, [lambda name, _: "weight" in name])
    for rows in epoch_rows(60, config, 0):
        rate = ours._rate(1e-2)
        ours.run_step()
        tokens = mx.array(np.stack(TRAIN.tokens.for_epoch(0).batch(rows))).astype(mx.float32)
        targets = targets_of(TRAIN.labels[rows], 4)

        def mean_loss(tokens=tokens, targets=targets):
            return loss_sum(plain(theirs, tokens), targets) / total_weight(targets)

        _, gradient = nn.value_and_grad(theirs, mean_loss)()
        gradient, _ = optim.clip_grad_norm(gradient, config.clip_norm)
        optimizer.learning_rate = rate
        optimizer.update(theirs, gradient)
    for name, value in flat(theirs.trainable_parameters()).items():
        # Adam divides by the gradient's size: where that is near zero, rounding shows.
        apart = mx.abs(value - flat(ours._heads[0].parameters())[name]).max()
        assert float(apart) < 1e-4, name


@pytest.mark.parametrize("kind", ["attentive", "coca"])
def test_weight_decay_pulls_at_matrices_and_at_no_query_or_bias(kind):
    head = noisy_head(kind=kind)
    before = {name: np.array(v) for name, v in flat(head.trainable_parameters()).items()}
    optimizer = adamw(head, 0.5, _is_matrix)
    optimizer.learning_rate = 0.1
    nothing = tree_map(mx.zeros_like, head.trainable_parameters())
    optimizer.update(head, nothing)
    pulled = {
        name: float((np.array(value) / before[name]).mean())
        for name, value in flat(head.trainable_parameters()).items()
    }
    expected = {name: 0.95 if name.endswith("weight") else 1.0 for name in before}
    assert pulled == pytest.approx(expected, abs=1e-6)
    assert {"cls_token", "linear.bias"} <= {name for name in expected if expected[name] == 1}


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
def test_label_smoothing_spreads_its_share_over_all_classes(several):
    """The loss of a grid on validation against the definition, in double precision."""
    labels = np.eye(4)[VALIDATION.labels] if several else VALIDATION.labels
    train = LabelledTokens(TRAIN.tokens, np.eye(4)[TRAIN.labels] if several else TRAIN.labels)
    config = replace(QUICK, label_smoothing=0.3)
    found = GridTrainer(config, 4, train, LabelledTokens(VALIDATION.tokens, labels), heads=4)
    while not found.history:
        found.run_step()
    scores = logits(found).astype(np.float64)
    if several:
        wanted = 0.7 * labels + 0.15
        losses = wanted * np.log1p(np.exp(-scores)) + (1 - wanted) * np.log1p(np.exp(scores))
        expected = losses.mean(axis=(1, 2))
    else:
        wanted = 0.7 * np.eye(4)[labels.astype(int)] + 0.3 / 4
        logs = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
        expected = -(wanted * logs).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(found.history[0]["val_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("images", [100, 2], ids=["whole", "in_parts"])
@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
@pytest.mark.parametrize("kind", ["attentive", "ep"])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(monkeypatch, images, several, kind):
    monkeypatch.setattr(chunks, "_IMAGES_IN_PART", images)
    for name in ("_CPU_CHUNK", "_GPU_CHUNK"):
        monkeypatch.setattr(chunks, name, images * 6 * 32 * 4)
    heads = [noisy_head(i, kind=kind, queries=2, batch_norm=bool(i % 2)) for i in range(3)]
    rng = np.random.default_rng(0)
    labels = rng.random((11, 5)) < 0.4 if several else rng.integers(0, 5, 11)
    targets = targets_of(labels, 5, smoothing=0.1, balanced=True)
    found = batch_gradients(heads, list(noisy_tokens()), targets)
    tokens = mx.array(noisy_tokens()).astype(mx.float32)
    for place, head in enumerate(heads):

        def mean_loss(head=head):
            return loss_sum(plain(head, tokens), targets) / total_weight(targets)

        loss, gradient = nn.value_and_grad(head, mean_loss)()
        assert float(found.losses[place]) == pytest.approx(float(loss), abs=1e-5)
        ours = flat(found.gradients[place])
        assert ours.keys() == flat(gradient).keys()
        for name, expected in flat(gradient).items():
            np.testing.assert_allclose(ours[name], expected, atol=1e-5, err_msg=name)


def test_every_finite_float16_is_converted_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][None, :, None]
    converted = np.empty(finite.shape, np.float32)
    widen(list(finite), converted)
    np.testing.assert_array_equal(converted, finite.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(converted), np.signbit(finite))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_chunks_come_widened_in_the_order_of_the_plan(count):
    rng = np.random.default_rng(0)
    sizes = (2, 1, 2, 1, 1, 2, 1)
    plan = [list(rng.normal(size=(size, 3, 2)).astype(np.float16)) for size in sizes]
    with ThreadPoolExecutor(1) as pool:
        found = [np.array(tokens) for tokens in widened(plan[:count], pool)]
    assert len(found) == count
    for tokens, chunk in zip(found, plan, strict=False):
        np.testing.assert_array_equal(tokens, np.stack(chunk).astype(np.float32))


def test_the_moments_of_batches_are_those_of_their_tokens_and_each_image_is_read_once(monkeypatch):
    tokens = noisy_tokens(count=9).astype(np.float32) + 100
    moments = ImageMoments(9, tokens.shape[1:])
    read = []
    monkeypatch.setattr(chunks, "measured", lambda new: read.append(len(new)) or measured(new))
    for rows in ([4, 1, 7], [1, 2], [7, 4, 1, 2], list(range(9))):
        found = moments.of(np.array(rows), [tokens[row] for row in rows])
        assert found.count == 6 * len(rows)
        wide = tokens[rows].astype(np.float64)
        np.testing.assert_allclose(found.mean, wide.mean((0, 1)), atol=1e-4)
        np.testing.assert_allclose(found.variance, wide.var((0, 1)), atol=1e-4)
    assert read == [3, 1, 5]


def test_training_tells_classes_apart():
    found = trainer(protocol("fast", epochs=15, batch_size=8))
    loop.run(found)
    assert found.best is not None and found.best.metric > 0.8  # four classes


def test_a_seed_gives_the_same_bits():
    runs = [trainer(replace(QUICK, seed=seed)) for seed in (0, 0, 1)]
    for run in runs:
        loop.run(run)
    assert runs[0].history == runs[1].history != runs[2].history
    np.testing.assert_array_equal(logits(runs[0]), logits(runs[1]))


def test_the_best_head_is_that_of_its_epoch_and_its_metric_is_true():
    found = trainer(protocol("fast", epochs=6, batch_size=16))
    loop.run(found)
    best, head = found.best, found.best_head()
    assert best is not None and found.config.grid[best.index] == best.point
    record = found.history[best.epoch - 1]
    assert (
        best.metric
        == record["metric"][best.index]
        == max(metric for each in found.history for metric in each["metric"])
    )
    said = logits_of([head], VALIDATION.tokens.for_epoch(0), np.arange(30), 16)[0]
    assert (said.argmax(1) == VALIDATION.labels).mean() == best.metric
    assert head.config.batch_norm == best.point.batch_norm and not head.training


def test_it_stops_when_no_head_has_become_better_for_long():
    config = replace(QUICK, epochs=50, patience=3, learning_rates=(1e-9,), batch_norm=(False,))
    found = trainer(config)
    loop.run(found)
    assert len(found.history) < 50
    assert found.best is not None and len(found.history) - found.best.epoch == 3


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    whole = trainer()
    loop.run(whole, straight)
    step = GridTrainer.run_step

    def interrupted(self):
        if self.step == 6:  # within the second epoch
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(GridTrainer, "run_step", interrupted)
    with pytest.raises(Interrupted, match="after step 6 of 16; the checkpoint of step 6 is kept"):
        loop.run(trainer(), broken)
    monkeypatch.setattr(GridTrainer, "run_step", step)
    notes, again = [], trainer()
    report = Silent()
    report.noted = notes.append  # pyright: ignore[reportAttributeAccessIssue]
    loop.run(again, broken, report)
    assert notes == ["goes on after step 6 of 16"] and again.history == whole.history
    name = "checkpoint.safetensors"
    assert (broken / name).read_bytes() == (straight / name).read_bytes()
    for kept, expected in zip(
        flat(again.best_head().parameters()).values(),
        flat(whole.best_head().parameters()).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(kept, expected)


def test_a_state_of_another_grid_is_not_taken_up(tmp_path):
    loop.run(trainer(), tmp_path)
    with pytest.raises(OutputError, match="another model's"):
        loop.run(trainer(replace(QUICK, queries=2)), tmp_path)


def test_a_head_whose_loss_is_not_finite_is_dropped_and_the_others_go_on():
    config = replace(QUICK, learning_rates=(1e-3, 2e-3))
    spoiled, alone = trainer(config), trainer(replace(config, learning_rates=(1e-3,)))
    spoiled._heads[2].k.weight *= math.nan
    spoiled._heads[3].linear.weight *= 1e38
    loop.run(spoiled)
    loop.run(alone)
    record = spoiled.history[-1]
    assert record["metric"][2:] == record["val_loss"][2:] == record["train_loss"][2:] == [None] * 2
    for index in (0, 1):
        np.testing.assert_allclose(logits(spoiled, index), logits(alone, index), atol=1e-5)
    assert spoiled.best is not None and spoiled.best.index < 2


def test_without_any_finite_head_it_stops_and_the_best_so_far_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    found = trainer()
    step = found.run_step

    def spoiled():
        if found.step == 9:  # in the third epoch
            for head in found._heads:
                head.linear.weight *= math.nan
        return step()

    found.run_step = spoiled
    with pytest.raises(AimError, match=r"no head is finite; the best head, of epoch \d, is kept"):
        loop.run(found, tmp_path)
    assert np.isfinite(np.array(found.best_head().linear.weight)).all()
    restored = trainer()
    loop.run(restored, tmp_path)  # from the state before the numbers were spoiled
    assert restored.done


def test_without_any_finite_head_in_the_first_epoch_none_is_kept():
    found = trainer()
    for head in found._heads:
        head.linear.weight *= math.nan
    with pytest.raises(AimError, match="none is kept: start again with learning rates below"):
        loop.run(found)


def test_a_dropped_head_stays_dropped_after_a_resume(tmp_path):
    found = trainer()
    found._heads[1].k.weight *= math.nan
    for _ in range(6):
        found.run_step()
    again = trainer()
    again.restore(found.state(), found.step, found.history)
    again.run_step()
    assert list(again._alive) == [1, 0, 1, 1]


def test_several_labels_are_learned_and_chosen_by_mean_average_precision():
    def several(part: LabelledTokens) -> LabelledTokens:
        labels = np.zeros((len(part.labels), 4), np.float32)
        labels[np.arange(len(part.labels)), part.labels] = 1
        labels[:, 3] = labels[:, 0]
        return LabelledTokens(part.tokens, labels)

    config = protocol("fast", epochs=15, batch_size=8, balanced=True)
    found = GridTrainer(config, 4, several(TRAIN), several(VALIDATION), heads=4)
    loop.run(found)
    assert found.multi_label and found.best is not None and found.best.metric > 0.8


def test_labels_of_two_kinds_or_none_are_refused():
    several = LabelledTokens(TRAIN.tokens, np.zeros((60, 4)))
    with pytest.raises(UsageError, match="both be single or both several"):
        GridTrainer(QUICK, 4, several, VALIDATION)
    with pytest.raises(UsageError, match="got none"):
        GridTrainer(QUICK, 4, TRAIN, LabelledTokens(TRAIN.tokens, np.zeros(0, int)))


def test_tokens_may_differ_by_epoch():
    asked = []

    class Views(ArrayTokens):
        def for_epoch(self, epoch: int) -> ArrayTokens:
            asked.append(epoch)
            return ArrayTokens(self.tokens + np.float16(epoch))

    source = Views(TRAIN.tokens.tokens)  # pyright: ignore[reportAttributeAccessIssue]
    moving, fixed = trainer(train=LabelledTokens(source, TRAIN.labels)), trainer()
    loop.run(moving)
    loop.run(fixed)
    assert set(asked) == {0, 1, 2, 3}
    assert moving.history[0] == fixed.history[0] and moving.history[1] != fixed.history[1]


@pytest.mark.parametrize("size", [7, 16, 100])
def test_an_epoch_has_every_image_once_in_batches_of_nearly_one_size(size):
    config = replace(QUICK, batch_size=size)
    rows = epoch_rows(60, config, 3)
    assert sorted(np.concatenate(rows)) == list(range(60))
    lengths = [len(each) for each in rows]
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1
    other = epoch_rows(60, config, 4)
    assert (np.concatenate(rows) != np.concatenate(other)).any()


def test_the_papers_protocol_is_the_papers():
    paper = PROTOCOLS["paper"]
    assert len(paper.grid) == 28 and paper.epochs == 100 and paper.batch_size == 512
    assert paper.clip_norm == 3.0 and paper.warmup_epochs == 0 and paper.patience is None
    assert GridPoint(5e-5, 0.1, True) in paper.grid and GridPoint(2e-3, 0.05, False) in paper.grid
    found = trainer(replace(paper, epochs=2, batch_size=30))
    assert found._rate(2e-3) == pytest.approx(2e-3)
    found.step = found.steps
    assert found._rate(2e-3) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rates": (1e-3, math.nan)},
        {"learning_rates": ()},
        {"weight_decays": (-1.0,)},
        {"batch_norm": ()},
        {"head": "cls"},
        {"patience": 0},
        {"epochs": 2.5},
        {"learning_rates": 0.01},
        {"batch_norm": True},
        {"label_smoothing": 1.0},
        {"unknown": 1},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UsageError):
        protocol("fast", **wrong)


def test_what_is_tried_may_be_given_as_lists():
    found = protocol("fast", learning_rates=[0.01], batch_norm=[True])
    assert found == protocol("fast", learning_rates=(0.01,), batch_norm=(True,))


def test_the_loss_of_balanced_classes_weighs_each_class_the_same():
    labels = np.array([0, 0, 0, 1])
    targets = targets_of(labels, 2, balanced=True)
    scores = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    each = -np.log(probabilities(scores, False)[np.arange(4), labels])
    expected = (each[:3].mean() + each[3]) / 2
    found = float(loss_sum(mx.array(scores), targets)) / total_weight(targets)
    assert found == pytest.approx(expected, abs=1e-6)


def test_balanced_accuracy_and_average_precision_by_hand():
    assert balanced_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])) == 0.5
    assert balanced_accuracy(np.array([2, 2]), np.array([0, 2])) == 0.5
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    right = np.array([[1], [0], [1], [0]], bool)
    assert mean_average_precision(scores, right) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(np.ones((4, 1)), right) == pytest.approx(0.5)  # all tied
    unlabelled = np.concatenate([right, np.zeros((4, 1), bool)], axis=1)
    assert mean_average_precision(np.repeat(scores, 2, 1), unlabelled) == pytest.approx(5 / 6)
