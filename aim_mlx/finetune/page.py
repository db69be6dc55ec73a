"""The report of a fine-tuning: a probe's page, and how much better it is than the probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aim_mlx.finetune.trainer import FinetuneTrainer
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.summary import Measured, made_report
from aim_mlx.report.charts import Curve
from aim_mlx.report.figures import difference
from aim_mlx.report.probe_page import ProbeReport


@dataclass(frozen=True)
class Comparison:
    """The share of images that are right after fine-tuning and by the probe, on the same images.

    `interval` is that of 95% for the difference, in pairs.
    """

    images: int
    probe: float
    finetuned: float
    difference: float
    interval: list[float]

    def __str__(self) -> str:
        low, high = (f"{100 * each:+.1f}" for each in self.interval)
        return (
            f"{self.finetuned:.1%} beside {self.probe:.1%} of the probe, on the same "
            f"{self.images:,} images: {100 * self.difference:+.1f} points (95% interval {low} to "
            f"{high})"
        )


def compared(after: Measured, before: Measured) -> Comparison:
    """Two classifiers on the same images."""
    right, was_right = _right(after), _right(before)
    value, interval = difference(right, was_right)
    means = float(was_right.mean()), float(right.mean())
    return Comparison(len(right), *means, value, interval)


def _right(measured: Measured) -> np.ndarray:
    """Which images are right; with several labels those of which all are."""
    labels, given = measured.part.labels, measured.probabilities
    if labels.ndim == 1:
        return given.argmax(axis=1) == labels
    return ((given >= 0.5) == (labels > 0.5)).all(axis=1)


def made_page(
    title: str,
    made: AttentiveProbe,
    last: Measured,
    described: Mapping[str, str],
    warnings: Sequence[str],
    trainer: FinetuneTrainer,
) -> ProbeReport:
    """The page of a classifier, of what it was measured on last and of how it learned."""
    report = made_report(title, made, last, described, warnings)
    scores = [Curve("score on val", [r["metric"] for r in trainer.history], best=True)]
    losses = [
        Curve("loss on val", [r["val_loss"] for r in trainer.history], best=True),
        Curve("loss in training", [r["train_loss"] for r in trainer.history]),
    ]
    return replace(report, scores=scores, losses=losses)
