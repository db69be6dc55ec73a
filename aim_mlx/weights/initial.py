"""Random weights of any size, to try things out before real ones are there."""

import math
from collections.abc import Container, Iterator

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.config import LiTConfig, VisionConfig
from aim_mlx.weights.sizes import expected_shapes


def initial_weights(
    config: VisionConfig | LiTConfig, seed: int, wanted: Container[str] | None = None
) -> Iterator[tuple[str, mx.array]]:
    """Pairs of name and float32 array, one at a time, the same for the same seed everywhere.

    `wanted` None is all of them.

    Xavier-uniform products, N(0, 0.02) embeddings, positions and queries, gains of one, biases of
    zero: the initialisation of the training code, apple/ml-l3m. LiT's logit scale starts at 1/0.07.
    """
    for index, (name, shape) in enumerate(expected_shapes(config).items()):
        if wanted is None or name in wanted:
            rng = np.random.default_rng([seed, index])
            yield name, mx.array(initial_tensor(name, shape, rng))


def initial_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """What a tensor of this name starts from, float32."""
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if "norm" in name:
        return np.ones(shape, np.float32)
    if name == "log_logit_scale":
        return np.array(math.log(1 / 0.07), np.float32)
    if name.endswith(("pos_embed", "embedding", "text_embedding.weight", "cls_token")):
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)
    fan_out, fan_in = shape[0], int(np.prod(shape[1:]))
    limit = np.float32((6 / (fan_in + fan_out)) ** 0.5)
    return (rng.random(shape, np.float32) * 2 - 1) * limit
