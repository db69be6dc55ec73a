"""What decides a fine-tuning beside the images, their labels and the encoder.

The command line's options and their help are made from it.
"""

from dataclasses import dataclass, replace

from aim_mlx.config import TARGETS, LoRAConfig, VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.probe.config import KINDS
from aim_mlx.training.options import check_options, option
from aim_mlx.training.schedule import warm_cosine

_RATES, _WIDTH = {"lora": 5e-4, "full": 1e-4}, 1024  # large's
_FINAL_RATE = 1e-6
_MANY = 10**6


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides the result beside the data, the encoder and a probe to start from.

    Raises UsageError for values that cannot be.
    """

    full: bool = option(False, "Train the encoder's own weights instead of low-rank adapters.")
    last_blocks: int = option(0, "Adapt or train only so many blocks; 0: all.", 0, 1024)
    rank: int = option(8, "Channels of an adapter (LoRA).", 1, 1024)
    alpha: float = option(16.0, "An adapter counts alpha / rank times.", 0, _MANY)
    targets: tuple[str, ...] = option(
        TARGETS[:4], "What has adapters: of q,k,v,proj,mlp.", among=TARGETS
    )
    dropout: float = option(0.1, "Fraction of the adapters' inputs left out in training.", 0, 0.9)
    head: str = option(
        "attentive",
        "Without a probe: attentive, coca, ep, or mean or max: linear on pooled tokens.",
        among=KINDS,
    )
    learning_rate: float | None = option(
        None,
        "The highest, after the warm-up.  [default: 5e-4, with --full 1e-4, times 1024 / width]",
        0,
        10,
    )
    layer_decay: float = option(
        0.9, "With --full each block learns this much slower than the next.", 0.01, 1
    )
    weight_decay: float = option(
        0.05, "Of the matrices; gains, biases, queries and positions have none.", 0, 100
    )
    epochs: int = option(20, "Passes over the images.", 1, _MANY)
    batch_size: int = option(32, "Images in a step.", 1, _MANY)
    parts: int = option(
        0, "Compute a step in so many parts, to save memory; 0: as many as it takes.", 0, _MANY
    )
    checkpointed: bool = option(False, "Compute blocks again for the gradient, to save memory.")
    warmup: float = option(0.1, "Fraction of the steps in which the learning rate rises.", 0, 1)
    clip_norm: float = option(3.0, "The largest norm of a step's gradient.", 1e-6, _MANY)
    label_smoothing: float = option(
        0.0, "Fraction of a target that is spread over all classes.", 0, 0.99
    )
    balanced: bool = option(False, "Every class counts the same, in loss and choice.")
    smallest_crop: float = option(0.4, "Fraction of an image that a crop shows at least.", 0.01, 1)
    flip: bool = option(True, "Mirror half of the images; wrong for letters and arrows.")
    jitter: float = option(0.3, "Most that brightness, contrast and saturation change.", 0, 1)
    randaugment: bool = option(False, "Further changes of colour and shape (m9, mstd 0.5).")
    mixup: float = option(
        0.0, "Mix images in pairs, by Beta(this, this), and their labels; 0: not.", 0, 100
    )
    patience: int = option(6, "Epochs without a better one until it stops; 0: never.", 0, _MANY)
    seed: int = option(
        0, "Decides the split, the first weights, the order, the views and dropout.", 0, 2**63 - 1
    )

    def __post_init__(self):
        check_options(self)
        if not self.targets:
            raise UsageError(f"targets must be some of {', '.join(TARGETS)}, got none")

    def with_rate(self, width: int) -> "FinetuneConfig":
        """With the learning rate for an encoder of so many channels, where none is given.

        Adam's goes with one over the width (arXiv 2203.03466, table 3).
        """
        if self.learning_rate is not None:
            return self
        return replace(self, learning_rate=float(f"{self.peak_rate * _WIDTH / width:.2g}"))

    @property
    def peak_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return _RATES["full" if self.full else "lora"]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 to steps - 1."""
        return warm_cosine(step, steps, round(self.warmup * steps), self.peak_rate, _FINAL_RATE)

    def blocks(self, vision: VisionConfig) -> int:
        """How many of the last blocks are trained; raises UsageError for more than there are."""
        if self.last_blocks > vision.num_blocks:
            raise UsageError(
                f"this model has {vision.num_blocks} blocks: --last-blocks must be at most that, "
                f"got {self.last_blocks}"
            )
        return self.last_blocks or vision.num_blocks

    def lora(self, vision: VisionConfig) -> LoRAConfig | None:
        """The adapters of an encoder, None where its own weights are trained."""
        if self.full:
            return None
        blocks, scale = self.blocks(vision), self.alpha / self.rank
        targets = tuple(name for name in TARGETS if name in self.targets)
        return LoRAConfig(self.rank, scale, targets, blocks, float(self.dropout))
