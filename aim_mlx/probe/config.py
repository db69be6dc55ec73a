"""What decides the training of a probe, and the two protocols."""

from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from aim_mlx.errors import UsageError
from aim_mlx.training.options import check_options, option

KINDS = ("attentive", "coca", "ep", "mean", "max")  # of heads
QUERIES = {"ep": 32}  # of a kind of head, where it is not 1
MOST_HEADS = 256  # in a grid
FINAL_RATE = 1e-5
_MANY = 10**6


@dataclass(frozen=True)
class GridPoint:
    """How one head of a grid is trained."""

    learning_rate: float
    weight_decay: float
    batch_norm: bool


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that decides a probe beside the images, their labels and the encoder.

    Raises UsageError for values that cannot be.
    """

    head: str = option(
        "attentive",
        "attentive, coca, ep (efficient probing), or mean or max: linear on pooled tokens.",
        among=KINDS,
    )
    queries: int | None = option(
        None, "Learned queries of a head; by default 1, and 32 of ep.", 1, 1024
    )
    learning_rates: tuple[float, ...] = option((5e-4, 2e-3), "Each tried, as 1e-3,3e-3.", 0, 10)
    weight_decays: tuple[float, ...] = option((0.05,), "Each tried, as 0.05,0.1.", 0, 100)
    batch_norm: tuple[bool, ...] = option(
        (False, True), "Of the heads: for none, all or half of them."
    )
    epochs: int = option(30, "Passes over the images.", 1, _MANY)
    batch_size: int = option(64, "Images in a step.", 1, _MANY)
    warmup_epochs: float = option(1.0, "Epochs in which the learning rate rises.", 0, _MANY)
    clip_norm: float = option(3.0, "The largest norm of a head's gradient.", 0)
    label_smoothing: float = option(
        0.0, "Fraction of a target that is spread over all classes.", 0, 0.99
    )
    balanced: bool = option(False, "Every class counts the same, in loss and choice.")
    patience: int | None = option(
        8, "Epochs without a better head until it stops; 0: never.", 1, _MANY
    )
    seed: int = option(0, "Decides the split, the first weights and the order.", 0, 2**63 - 1)

    def __post_init__(self):
        check_options(self)
        if self.batch_norm not in ((False,), (True,), (False, True), (True, False)):
            raise UsageError(f"batch norm must be off, on or both, got {self.batch_norm!r}")
        if not 1 <= len(self.grid) <= MOST_HEADS:
            raise UsageError(f"a grid has 1 to {MOST_HEADS} heads, got {len(self.grid)}")

    @property
    def grid(self) -> tuple[GridPoint, ...]:
        """The heads: every combination, in the order given, without repeats."""
        points = product(self.learning_rates, self.weight_decays, self.batch_norm)
        return tuple(dict.fromkeys(GridPoint(*point) for point in points))


PROTOCOLS = {
    # arXiv 2411.14402, appendix A2, for data sets other than ImageNet-1k; on that it has batches of
    # 1024 and 5 epochs of warm-up.
    "paper": ProbeConfig(
        learning_rates=(5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3),
        weight_decays=(0.05, 0.1),
        epochs=100,
        batch_size=512,
        warmup_epochs=0,
        patience=None,
    ),
    "fast": ProbeConfig(),
}


def protocol(name: str, **changes: Any) -> ProbeConfig:
    """The configuration of a protocol with some options changed; raises UsageError."""
    if name not in PROTOCOLS:
        raise UsageError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    known = {each.name for each in fields(ProbeConfig)}
    if unknown := sorted(set(changes) - known):
        raise UsageError(f"no option {unknown[0]!r}: known are {', '.join(sorted(known))}")
    return replace(PROTOCOLS[name], **changes)
