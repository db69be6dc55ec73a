"""What decides a LiT training; the command line's options and their help are made from it."""

from dataclasses import dataclass

from aim_mlx.training.options import check_options, option
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
    "nano": TextSize(128, 352, 1, 2, 6_144, 128),  # for names and phrases, not for sentences
    "tiny": TextSize(128, 352, 4, 2, 8_192, 128),
    "base": TextSize(768, 2048, 12, 6, 49_408, 768),  # of the published LiT model
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result beside the pairs and the image tower.

    Raises UsageError for values that cannot be.
    """

    text_config: str = option(
        "tiny", "Size of the text tower: nano, tiny, or base as published.", among=tuple(TEXT_SIZES)
    )
    epochs: int = option(20, "Passes over the pairs.", 1, 10**6)
    batch_size: int = option(
        256, "Pairs in a step, each of which is compared with all others.", 2, 10**6
    )
    learning_rate: float = option(1e-3, "The highest, after the warm-up.", 0, 10)
    weight_decay: float = option(
        0.1, "Of the matrices; gains, biases and positions have none.", 0, 100
    )
    warmup: float = option(0.1, "Fraction of the steps in which the learning rate rises.", 0, 1)
    clip_norm: float = option(1.0, "The largest norm of a step's gradient.", 0)
    held_out: float = option(0.1, "Fraction of the images that is kept for evaluation.", 0, 0.9)
    seed: int = option(0, "Decides the split, the first weights and the order.", 0, 2**63 - 1)

    def __post_init__(self):
        check_options(self)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of step 0 to steps - 1: linear up over the warm-up, then a cosine down to zero."""
    return warm_cosine(step, steps, round(config.warmup * steps), config.learning_rate)
