"""What a training run can be told; the command line's options and their help are made from it."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from aim_mlx.errors import UsageError
from aim_mlx.training.schedule import warm_cosine

CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class TextSize:
    """Sizes of a text tower, the largest vocabulary learned for it, and the projection's width."""

    embed_dim: int
    mlp_hidden_dim: int
    num_blocks: int
    num_heads: int
    vocab_size: int
    projection_dim: int


TEXT_SIZES = {
    "tiny": TextSize(128, 352, 4, 2, 8_192, 128),
    "base": TextSize(768, 2048, 12, 6, 49_408, 768),  # of the published LiT model
}


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result beside the pairs and the image tower.

    Raises UsageError for values that cannot be.
    """

    text_config: str = _option("tiny", "Size of the text tower: tiny, or base as published.")
    epochs: int = _option(20, "Passes over the pairs.")
    batch_size: int = _option(256, "Pairs in a step; each is told apart from all the others.")
    learning_rate: float = _option(1e-3, "The highest, after the warm-up.")
    weight_decay: float = _option(0.1, "Of the matrices; gains, biases and positions have none.")
    warmup: float = _option(0.1, "The part of the steps in which the learning rate rises.")
    clip_norm: float = _option(1.0, "The largest norm of a step's gradient.")
    held_out: float = _option(0.1, "The part of the images that is kept for evaluation.")
    seed: int = _option(0, "Decides the split, the first weights and the order.")

    def __post_init__(self):
        if self.text_config not in TEXT_SIZES:
            raise UsageError(
                f"text config must be one of {', '.join(TEXT_SIZES)}, got {self.text_config!r}"
            )
        for name, low, high in (
            ("epochs", 1, 10**6),
            ("batch_size", 2, 10**6),
            ("learning_rate", 0, 10),
            ("weight_decay", 0, 100),
            ("warmup", 0, 1),
            ("clip_norm", 0, math.inf),
            ("held_out", 0, 0.9),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                words = name.replace("_", " ")
                raise UsageError(f"{words} must be from {low:g} to {high:g}, got {value!r}")


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of step 0 to steps - 1: linear up over the warm-up, then a cosine down to zero."""
    return warm_cosine(step, steps, round(config.warmup * steps), config.learning_rate)


def option_names() -> list[str]:
    """The names of all options."""
    return [each.name for each in fields(TrainConfig)]
