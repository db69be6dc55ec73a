"""The steps of pre-training on small pictures."""

import numpy as np
import pytest

from aim_mlx.backend import mx, nn, tree_flatten
from aim_mlx.errors import AimError, UsageError
from aim_mlx.pretrain.config import PretrainConfig
from aim_mlx.pretrain.losses import counts, losses
from aim_mlx.pretrain.trainer import PretrainTrainer
from tests.pretraining import pairs_in, trainer_of


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pairs_in(tmp_path_factory.mktemp("pictures"))


def parameters(trainer: PretrainTrainer) -> dict[str, np.ndarray]:
    return flat(trainer.model.parameters())


def gradient(trainer: PretrainTrainer) -> dict[str, np.ndarray]:
    return flat(trainer._batch_gradient(trainer.train.batch(0))[1])


def flat(tree) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(tree)}


def run(trainer: PretrainTrainer, steps: int) -> PretrainTrainer:
    for _ in range(steps):
        trainer.run_step()
    trainer.close()
    return trainer


def largest_relative(first, second) -> float:
    return max(
        float(np.linalg.norm(first[name] - second[name]) / (np.linalg.norm(second[name]) + 1e-12))
        for name in second
    )


def test_both_losses_fall(pairs):
    trainer = trainer_of(pairs, pairs, batch_size=12, epochs=30, learning_rate=6e-3, flip=False)
    before = trainer.validation_losses()
    run(trainer, trainer.steps)
    after = trainer.validation_losses()
    assert trainer.done and trainer.history[-1]["step"] == 30
    assert after["val_pixel_loss"] < 0.75 * before["val_pixel_loss"]
    assert after["val_text_loss"] < 0.4 * before["val_text_loss"]
    assert trainer.history[-1]["loss"] < 0.5 * trainer.history[0]["loss"]


def test_the_losses_are_means_over_what_counts(pairs):
    trainer = trainer_of(pairs, pairs, batch_size=12)
    batch, model = trainer.train.batch(0), trainer.model

    def means(batch):
        patches, tokens = counts(batch, 16)
        pixels, text = losses(model, *batch.arrays())
        return pixels / patches, text / tokens

    def loss(batch):
        pixels, text = means(batch)
        return 0.4 * pixels + text

    found, ours = trainer._batch_gradient(batch)
    assert found == pytest.approx([float(each) for each in means(batch)], rel=1e-5)
    expected = dict(tree_flatten(nn.value_and_grad(model, loss)(batch)[1]))
    assert largest_relative(flat(ours), {n: np.array(v) for n, v in expected.items()}) < 1e-4
    pixels, text = (float(each) for each in means(trainer.train.fixed(np.arange(12))))
    validation = trainer.validation_losses()
    assert validation == pytest.approx({"val_pixel_loss": pixels, "val_text_loss": text}, rel=1e-5)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(pairs):
    whole = gradient(trainer_of(pairs, batch_size=12))
    # float32 sums in another order.
    assert largest_relative(gradient(trainer_of(pairs, batch_size=12, parts=5)), whole) < 1e-4


def test_blocks_computed_again_give_the_same_gradient(pairs):
    whole = gradient(trainer_of(pairs))
    assert largest_relative(gradient(trainer_of(pairs, checkpointed=True)), whole) < 1e-5


def test_a_resumed_run_has_the_same_bits(pairs, monkeypatch):
    monkeypatch.setattr("aim_mlx.pretrain.trainer._RECORDS", 3)  # so that one is under way
    monkeypatch.setattr("aim_mlx.pretrain.trainer._EVALUATIONS", 2)
    whole = run(trainer_of(pairs, pairs, epochs=4), 12)
    first = run(trainer_of(pairs, pairs, epochs=4), 5)
    state = {name: mx.array(np.array(value)) for name, value in first.state().items()}
    second = trainer_of(pairs, pairs, epochs=4)
    second.restore(state, first.step, first.history)
    run(second, 7)
    ours, theirs = parameters(second), parameters(whole)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert second.history == whole.history and [r["step"] for r in whole.history] == [4, 6, 8, 12]


