"""What commands say while they work: bars and lines on stderr, records on stdout with --json."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from aim_mlx.images import Listing, Skip
from aim_mlx.training.report import Report
from aim_mlx.wording import counted, escaped

if TYPE_CHECKING:
    from aim_mlx.embedding.job import Summary
    from aim_mlx.embedding.plan import EmbeddingPlan
    from aim_mlx.finetune.run import Finetuned
    from aim_mlx.lit_training.run import TrainedLit
    from aim_mlx.pretrain.run import TrainedEncoder
    from aim_mlx.probe.outcome import TrainedProbe

_SILENCE = 30.0  # seconds without a line, where no bar is drawn, before one says how far it is


class Reporter(Report):
    """A bar for each stage on a terminal, lines anywhere, and records with --json."""

    def __init__(self, as_json: bool, *columns: ProgressColumn):
        self.as_json = as_json
        self.skips = 0  # said so far
        console = Console(stderr=True)
        self._bars = Bars(
            *columns,
            console=console,
            disable=not console.is_terminal,
            transient=not columns,
            # Where the data goes to a file or pipe it must not be drawn above the bar instead.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._stages: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def skipped(self, skip: Skip) -> None:
        self.skips += 1
        self.say(f"skipped {escaped(str(skip.path))}: {skip.reason}: {escaped(skip.detail)}")
        self.emit("skipped", {**asdict(skip), "path": str(skip.path)})

    def noted(self, note: str) -> None:
        self.say(f"note: {escaped(note)}")

    def warned(self, warning: str) -> None:
        self.say(f"warning: {escaped(warning)}", style="bold red")
        self.emit("warning", {"warning": warning})

    def advanced(self, what: str, done: int, total: int) -> None:
        if what not in self._stages:
            self._stages[what] = self._bars.add_task(what)
        self._bars.update(self._stages[what], completed=done, total=total)
        if self.is_silent:
            self.say(f"{what}: {done:,} of {total:,}")

    @property
    def is_silent(self) -> bool:
        """Whether it is time to say how far it is, as no bar shows it."""
        return self._bars.disable and time.monotonic() - self._said >= _SILENCE

    def say(self, line: str, style: str | None = None) -> None:
        """Prints a line on stderr; the style is for a terminal alone."""
        self._said = time.monotonic()
        self._bars.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def emit(self, event: str, record: Mapping[str, Any]) -> None:
        if self.as_json:
            print(json.dumps({"event": event, **record}), flush=True)

    def finished(self, line: str, summary: Any) -> None:
        """The account at the end, a dataclass with an exit code, and MLX's memory in bytes."""
        from aim_mlx.backend import memory_used  # imports MLX

        self.say(line)
        self.emit("summary", {**asdict(summary), **memory_used(), "exit_code": summary.exit_code})


