"""What a training tells while it goes on: a bar for each stage, lines for the rest."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

from aim_mlx.cli.terminal import escaped, on_terminal

_SILENCE = 30.0  # seconds without a line, where no bar is drawn, before one says how far it is


class Stages:
    """Bars on a terminal, lines on stderr anywhere; with --json, records on stdout."""

    def __init__(self, as_json: bool):
        from rich.console import Console
        from rich.progress import Progress

        self.as_json = as_json
        console = Console(stderr=True)
        self._bar = Progress(
            console=console,
            disable=not console.is_terminal,
            transient=True,
            redirect_stdout=on_terminal(sys.stdout),
        )
        self._stages: dict[str, Any] = {}
        self._said = time.monotonic()
        self.skips = 0  # told so far

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def skipped(self, skip: Any) -> None:
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
            self._stages[what] = self._bar.add_task(what)
        self._bar.update(self._stages[what], completed=done, total=total)
        if self._bar.disable and time.monotonic() - self._said >= _SILENCE:
            self.say(f"{what}: {done:,} of {total:,}")

    def say(self, line: str, style: str | None = None) -> None:
        """Prints a line on stderr; the style is for a terminal alone."""
        self._said = time.monotonic()
        self._bar.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def emit(self, event: str, record: Mapping[str, Any]) -> None:
        if self.as_json:
            print(json.dumps({"event": event, **record}), flush=True)
