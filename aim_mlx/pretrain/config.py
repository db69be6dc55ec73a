"""The sizes that can be pre-trained, and what else decides a run.

The command line's options and their help are made from it.
"""

from dataclasses import dataclass

from aim_mlx.config import TextConfig, VisionConfig
from aim_mlx.training.options import check_options, option
from aim_mlx.training.schedule import warm_cosine

OBJECTIVES = ("both", "pixels", "captions")
_FINAL_RATE = 1e-5
CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class Sizes:
    """Of an encoder (D, F, blocks, heads, image side), of its decoder, and of the vocabulary."""

    encoder: tuple[int, int, int, int, int]
    decoder: tuple[int, int, int, int]
    vocab_size: int


# Large is as published, with the decoder of all published sizes; base is of the reference's code.
# Nano and small keep large's proportions (F = 2.75 D) with heads of 64 channels: of 128, nano would
# have one and a half. The paper finds that the decoder's depth hardly matters: nano has two blocks,
# as with four a step costs a third more.
CONFIGS = {
    "nano": Sizes((192, 528, 6, 3, 112), (192, 528, 2, 3), 8_192),
    "small": Sizes((384, 1056, 12, 6, 224), (384, 1056, 6, 6), 16_384),
    "base": Sizes((768, 2048, 12, 6, 224), (1024, 2816, 12, 8), 32_000),
    "large": Sizes((1024, 2816, 24, 8, 224), (1024, 2816, 12, 8), 32_000),
}


def vision_config(name: str) -> VisionConfig:
    """The encoder of a configuration."""
    *sizes, side = CONFIGS[name].encoder
    return VisionConfig(*sizes, image_size=side)


def decoder_config(name: str, vocab_size: int, eos_token_id: int) -> TextConfig:
    """The decoder of a configuration."""
    return TextConfig(*CONFIGS[name].decoder, vocab_size, CONTEXT_LENGTH, eos_token_id)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the result beside the pairs and the weights to start from.

    The defaults are the published recipe's (arXiv 2411.14402, table A1) but for the length of the
    run and the batches. Raises UsageError for values that cannot be.
    """

    config: str = option("nano", f"Size: {', '.join(CONFIGS)}.", among=tuple(CONFIGS))
    objective: str = option("both", "Predict pixels, captions or both.", among=OBJECTIVES)
    epochs: int = option(100, "Passes over the images.", 1, 10**6)
    batch_size: int = option(128, "Images in a step.", 1, 10**6)
    parts: int = option(1, "Compute a step in so many parts, to save memory.", 1, 10**6)
    checkpointed: bool = option(False, "Compute blocks again for the gradient, to save memory.")
    learning_rate: float = option(1e-3, "The highest, after the warm-up.", 0, 10)
    weight_decay: float = option(
        1e-4, "Of the matrices; gains, biases and positions have none.", 0, 100
    )
    warmup: float = option(0.01, "Fraction of the steps in which the learning rate rises.", 0, 1)
    clip_norm: float = option(1.0, "The largest norm of a step's gradient.", 1e-6, 1e6)
    # 0.2 to 0.6 are as good (arXiv 2411.14402, table 5).
    alpha: float = option(0.4, "Weight of the pixels, beside 1 for the captions.", 0, 1000)
    smallest_crop: float = option(0.4, "Fraction of an image that a crop shows at least.", 0.01, 1)
    flip: bool = option(True, "Mirror half of the images; wrong for letters and arrows.")
    jitter: float = option(0.0, "Most that brightness, contrast and saturation change.", 0, 1)
    vocab_size: int = option(
        0, "Tokens to learn from the captions; 0: as many as the size says.", 0, 2**20
    )
    held_out: float = option(0.05, "Fraction of the images that is kept for validation.", 0, 0.9)
    seed: int = option(
        0, "Decides the split, the first weights, the order and the views.", 0, 2**63 - 1
    )

    def __post_init__(self):
        check_options(self)

    @property
    def weights(self) -> tuple[float, float]:
        """What the pixel and the text loss weigh."""
        return {"both": (self.alpha, 1.0), "pixels": (1.0, 0.0), "captions": (0.0, 1.0)}[
            self.objective
        ]

    @property
    def peak_rate(self) -> float:
        return self.learning_rate

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 to steps - 1."""
        warmup = round(self.warmup * steps)
        return warm_cosine(step, steps, warmup, self.learning_rate, _FINAL_RATE)
