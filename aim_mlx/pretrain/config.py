"""What decides a pre-training run; the command line's options and their help are made from it."""

import math
from dataclasses import dataclass, field
from typing import Any

from aim_mlx.errors import UsageError
from aim_mlx.pretrain.losses import ALPHA
from aim_mlx.pretrain.model import CONFIGS
from aim_mlx.training.schedule import warm_cosine

OBJECTIVES = ("both", "pixels", "captions")
_FINAL_RATE = 1e-5


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the result beside the pairs and the weights to start from.

    The defaults are the published recipe's (arXiv 2411.14402, table A1) but for the length of the
    run. Raises UsageError for values that cannot be.
    """

    config: str = _option("nano", f"Size of the model: {', '.join(CONFIGS)}.")
    objective: str = _option("both", "What to predict: pixels, captions, or both.")
    epochs: int = _option(100, "Passes over the images.")
    batch_size: int = _option(128, "Images in a step.")
    parts: int = _option(1, "Parts that a step is computed in, to save memory.")
    checkpointed: bool = _option(False, "Save memory: compute blocks again for the gradient.")
    learning_rate: float = _option(1e-3, "The highest, after the warm-up.")
    weight_decay: float = _option(1e-4, "Of the matrices; gains, biases and positions have none.")
    warmup: float = _option(0.01, "Fraction of the steps in which the learning rate rises.")
    clip_norm: float = _option(1.0, "The largest norm of a step's gradient.")
    alpha: float = _option(ALPHA, "Weight of the pixels, beside 1 for the captions.")
    smallest_crop: float = _option(0.4, "Fraction of an image that a random crop shows at least.")
    flip: bool = _option(True, "Mirror half of the images; wrong for letters and arrows.")
    jitter: float = _option(0.0, "Most that brightness, contrast and saturation change.")
    vocab_size: int = _option(0, "Tokens to learn from the captions; 0: as the size says.")
    held_out: float = _option(0.05, "Fraction of the images that is kept for validation.")
    seed: int = _option(0, "Decides the split, the first weights, the order and the views.")

    def __post_init__(self):
        for name, known in (("config", CONFIGS), ("objective", OBJECTIVES)):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name, low, high in (
            ("epochs", 1, 10**6),
            ("batch_size", 1, 10**6),
            ("parts", 1, self.batch_size),
            ("learning_rate", 0, 10),
            ("weight_decay", 0, 100),
            ("warmup", 0, 1),
            ("clip_norm", 0, math.inf),
            ("alpha", 0, 1000),
            ("smallest_crop", 0.01, 1),
            ("jitter", 0, 1),
            ("vocab_size", 0, 2**20),
            ("held_out", 0, 0.9),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                words = name.replace("_", " ")
                raise UsageError(f"{words} must be from {low:g} to {high:g}, got {value!r}")

    @property
    def weights(self) -> tuple[float, float]:
        """What the pixel and the text loss weigh."""
        return {
            "both": (self.alpha, 1.0),
            "pixels": (1.0, 0.0),
            "captions": (0.0, 1.0),
        }[self.objective]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 to steps - 1."""
        warmup = round(self.warmup * steps)
        return warm_cosine(step, steps, warmup, self.learning_rate, _FINAL_RATE)
