"""Whom a training informs while it goes on, and how it ends early before its steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from aim_mlx.errors import Interrupted

Advanced = Callable[[str, int, int], None]  # the stage, how much of it is done, of how much


def never() -> bool:
    return False


class Report(Protocol):
    """What a training says; a class that inherits it defines only what it shows."""

    def skipped(self, skip: Any) -> None:
        """An `images.Skip` was left out."""

    def noted(self, note: str) -> None:
        """Something worth knowing."""

    def warned(self, warning: str) -> None:
        """Something that makes the result worth less."""

    def advanced(self, what: str, done: int, total: int) -> None:
        """So much is done of a stage of the work."""

    def recorded(self, record: Mapping[str, Any]) -> None:
        """The trainer made a record."""


class PassedOn(Report):
    """Passes all on to another report; a class that inherits it adds to that."""

    def __init__(self, report: Report):
        self._report = report

    def skipped(self, skip: Any) -> None:
        self._report.skipped(skip)

    def noted(self, note: str) -> None:
        self._report.noted(note)

    def warned(self, warning: str) -> None:
        self._report.warned(warning)

    def advanced(self, what: str, done: int, total: int) -> None:
        self._report.advanced(what, done, total)

    def recorded(self, record: Mapping[str, Any]) -> None:
        self._report.recorded(record)


class Silent(Report):
    """A report to nobody."""


def pass_on(
    report: Report,
    skips: Iterable[Any] = (),
    notes: Iterable[str] = (),
    warnings: Iterable[str] = (),
) -> None:
    """Says what was left out and noticed while the data was read."""
    for skip in skips:
        report.skipped(skip)
    for note in notes:
        report.noted(note)
    for warning in warnings:
        report.warned(warning)


_BEFORE = "interrupted before the training; what is finished is kept: the same command resumes"


def advancing(report: Report, stop: Callable[[], bool], message: str = _BEFORE) -> Advanced:
    """The report's `advanced`, which raises Interrupted once `stop` returns True."""

    def advanced(what: str, done: int, total: int) -> None:
        report.advanced(what, done, total)
        if stop():
            raise Interrupted(message)

    return advanced
