"""The steps of fine-tuning a small encoder."""

import numpy as np
import pytest

from aim_mlx.backend import mx, nn, tree_flatten
from aim_mlx.errors import AimError
from aim_mlx.finetune.model import decays
from aim_mlx.probe.losses import loss_sum, total_weight
from tests.finetuning import digits_in, numbers, run, trainer_of


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digits_in(tmp_path_factory.mktemp("digits") / "digits")


def gradient(trainer) -> dict[str, np.ndarray]:
    found = trainer._batch_gradient(trainer._batches.batch(0))[1]
    trainer.close()
    return numbers(dict(tree_flatten(found)))


def largest_relative(first, second) -> float:
    return max(
        float(np.linalg.norm(first[name] - second[name]) / (np.linalg.norm(second[name]) + 1e-12))
        for name in second
    )


@pytest.mark.parametrize(
    "options", [{"learning_rate": 5e-3}, {"full": True, "learning_rate": 1e-3}]
)
def test_a_classifier_learns_the_digits(digits, options):
    trainer = trainer_of(digits, epochs=12, warmup=0.05, **options)
    run(trainer, trainer.steps)
    first, last = trainer.history[0], trainer.history[-1]
    assert trainer.done and last["epoch"] == 12
    assert last["train_loss"] < 0.5 * first["train_loss"]
    assert trainer.best is not None and trainer.best.metric > 0.4  # chance: 0.1 of 20 images


@pytest.mark.parametrize("options", [{}, {"full": True, "last_blocks": 2}])
def test_a_resumed_run_has_the_same_bits(digits, options):
    whole = trainer_of(digits, **options)
    run(whole, whole.steps)
    first = run(trainer_of(digits, **options), 3)  # in the middle of an epoch
    state = {name: mx.array(np.array(value)) for name, value in first.state().items()}
    second = trainer_of(digits, **options)
    second.restore(state, first.step, first.history)
    run(second, whole.steps - 3)
    ours, theirs = numbers(second.state()), numbers(whole.state())
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert second.history == whole.history and len(whole.history) == 2


def plain_gradient(trainer, batch) -> dict[str, np.ndarray]:
    """That of the whole batch at once, by MLX's own means."""

    def loss(network):
        logits = network(mx.array(batch.pixels))
        return loss_sum(logits, batch.targets) / total_weight(batch.targets)

    found = nn.value_and_grad(trainer.model, loss)(trainer.model)[1]
    return numbers(dict(tree_flatten(found)))


@pytest.mark.parametrize(
    "options", [{"balanced": True, "label_smoothing": 0.1}, {"full": True, "last_blocks": 1}]
)
def test_a_step_has_the_gradient_of_the_mean_loss(digits, options):
    trainer = trainer_of(digits, dropout=0.0, batch_size=20, **options)
    wanted = plain_gradient(trainer, trainer._batches.batch(0))
    # float32 sums in another order.
    assert largest_relative(gradient(trainer), wanted) < 1e-4


@pytest.mark.parametrize("change", [{"parts": 3}, {"checkpointed": True}])
def test_memory_is_saved_without_another_gradient(digits, change):
    whole = gradient(trainer_of(digits, dropout=0.0))
    assert largest_relative(gradient(trainer_of(digits, dropout=0.0, **change)), whole) < 1e-4


def test_a_checkpointed_step_leaves_out_the_same(digits):
    first = gradient(trainer_of(digits, dropout=0.5))
    assert (
        largest_relative(gradient(trainer_of(digits, dropout=0.5, checkpointed=True)), first) < 1e-4
    )
    assert largest_relative(gradient(trainer_of(digits, dropout=0.0)), first) > 0.01


def test_a_loss_that_is_not_finite_stops_and_leaves_the_weights(digits):
    trainer = trainer_of(digits)
    trainer.run_step()
    trainer.model.head.linear.weight = mx.full(trainer.model.head.linear.weight.shape, np.inf)
    before = numbers(trainer.state())
    with pytest.raises(AimError, match="loss of step 2 is nan.*--learning-rate below 0.0005"):
        trainer.run_step()
    trainer.close()
    after = numbers(trainer.state())
    assert trainer.step == 1 and all(np.array_equal(after[n], before[n]) for n in before)


def test_the_first_blocks_move_least_when_all_is_trained(digits):
    trainer = trainer_of(digits, full=True, layer_decay=0.5, warmup=0.0, weight_decay=0.0)
    before = trainer.weights()
    before = numbers(before)
    run(trainer, 1)
    moved = {
        name: float(np.abs(np.array(value) - before[name]).max())
        for name, value in trainer.weights().items()
    }
    # The first step of Adam is as long as the rate, whatever the gradient.
    for name, share in (
        ("encoder.preprocessor.pos_embed", 0.5**4),
        ("encoder.trunk.blocks.0.attn.qkv.weight", 0.5**3),
        ("encoder.trunk.blocks.2.mlp.fc2.weight", 0.5),
        ("encoder.trunk.post_trunk_norm.weight", 1.0),
        ("head.linear.weight", 1.0),
    ):
        assert moved[name] == pytest.approx(1e-4 * share, rel=0.05), name