class Progress(Reporter):
    """One bar over images, with their rate, the time left and how many were skipped."""

    def __init__(self, as_json: bool):
        skips = TextColumn("{task.fields[skips]}")
        columns = BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), skips
        super().__init__(as_json, *columns)
        self._id = self._bars.add_task("embed", total=None, skips="", unchanged=0)

    def listed(self, listing: Listing) -> None:
        self._bars.update(self._id, total=len(listing.files) + len(listing.skipped))
        for note in listing.notes:
            self.noted(note)

    def unchanged(self, count: int) -> None:
        self._bars.update(self._id, advance=count, unchanged=count)
        if count:
            self.noted(counted(count, "image is there already", "images are there already"))

    def embedded(self, path: str) -> None:
        self._bars.advance(self._id)
        if self.is_silent:
            task = self._bars.tasks[self._id]
            self.say(f"{task.completed:,.0f} of {task.total:,.0f} images, {_rate(task)}")

    def skipped(self, skip: Skip) -> None:
        super().skipped(skip)
        self._bars.update(self._id, advance=1, skips=f"{self.skips} skipped")

    def planned(self, listing: Listing, plan: "EmbeddingPlan", output: Path) -> None:
        """What a run would do."""
        account = {
            "output": str(output),
            "listed": listing.listed,
            "to_look_at": len(plan.todo),
            "unchanged": plan.unchanged,
            "skipped": len(listing.skipped) + len(plan.skipped),
            "ignored": listing.ignored,
        }
        for note in listing.notes:
            self.noted(note)
        self.say(
            f"{counted(len(plan.todo), 'image')} to look at, {plan.unchanged:,} there already, "
            f"{account['skipped']:,} skipped, {listing.ignored:,} ignored: nothing was done"
        )
        self.emit("plan", account)

    def summary(self, summary: "Summary") -> None:
        rate = f" ({summary.computed / summary.seconds:.2f} images/s)" if summary.computed else ""
        copies = max(0, summary.reused - summary.moved)
        details = [
            f"; {count:,} {what}"
            for count, what in (
                (copies, "with the content of another"),
                (summary.moved, "under a new name"),
                (summary.vanished, "of deleted files kept (--prune removes them)"),
                (summary.pruned, "of deleted files removed"),
            )
            if count
        ]
        unchanged = f"{summary.unchanged:,} unchanged, " if summary.unchanged else ""
        self.finished(
            f"{summary.computed + copies:,} embedded, {unchanged}"
            f"{summary.skipped:,} skipped, {summary.ignored:,} ignored "
            f"in {summary.seconds:.1f} s{rate}: {escaped(summary.output)}{''.join(details)}",
            summary,
        )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task))


def _rate(task: Task) -> str:
    """Images a second over the whole run, as rows come in bursts; without those there before."""
    seconds = task.finished_time or task.elapsed
    done = task.completed - task.fields["unchanged"]
    return f"{done / seconds:.2f} images/s" if seconds else ""


class ProbeReporter(Reporter):
    """A line for each epoch with the best head, and figures."""

    def recorded(self, record: Mapping[str, Any]) -> None:
        scores = [score for score in record["metric"] if score is not None]
        losses = [loss for loss in record["val_loss"] if loss is not None]
        best = "no head is finite"
        if scores:
            heads, loss = counted(len(scores), "head"), min(losses)
            shown = f"{loss:.3f}" if loss < 1e4 else f"{loss:.3g}"  # of a rate that is too high
            best = f"best of {heads} on val {max(scores):.3f}, loss {shown}"
        self.say(f"epoch {record['epoch']}: {best}")
        self.emit("epoch", record)

    def summary(self, done: "TrainedProbe") -> None:
        counts = ", ".join(f"{count:,} {name}" for name, count in done.images.items())
        figure, value, (low, high) = _main_figure(done.figures)
        self.finished(
            f"{done.classes} classes, {counts}, {done.skipped} skipped, "
            f"{counted(done.epochs, 'epoch')} in {done.seconds:.1f} s; {done.measured_on} "
            f"{figure.replace('_', ' ')} {value:.1%} ({low:.1%} to {high:.1%}): "
            f"{escaped(done.output)} with its report.html",
            done,
        )

    def figures(self, name: str, figures: Mapping[str, Any], code: int, more: Any = None) -> None:
        """Prints the figures of a part, as lines or as the summary."""
        if not self.as_json:
            _print(figures)
        account = {"measured_on": name, "figures": figures, **(more or {})}
        self.emit("summary", {**account, "skipped": self.skips, "exit_code": code})
        self.say(f"{counted(figures['images'], 'image')} of {name}, {self.skips} skipped")


def _main_figure(figures: Mapping[str, Any]) -> tuple[str, float, tuple[float, float]]:
    """Its name, value and interval."""
    name = "accuracy" if "accuracy" in figures else "exact_match"
    return name, figures[name], figures[f"{name}_interval"]


def _print(figures: Mapping[str, Any]) -> None:
    """Figures and classes as lines, with tabs between."""
    name, value, (low, high) = _main_figure(figures)
    print(f"{name}\t{value:.2%}\t95% interval {low:.2%} to {high:.2%}")
    for each in ("balanced_accuracy", "top5_accuracy", "mean_average_precision", "macro_f1", "ece"):
        if each in figures:
            print(f"{each}\t{figures[each]:.2%}")
    for each in figures["classes"]:
        right = "-" if each["recall"] is None else f"{each['recall']:.2%}"
        print(f"{escaped(each['name'])}\t{right}\tof {each['images']}")


