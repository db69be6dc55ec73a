"""The sizes that can be pre-trained, and how their networks start."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.config import TextConfig, VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.models.decoder import PretrainingConfig, PretrainingModel
from aim_mlx.weights.initial import initial_tensor

CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class Sizes:
    """Of an encoder (D, F, blocks, heads, image side), of its decoder, and of the vocabulary."""

    encoder: tuple[int, int, int, int, int]
    decoder: tuple[int, int, int, int]
    vocab_size: int


# Large is as published, with the decoder of all published sizes; base is of the reference's code.
# Nano and small keep large's proportions (F = 2.75 D) with heads of 64 channels: of 128, nano would
# have one and a half. Nano's 8 x 8 patches take four blocks of decoder as well as twelve: the paper
# finds that its depth hardly matters.
CONFIGS = {
    "nano": Sizes((192, 528, 6, 3, 112), (192, 528, 4, 3), 8_192),
    "small": Sizes((384, 1056, 12, 6, 224), (384, 1056, 6, 6), 16_384),
    "base": Sizes((768, 2048, 12, 6, 224), (1024, 2816, 12, 8), 32_000),
    "large": Sizes((1024, 2816, 24, 8, 224), (1024, 2816, 12, 8), 32_000),
}


def vision_config(name: str) -> VisionConfig:
    """The encoder of a configuration; raises UsageError for an unknown name."""
    if name not in CONFIGS:
        raise UsageError(f"config must be one of {', '.join(CONFIGS)}, got {name!r}")
    *sizes, side = CONFIGS[name].encoder
    return VisionConfig(*sizes, image_size=side)


def decoder_config(name: str, vocab_size: int, eos_token_id: int) -> TextConfig:
    """The decoder of a configuration."""
    return TextConfig(*CONFIGS[name].decoder, vocab_size, CONTEXT_LENGTH, eos_token_id)


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


def decays(name: str, _: object = None) -> bool:
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
