"""How a network starts, and what of it weight decay pulls at."""

from collections.abc import Mapping

import numpy as np

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.models.decoder import PretrainingConfig, PretrainingModel
from aim_mlx.weights.initial import initial_tensor


def new_model(
    config: PretrainingConfig, seed: int, encoder: Mapping[str, mx.array] | None = None
) -> PretrainingModel:
    """A network as pre-training starts it, float32; `encoder` has the weights to go on from."""
    model = PretrainingModel(config)
    tensors = dict(tree_flatten(model.parameters()))
    given = {f"encoder.{name}": value for name, value in (encoder or {}).items()}
    weights = []
    for index, (name, value) in enumerate(tensors.items()):
        start = given.get(name)
        if start is None:
            rng = np.random.default_rng([seed, index])
            start = mx.array(_initial(name, value.shape, config.decoder.num_blocks, rng))
        weights.append((name, start.astype(mx.float32)))
    model.load_weights(weights, strict=True)
    mx.eval(model.parameters())
    mx.eval(mx.random.state)  # making the layers drew numbers that were never computed
    return model


def decays(name: str) -> bool:
    """Whether weight decay pulls at a parameter: not at gains, biases, positions and BOS."""
    return name.endswith(".weight") and "norm" not in name


def _initial(
    name: str, shape: tuple[int, ...], decoder_blocks: int, rng: np.random.Generator
) -> np.ndarray:
    """As in the training code, apple/ml-l3m: text positions are smaller than other embeddings, and
    heads of truncated normals, whose variance falls with the decoder's depth."""
    if name.endswith("positional_embedding"):
        return rng.standard_normal(shape, np.float32) * np.float32(0.01)
    if name.endswith("head.weight"):
        return _truncated_normal(rng, shape, (1 / (1 + decoder_blocks) / shape[1]) ** 0.5)
    return initial_tensor("embedding" if name.endswith("bos") else name, shape, rng)


# The standard deviation of a standard normal between -2 and 2.
_TRUNCATED = 0.87962566103423978


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()), np.float32)
    return values * np.float32(std / _TRUNCATED)
