"""Progress on stderr, and with --json the records on stdout."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.text import Text

from aim_mlx.cli.terminal import escaped, on_terminal
from aim_mlx.embedding.job import Summary
from aim_mlx.embedding.plan import Plan
from aim_mlx.images import Listing, Skip
from aim_mlx.wording import counted

_SILENCE = 30.0  # seconds without a bar, before a line says how far the run is


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(_rate(task))


def _rate(task: Task) -> str:
    """Images a second over the whole run, as rows come in bursts; without those there before."""
    seconds = task.finished_time or task.elapsed
    done = task.completed - task.fields["unchanged"]
    return f"{done / seconds:.2f} images/s" if seconds else ""


class Progress:
    """Shows a bar with rate, time left and skips on a terminal, else a line now and then.

    Skips are lines anywhere.
    """

    def __init__(self, as_json: bool):
        self._as_json = as_json
        self._skipped = 0
        console = Console(stderr=True)
        self._bar = RichProgress(
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[skips]}"),
            console=console,
            disable=not console.is_terminal,
            # Where the data goes to a file or pipe it must not be drawn above the bar instead.
            redirect_stdout=on_terminal(sys.stdout),
        )
        self._id = self._bar.add_task("embed", total=None, skips="", unchanged=0)
        self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def listed(self, listing: Listing) -> None:
        self._bar.update(self._id, total=len(listing.files) + len(listing.skipped))
        for note in listing.notes:
            self.noted(note)

    def noted(self, note: str) -> None:
        self._say(f"note: {escaped(note)}")

    def unchanged(self, count: int) -> None:
        self._bar.update(self._id, advance=count, unchanged=count)
        if count:
            self.noted(counted(count, "image is there already", "images are there already"))

    def embedded(self, path: str) -> None:
        self._bar.advance(self._id)
        self._say_how_far()

    def skipped(self, skip: Skip) -> None:
        self._skipped += 1
        self._bar.update(self._id, advance=1, skips=f"{self._skipped} skipped")
        self._say(f"skipped {escaped(str(skip.path))}: {skip.reason}: {escaped(skip.detail)}")
        self._emit("skipped", {**asdict(skip), "path": str(skip.path)})

    def planned(self, listing: Listing, plan: Plan, output: Path) -> None:
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
        self._say(
            f"{counted(len(plan.todo), 'image')} to look at, {plan.unchanged:,} there already, "
            f"{account['skipped']:,} skipped, {listing.ignored:,} ignored: nothing was done"
        )
        self._emit("plan", account)

    def summary(self, summary: Summary) -> None:
        rate = f" ({summary.computed / summary.seconds:.2f} images/s)" if summary.computed else ""
        copies = max(0, summary.reused - summary.moved)
        details = [
            f"{count:,} {what}"
            for count, what in (
                (copies, "with the content of another"),
                (summary.moved, "under a new name"),
                (summary.vanished, "of deleted files kept (--prune removes them)"),
                (summary.pruned, "of deleted files removed"),
            )
            if count
        ]
        unchanged = f"{summary.unchanged:,} unchanged, " if summary.unchanged else ""
        self._say(
            f"{summary.computed + copies:,} embedded, {unchanged}"
            f"{summary.skipped:,} skipped, {summary.ignored:,} ignored "
            f"in {summary.seconds:.1f} s{rate}: {escaped(summary.output)}"
            + "".join(f"; {detail}" for detail in details)
        )
        self._emit("summary", {**asdict(summary), "exit_code": summary.exit_code})

    def _say_how_far(self) -> None:
        if self._bar.disable and time.monotonic() - self._said >= _SILENCE:
            task = self._bar.tasks[self._id]
            self._say(f"{task.completed:,.0f} of {task.total:,.0f} images, {_rate(task)}")
            self._said = time.monotonic()

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _emit(self, event: str, record: dict[str, Any]) -> None:
        if self._as_json:
            print(json.dumps({"event": event, **record}), flush=True)
