"""What training and measuring a probe tell."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aim_mlx.cli.stages import Stages
from aim_mlx.cli.terminal import escaped
from aim_mlx.wording import counted

if TYPE_CHECKING:
    from aim_mlx.data.splits import DataSet
    from aim_mlx.probe.evaluation import Evaluation
    from aim_mlx.probe.run import Result


class ProbeReport(Stages):
    """A line for each epoch with the best head, and the account at the end."""

    def recorded(self, record: Mapping[str, Any]) -> None:
        scores = [score for score in record["metric"] if score is not None]
        losses = [loss for loss in record["val_loss"] if loss is not None]
        heads = counted(len(scores), "head")
        self.say(
            f"epoch {record['epoch']}: best of {heads} on val {max(scores):.3f}, "
            f"loss {_loss(min(losses))}"
            if scores
            else f"epoch {record['epoch']}: no head is finite"
        )
        self.emit("epoch", record)

    def summary(self, done: "Result") -> None:
        counts = ", ".join(f"{count:,} {name}" for name, count in done.images.items())
        epochs = counted(done.epochs, "epoch")
        self.say(
            f"{done.classes} classes, {counts}, {done.skipped} skipped, {epochs} in "
            f"{done.seconds:.1f} s; {done.measured_on} {_figure(done.figures)}: "
            f"{escaped(done.output)} with its report.html"
        )
        self.emit("summary", {**asdict(done), "exit_code": done.exit_code})

    def told(self, found: "Evaluation | DataSet") -> None:
        """Tells what was left out and noticed."""
        for skip in found.skips:
            self.skipped(skip)
        for note in found.notes:
            self.noted(note)
        for warning in found.warnings:
            self.warned(warning)

    def figures(self, name: str, figures: Mapping[str, Any], code: int, more: Any = None) -> None:
        """Prints the figures of a part, as lines or as the summary."""
        if not self.as_json:
            _print(figures)
        account = {"measured_on": name, "figures": figures, **(more or {})}
        self.emit("summary", {**account, "skipped": self.skips, "exit_code": code})
        self.say(f"{counted(figures['images'], 'image')} of {name}, {self.skips} skipped")


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 1e4 else f"{value:.3g}"  # of a rate that is too high


def _figure(figures: Mapping[str, Any]) -> str:
    """The figure that matters, with its interval."""
    name = "accuracy" if "accuracy" in figures else "exact_match"
    low, high = figures[f"{name}_interval"]
    words = name.replace("_", " ")
    return f"{words} {figures[name]:.1%} ({low:.1%} to {high:.1%})"


def _print(figures: Mapping[str, Any]) -> None:
    """Figures and classes as lines, with tabs between."""
    name = "accuracy" if "accuracy" in figures else "exact_match"
    low, high = figures[f"{name}_interval"]
    print(f"{name}\t{figures[name]:.2%}\t95% interval {low:.2%} to {high:.2%}")
    for each in ("balanced_accuracy", "top5_accuracy", "mean_average_precision", "macro_f1", "ece"):
        if each in figures:
            print(f"{each}\t{figures[each]:.2%}")
    for each in figures["classes"]:
        right = "-" if each["recall"] is None else f"{each['recall']:.2%}"
        print(f"{escaped(each['name'])}\t{right}\tof {each['images']}")