class FinetuneReporter(ProbeReporter):
    """A line for each epoch."""

    def recorded(self, record: Mapping[str, Any]) -> None:
        self.say(
            f"epoch {record['epoch']}: loss {record['train_loss']:.3f}, on val "
            f"{record['metric']:.3f}, loss {record['val_loss']:.3f}"
        )
        self.emit("epoch", record)

    def summary(self, done: "Finetuned") -> None:
        if done.beside_probe is not None:
            self.say(f"right: {done.beside_probe}")
        super().summary(done)


class LiTReporter(Reporter):
    """A line for each evaluation."""

    def recorded(self, record: Mapping[str, Any]) -> None:
        if metrics := record.get("metrics"):
            line = f"step {record['step']}: loss {record['loss']:.3f}"
            self.say(f"{line}, {_recall(metrics)}")
        self.emit("step", record)

    def summary(self, done: "TrainedLit") -> None:
        recall = f"; {_recall(done.metrics)}" if done.metrics else ""
        self.finished(
            f"{counted(done.pairs, 'pair')} of {counted(done.images, 'image')}, {done.held_out} of "
            f"them held out, {done.skipped} skipped, {counted(done.steps, 'step')} in "
            f"{done.seconds:.1f} s{recall}: {escaped(done.output)}",
            done,
        )


class PretrainReporter(Reporter):
    """A line for each record that was measured, and for others where there was none for long."""

    def __init__(self, as_json: bool):
        super().__init__(as_json)
        self._started: tuple[int, float] | None = None  # a step, and when it was done
        self._steps = 0

    def advanced(self, what: str, done: int, total: int) -> None:
        if what == "training":
            self._steps = total
            self._started = self._started or (done, time.monotonic())
        super().advanced(what, done, total)

    def recorded(self, record: Mapping[str, Any]) -> None:
        if record["measured"] or self.is_silent:
            self.say(f"step {record['step']:,} of {self._steps:,}: {_losses(record)}{self._left()}")
        self.emit("step", record)

    def _left(self) -> str:
        """The time left, by the steps of this call."""
        task = self._bars.tasks[self._stages["training"]]
        first, since = self._started or (0, 0.0)
        done = task.completed - first
        if not done or task.completed >= self._steps:
            return ""
        seconds = (time.monotonic() - since) / done * (self._steps - task.completed)
        return f", {seconds / 60:,.0f} min left" if seconds >= 60 else f", {seconds:.0f} s left"

    def summary(self, done: "TrainedEncoder") -> None:
        self.finished(
            f"{counted(done.images, 'image')} with {counted(done.captions, 'caption')}, "
            f"{done.held_out} of them held out, {done.skipped} skipped, "
            f"{counted(done.steps, 'step')} in {done.seconds:.1f} s; {_losses(done.metrics)}: "
            f"{escaped(done.output)} with its report.html",
            done,
        )


def _losses(record: Mapping[str, Any]) -> str:
    """Losses and figures of a record, validation's in brackets, and the rate."""
    parts = []
    for name in ("loss", "pixel_loss", "text_loss", "knn", "linear"):
        if record.get(name) is not None:
            validation = record.get(f"val_{name}")
            beside = "" if validation is None else f" ({validation:.3f} on held-out images)"
            parts.append(f"{name.replace('_', ' ')} {record[name]:.3f}{beside}")
    return f"{', '.join(parts)}, rate {record['rate']:.2g}"


def _recall(metrics: Mapping[str, float]) -> str:
    """The recall at 1 both ways, beside what chance would give."""
    ways = [
        f"{way.replace('_', ' ')} {metrics[f'{way}_recall@1']:.3f} "
        f"(chance {metrics[f'{way}_chance@1']:.3f})"
        for way in ("image_to_text", "text_to_image")
    ]
    return f"recall@1 {', '.join(ways)}"