def test_a_trainer_that_is_set_back_sees_the_same_batches(pairs):
    trainer = trainer_of(pairs, epochs=4)
    start = {name: mx.array(np.array(value)) for name, value in trainer.state().items()}
    for _ in range(2):
        trainer.run_step()
    first = parameters(trainer)
    trainer.restore(start, 0, [])
    second = parameters(run(trainer, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "objective, untouched",
    [("pixels", "decoder.text"), ("captions", "decoder.pixel_head"), ("both", None)],
)
def test_an_objective_trains_what_it_needs(pairs, objective, untouched):
    found = gradient(trainer_of(pairs, captions=objective != "pixels", objective=objective))
    still = {name for name, value in found.items() if not value.any()}
    others = {"decoder.bos", "decoder.positional_embedding"} if objective == "pixels" else set()
    expected = {name for name in found if untouched and name.startswith(untouched)} | others
    assert still == expected


def test_validation_does_not_depend_on_the_size_of_batches(pairs):
    first = trainer_of(pairs, pairs, batch_size=12).validation_losses()
    second = trainer_of(pairs, pairs, batch_size=12, parts=3).validation_losses()
    assert first == pytest.approx(second, rel=1e-5)
    assert trainer_of(pairs).validation_losses() == {}


def test_of_many_pictures_a_sample_is_validated_not_the_first(pairs, monkeypatch):
    monkeypatch.setattr("aim_mlx.pretrain.trainer._LARGEST_VALIDATION", 4)
    trainer, seen = trainer_of(pairs, pairs), []
    assert trainer.validation is not None
    fixed = trainer.validation.fixed
    monkeypatch.setattr(
        trainer.validation, "fixed", lambda images: (seen.extend(images), fixed(images))[1]
    )
    trainer.validation_losses()
    trainer.validation_losses()
    assert seen[:4] == seen[4:] and len(set(seen)) == 4  # the same every time
    assert sorted(seen[:4]) != [0, 1, 2, 3]


# 11 and 8 bits of a number: 0.002 and 0.021 are seen.
@pytest.mark.parametrize("dtype, most", [(mx.float16, 0.01), (mx.bfloat16, 0.06)])
def test_half_precision_keeps_masters_in_float32(pairs, dtype, most):
    exact, half = trainer_of(pairs), trainer_of(pairs, dtype=dtype)
    before = parameters(half)
    expected, actual = gradient(exact), gradient(half)
    assert all(np.array_equal(value, before[name]) for name, value in parameters(half).items())
    assert largest_relative(actual, expected) < most
    run(half, 1)
    assert all(value.dtype == np.float32 for value in parameters(half).values())


def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(pairs):
    trainer = trainer_of(pairs)
    trainer.model.decoder.pixel_head.weight = trainer.model.decoder.pixel_head.weight * 1e30
    before = parameters(trainer)
    with pytest.raises(AimError, match="--learning-rate below"):
        trainer.run_step()
    after = parameters(trainer)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert trainer.step == 0


@pytest.mark.parametrize(
    "options",
    [{"config": "huge"}, {"objective": "words"}, {"batch_size": 0}, {"parts": 0}, {"jitter": 2.0}]
    + [{"smallest_crop": 0.0}, {"learning_rate": float("nan")}],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", " ")):
        PretrainConfig(**{"batch_size": 4, **options})


def test_each_core_has_weights_of_its_own_to_trace(pairs, monkeypatch):
    """MLX puts tracers into the tree that it is given: another thread would take those."""
    monkeypatch.setattr("aim_mlx.pretrain.trainer._SHARE", 2)
    monkeypatch.setattr("aim_mlx.pretrain.trainer.concurrency", lambda most: 2)
    monkeypatch.setattr("aim_mlx.training.shares.concurrency", lambda most: min(most, 2))
    trainer, given = trainer_of(pairs), []
    for number, function in enumerate(trainer._gradients):

        def noted(weights, *rest, function=function):
            given.append(weights)
            return function(weights, *rest)

        trainer._gradients[number] = noted
    gradient(trainer)
    assert len(given) == 2 and given[0]["encoder"] is not given[1]["encoder"]
