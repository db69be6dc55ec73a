"""What the report of a probe shows, put together from a run or an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aim_mlx.data.parts import Part
from aim_mlx.errors import UNTRAINED, ImageError
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.training import GridTrainer
from aim_mlx.report.charts import Curve
from aim_mlx.report.figures import confusion, figures_of, near_chance
from aim_mlx.report.probe_page import Mistake, ProbeReport
from aim_mlx.words.heatmap import heat_picture, seen

_MISTAKES = 12  # shown


@dataclass(frozen=True)
class Measured:
    """A part with the probabilities (n, C) of its images and the figures made of them."""

    name: str
    part: Part
    probabilities: np.ndarray
    figures: dict[str, Any]

    @classmethod
    def of(
        cls, name: str, part: Part, probabilities: np.ndarray, classes: Sequence[str]
    ) -> "Measured":
        return cls(name, part, probabilities, figures_of(probabilities, part.labels, classes))

    @property
    def warnings(self) -> tuple[str, ...]:
        """One where the figures are near chance."""
        warning = near_chance(self.figures)
        return () if warning is None else (warning,)


def made_report(
    title: str,
    probe: AttentiveProbe,
    measured: Measured,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    trainer: GridTrainer | None = None,
) -> ProbeReport:
    """The report of a probe on what it was measured on, with how it learned if that is known."""
    heads, scores, losses = ([], [], []) if trainer is None else _learning(trainer)
    single = measured.part.labels.ndim == 1
    return ProbeReport(
        title,
        measured.name,
        measured.figures,
        facts=[*facts.items()],
        warnings=warnings if probe.encoder.trained else [f"{UNTRAINED.capitalize()}.", *warnings],
        scores=scores,
        losses=losses,
        heads=heads,
        confusion=confusion(measured.probabilities, measured.part.labels) if single else None,
        mistakes=_mistakes(probe, measured),
    )


def _learning(trainer: GridTrainer) -> tuple[list[dict[str, Any]], list[Curve], list[Curve]]:
    """A row for each head of the grid, and their curves on val."""
    best = trainer.best
    rows, scores, losses = [], [], []
    for index, point in enumerate(trainer.config.grid):
        chosen = best is not None and best.index == index
        metric = [record["metric"][index] for record in trainer.history]
        loss = [record["val_loss"][index] for record in trainer.history]
        name = f"{index + 1}: learning rate {point.learning_rate:g}, weight decay "
        name += f"{point.weight_decay:g}, {'with' if point.batch_norm else 'no'} batch norm"
        scores.append(Curve(name, metric, chosen))
        losses.append(Curve(name, loss, chosen))
        epochs = [  # of equal scores the one with the lowest loss, as the trainer chooses
            (score, -cost, epoch)
            for epoch, (score, cost) in enumerate(zip(metric, loss, strict=True), 1)
            if score is not None and cost is not None
        ]
        highest, _, epoch = max(epochs, default=(None, 0, 0))
        rows.append(
            {
                "head": str(index + 1),
                "learning rate": f"{point.learning_rate:g}",
                "weight decay": f"{point.weight_decay:g}",
                "batch norm": "yes" if point.batch_norm else "no",
                "best score on val": "-" if highest is None else f"{highest:.1%}",
                "at epoch": str(epoch or "-"),
                "at the end": "not finite" if metric and metric[-1] is None else "trained",
                "chosen": chosen,
            }
        )
    return rows, scores, losses


def _mistakes(probe: AttentiveProbe, measured: Measured) -> list[Mistake]:
    """The images with the least probability for what they are, worst first."""
    labels, given = measured.part.labels, measured.probabilities
    if labels.ndim == 1:
        error = 1 - given[np.arange(len(labels)), labels]
    else:
        error = np.abs(labels - given).max(axis=1)
    shown = []
    for row in np.argsort(-error, kind="stable"):
        if len(shown) == _MISTAKES:
            break
        try:
            pixels = probe.encoder.preprocess([measured.part.paths[row]])
        except ImageError:  # gone since it was read
            continue
        shown.append(_mistake(probe, measured, int(row), pixels))
    return shown


def _mistake(probe: AttentiveProbe, measured: Measured, row: int, pixels: np.ndarray) -> Mistake:
    given, path = measured.probabilities[row], measured.part.paths[row]
    truth, said, wrong = _words(probe.classes, measured.part.labels[row], given)
    attention = None
    if probe.head.config.attends:
        heat = probe.attention_maps([path])[0].mean(axis=0)
        attention = heat_picture(pixels[0], heat, probe.encoder.preprocessing)
    photo = seen(pixels[0], probe.encoder.preprocessing)
    return Mistake(path, truth, said, photo, attention, wrong)


def _words(classes: Sequence[str], label: np.ndarray, given: np.ndarray) -> tuple[str, str, bool]:
    """What an image is, what its probabilities (C,) say it is, and whether that is wrong."""

    def listed(places: np.ndarray) -> str:
        return ", ".join(f"{classes[int(i)]} with {given[i]:.0%}" for i in places)

    if label.ndim == 0:
        truth, best = int(label), int(given.argmax())
        wrong = best != truth
        return classes[truth], listed(np.array([best, truth] if wrong else [best])), wrong
    wanted, chosen = label > 0.5, given >= 0.5
    truth = ", ".join(classes[int(i)] for i in np.flatnonzero(wanted)) or "none of the classes"
    said = listed(np.flatnonzero(chosen)) or "none of the classes"
    if missed := listed(np.flatnonzero(wanted & ~chosen)):
        said += f"; missed {missed}"
    return truth, said, bool((wanted != chosen).any())
