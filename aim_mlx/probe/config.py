"""What the training of a probe can be told, and the two protocols."""

import math
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

from aim_mlx.errors import UsageError
from aim_mlx.probe.heads import KINDS

MOST_HEADS = 256  # in a grid
FINAL_RATE = 1e-5


@dataclass(frozen=True)
class GridPoint:
    """How one head of a grid is trained."""

    learning_rate: float
    weight_decay: float
    batch_norm: bool


_SEVERAL = ("learning_rates", "weight_decays", "batch_norm")
_WHOLE = ("queries", "epochs", "batch_size", "patience", "seed")


def _check(name: str, value: Any, low: float, high: float) -> None:
    """Raises UsageError for a number, or one of several, that is out of range."""
    kinds, what = (int, "a whole number ") if name in _WHOLE else ((int, float), "")
    for each in value if name in _SEVERAL else (value,):
        real = isinstance(each, kinds) and not isinstance(each, bool)
        if not real or not low <= each <= high or not math.isfinite(each):
            words = name.replace("_", " ")
            raise UsageError(f"{words} must be {what}from {low:g} to {high:g}, got {each!r}")


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that decides a probe beside the images, their labels and the encoder.

    Raises UsageError for values that cannot be.
    """

    head: str = _option("attentive", f"What is trained: {', '.join(KINDS)}.")
    queries: int = _option(1, "Learned queries of an attentive head.")
    learning_rates: tuple[float, ...] = _option((5e-4, 2e-3), "The highest, each tried.")
    weight_decays: tuple[float, ...] = _option((0.05,), "Of the matrices, each tried.")
    batch_norm: tuple[bool, ...] = _option((False, True), "Without and with, each tried.")
    epochs: int = _option(30, "Passes over the images.")
    batch_size: int = _option(64, "Images in a step.")
    warmup_epochs: float = _option(1.0, "Epochs in which the learning rate rises.")
    clip_norm: float = _option(3.0, "The largest norm of a head's gradient.")
    label_smoothing: float = _option(0.0, "The share of a target spread over all classes.")
    balanced: bool = _option(False, "Every class counts the same, however few its images.")
    patience: int | None = _option(8, "Epochs without a better head until it stops; none: never.")
    seed: int = _option(0, "Decides the first weights and the order.")

    def __post_init__(self):
        if self.head not in KINDS:
            raise UsageError(f"head must be one of {', '.join(KINDS)}, got {self.head!r}")
        for name in _SEVERAL:
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                words = name.replace("_", " ")
                raise UsageError(f"{words} must be a list, such as [{value!r:.40}], got no list")
            object.__setattr__(self, name, tuple(value))
        for name, low, high in (
            ("queries", 1, 1024),
            ("learning_rates", 0, 10),
            ("weight_decays", 0, 100),
            ("epochs", 1, 10**6),
            ("batch_size", 1, 10**6),
            ("warmup_epochs", 0, 10**6),
            ("clip_norm", 0, math.inf),
            ("label_smoothing", 0, 0.99),
            ("patience", 1, 10**6),
            ("seed", 0, 2**63 - 1),
        ):
            if name != "patience" or self.patience is not None:
                _check(name, getattr(self, name), low, high)
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