def test_the_best_epoch_is_kept_and_the_last_ones_end_it(digits):
    trainer = trainer_of(digits, epochs=30, patience=2, learning_rate=0.05, warmup=0.0)
    kept = {}
    while not trainer.done:
        if trainer.run_step():
            kept[len(trainer.history)] = numbers(trainer.weights())
    trainer.close()
    best = trainer.best
    assert best is not None and len(trainer.history) == best.epoch + 2 < 30
    ours = numbers(trainer.best_weights())
    assert all(np.array_equal(ours[name], kept[best.epoch][name]) for name in ours)


def test_half_precision_trains_float32_weights(digits):
    trainer = trainer_of(digits, dtype=mx.bfloat16)
    run(trainer, 2)
    assert {value.dtype for value in trainer.weights().values()} == {mx.float32}
    assert trainer._networks[0].encoder.trunk.blocks[0].mlp.fc1.weight.dtype == mx.bfloat16
    first = trainer_of(digits, dtype=mx.bfloat16, dropout=0.0)
    half, whole = gradient(first), gradient(trainer_of(digits, dropout=0.0))
    assert largest_relative(half, whole) < 0.2  # eight bits of mantissa, through three blocks


def test_mixed_images_have_the_loss_of_both_labels(digits):
    trainer = trainer_of(digits, dropout=0.0, batch_size=20, mixup=0.4)
    batch, alone = trainer._batches.batch(0), trainer_of(digits, batch_size=20)._batches.batch(0)
    assert 0 < batch.share < 1 and np.array_equal(batch.others.values, batch.targets.values[::-1])
    mixed = batch.share * alone.pixels + (1 - batch.share) * alone.pixels[::-1]
    assert np.abs(batch.pixels - mixed).max() < 1e-5
    rows = trainer._train.batch(0, slice(3, 7))  # as another process has them
    assert np.array_equal(rows.pixels, batch.pixels[3:7])

    def loss(network):
        logits = network(mx.array(batch.pixels))
        own, other = loss_sum(logits, batch.targets), loss_sum(logits, batch.others)
        return (batch.share * own + (1 - batch.share) * other) / len(batch.pixels)

    wanted, tree = nn.value_and_grad(trainer.model, loss)(trainer.model)
    ours, _ = trainer._batch_gradient(batch)
    assert ours == pytest.approx(float(wanted), rel=1e-5)
    assert largest_relative(gradient(trainer), numbers(dict(tree_flatten(tree)))) < 1e-4


def test_a_rate_that_explodes_is_named_before_the_epoch_ends(digits):
    warnings = []
    trainer = trainer_of(digits, warn=warnings.append, learning_rate=10.0, warmup=0.0, batch_size=6)
    run(trainer, 12)
    assert len(warnings) == 1 and "the learning rate is too high" in warnings[0]
    assert "below 3" in warnings[0] and len(trainer.history) == 0
    calm = trainer_of(digits, warn=warnings.append, batch_size=6)
    run(calm, 12)
    assert len(warnings) == 1


def test_measuring_a_step_moves_nothing(digits):
    trainer, other = trainer_of(digits), trainer_of(digits)
    seconds, peak = trainer.measure()
    assert seconds > 0 and peak > 100_000
    run(trainer, 2)
    run(other, 2)
    ours, theirs = numbers(trainer.state()), numbers(other.state())
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_validation_leaves_nothing_out(digits):
    trainer = trainer_of(digits, dropout=0.5)
    trainer.run_step()
    data = trainer._validation
    network = trainer.model
    wanted = np.array(network(mx.array(data.fixed(np.arange(len(data))))))
    # Ten times the largest difference seen: other batches, so sums in another order.
    assert np.abs(trainer.logits(data) - wanted).max() < 1e-4
    trainer.close()


def test_gains_biases_queries_and_positions_do_not_decay(digits):
    trainer = trainer_of(digits, full=True)
    trainer.close()
    still = {name for name in trainer.weights() if not decays(name)}
    assert {"head.cls_token", "head.linear.bias", "encoder.preprocessor.pos_embed"} <= still
    assert len([name for name in still if "norm" in name]) == 8
    assert len(still) == 12  # with the bias of the patches
    lora = trainer_of(digits)
    lora.close()
    assert {name for name in lora.weights() if not decays(name)} == {
        "head.cls_token", "head.linear.bias",
    }  # fmt: skip


def test_each_core_has_weights_of_its_own_to_trace(digits, monkeypatch):
    """MLX puts tracers into the tree that it is given: another thread would take those."""
    monkeypatch.setattr("aim_mlx.finetune.trainer._SHARE_PATCHES", 1)
    monkeypatch.setattr("aim_mlx.finetune.trainer.concurrency", lambda most: 2)
    monkeypatch.setattr("aim_mlx.training.shares.concurrency", lambda most: 2)
    trainer, given = trainer_of(digits, dropout=0.0), []
    for number, function in enumerate(trainer._gradients):

        def noted(weights, *rest, function=function):
            given.append(weights)
            return function(weights, *rest)

        trainer._gradients[number] = noted
    shared = gradient(trainer)
    assert len(given) == 2 and given[0] is not given[1]
    assert given[0]["head"] is not given[1]["head"]
    monkeypatch.undo()
    assert largest_relative(shared, gradient(trainer_of(digits, dropout=0.0))) < 1e-4
