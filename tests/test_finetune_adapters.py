"""Low-rank adapters in the encoder and on disk."""

import json
from typing import Any

import numpy as np
import pytest

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.config import TARGETS, LoRAConfig
from aim_mlx.encoder.adapted import adapted
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models.adapters import adapt, adapter_shapes, initial_adapters
from aim_mlx.weights.adapters import ADAPTER_CONFIG, ADAPTERS, Adapter, read_adapter, write_adapter
from tests.small import SMALL, encoder, noisy

LORA = LoRAConfig(4, 2.0, ("q", "k", "v", "proj"), 3)
EVERYWHERE = LoRAConfig(4, 0.5, TARGETS, 2)


def pixels() -> mx.array:
    return mx.array(np.random.default_rng(1).standard_normal((2, 56, 56, 3), np.float32))


def noise(lora: LoRAConfig, seed: int = 0) -> dict[str, mx.array]:
    rng = np.random.default_rng(seed)
    return {
        name: mx.array(rng.normal(0, 0.2, shape).astype(np.float32))
        for name, shape in adapter_shapes(SMALL, lora).items()
    }


def with_adapters(lora: LoRAConfig, tensors):
    network = noisy(SMALL)
    adapt(network, lora, tensors)
    return network


def tokens(network) -> np.ndarray:
    return np.array(network(pixels()).tokens)


@pytest.mark.parametrize("lora", [LORA, EVERYWHERE])
def test_new_adapters_leave_the_output_as_it_is_to_the_bit(lora):
    assert np.array_equal(
        tokens(with_adapters(lora, initial_adapters(SMALL, lora, 0))), tokens(noisy(SMALL))
    )


@pytest.mark.parametrize("lora", [LORA, EVERYWHERE, LoRAConfig(2, 1.0, ("v", "q"), 3)])
def test_merged_weights_give_what_the_adapters_do(lora):
    base, tensors = encoder(), noise(lora)
    ours = adapted(base, Adapter(lora, tensors, base.weights_digest, "small"))
    beside = tokens(with_adapters(lora, tensors))
    # Ten times the largest difference seen: float32 sums in another order, through three blocks.
    assert np.abs(tokens(ours.model) - beside).max() < 1e-4
    assert np.abs(tokens(base.model) - beside).max() > 0.1
    assert ours.weights_digest not in (base.weights_digest, encoder(seed=1).weights_digest)


def test_only_the_adapters_are_trained():
    network = with_adapters(EVERYWHERE, noise(EVERYWHERE))
    trained = {n: v.shape for n, v in dict(tree_flatten(network.trainable_parameters())).items()}
    assert trained == adapter_shapes(SMALL, EVERYWHERE)
    assert not any(".0." in name for name in trained)  # the last two of three blocks


def test_dropout_leaves_out_what_its_key_decides():
    lora = LoRAConfig(4, 2.0, ("q", "proj"), 3, dropout=0.5)
    network = with_adapters(lora, noise(lora))
    layer: Any = network.trunk.blocks[0].attn.proj
    x = mx.ones((1, 4, 64))
    still = np.array(layer(x))
    layer.draw(mx.random.key(1))
    first, again = np.array(layer(x)), np.array(layer(x))
    layer.draw(mx.random.key(2))
    other = np.array(layer(x))
    layer.draw(None)
    assert np.array_equal(first, again) and np.array_equal(np.array(layer(x)), still)
    assert np.abs(first - still).max() > 0.1 and np.abs(first - other).max() > 0.1


def test_dropout_changes_nothing_on_average():
    lora = LoRAConfig(4, 2.0, ("proj",), 3, dropout=0.3)
    layer: Any = with_adapters(lora, noise(lora)).trunk.blocks[0].attn.proj
    x = mx.ones((1, 4000, 64))
    still = np.array(layer(x)).mean(axis=(0, 1))
    layer.draw(mx.random.key(1))
    dropped = np.array(layer(x))
    # Four standard errors of the mean of 4,000 tokens.
    assert (np.abs(dropped.mean(axis=(0, 1)) - still) < 4 * dropped.std(axis=(0, 1)) / 63).all()


@pytest.mark.parametrize("lora", [LORA, EVERYWHERE, None])
def test_an_adapter_comes_back_from_its_folder_as_it_was(tmp_path, lora):
    base = encoder()
    weights = dict(tree_flatten(encoder(seed=1).model.parameters()))
    tensors = noise(lora) if lora else {n: weights[n] for n in list(weights)[3:9]}
    written = write_adapter(tmp_path, Adapter(lora, tensors, base.weights_digest, "small"))
    read = read_adapter(tmp_path, SMALL)
    assert (read.lora, read.weights, read.model, read.digest) == (
        lora, base.weights_digest, "small", written.digest,
    )  # fmt: skip
    assert read.tensors.keys() == tensors.keys()
    assert all(np.array_equal(read.tensors[name], tensors[name]) for name in tensors)
    ours = adapted(base, read)
    assert ours.weights_digest == adapted(base, written).weights_digest
    with pytest.raises(CheckpointError, match="belongs to 'small'"):
        adapted(encoder(seed=2), read)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v.update(num_layers=4), "num_layers is 4, of 3 blocks"),
        (lambda v: v["lora_parameters"].update(rank=5), "wrong shape"),
        (lambda v: v["lora_parameters"].update(keys=["x"]), "keys are"),
        (lambda v: v["lora_parameters"].update(keys=["q", "k", "v"]), "unexpected tensor"),
        (lambda v: v["lora_parameters"].update(scale="2"), "scale is"),
        (lambda v: v["aim_mlx"].update(sha256="0"), "is not the file"),
        (lambda v: v.pop("aim_mlx"), "'aim_mlx'"),
    ],
)
def test_an_adapter_that_is_not_sound_is_refused(tmp_path, change, words):
    write_adapter(tmp_path, Adapter(LORA, noise(LORA), "0" * 64, "small"))
    values = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    change(values)
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=words):
        read_adapter(tmp_path, SMALL)


def test_numbers_that_are_not_finite_and_missing_folders_are_refused(tmp_path):
    tensors = noise(LORA)
    tensors["trunk.blocks.0.attn.proj.lora_a"] = mx.full((64, 4), float("nan"))
    write_adapter(tmp_path, Adapter(LORA, tensors, "0" * 64, "small"))
    with pytest.raises(CheckpointError, match="finite float32"):
        read_adapter(tmp_path, SMALL)
    (tmp_path / ADAPTERS).unlink()
    (tmp_path / ADAPTER_CONFIG).unlink()
    with pytest.raises(UsageError, match="aim-mlx finetune wrote"):
        read_adapter(tmp_path, SMALL)
