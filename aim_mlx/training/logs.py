"""The figures of a training where people look at them: TensorBoard."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aim_mlx.errors import UsageError
from aim_mlx.training.report import PassedOn, Report
from aim_mlx.weights.save import WORK_FOLDER

LOGS = ("tensorboard",)


@contextmanager
def logged(report: Report, to: str | None, folder: Path) -> Iterator[Report]:
    """A report that also writes the records of a training in `folder`; itself where `to` is None.

    Raises UsageError for an unknown name, and where the package is not installed.
    """
    if to is None:
        yield report
        return
    if to not in LOGS:
        raise UsageError(f"--log must be {' or '.join(LOGS)}, got {to!r:.80}")
    try:
        # Before any work is done.
        import tensorboardX  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "--log tensorboard needs a package: pip install 'aim-mlx[tensorboard]'"
        ) from error
    board = _Board(report, folder / WORK_FOLDER / to)
    try:
        yield board
    finally:
        board.close()


class _Board(PassedOn):
    """Writes records to TensorBoard's files too."""

    def __init__(self, report: Report, folder: Path):
        super().__init__(report)
        self._folder = folder
        self._writer: Any = None

    def recorded(self, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

            # A killed run did some steps again: what it wrote of them does not count.
            self._writer = SummaryWriter(str(self._folder), purge_step=record["step"])
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])
        super().recorded(record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def scalars(record: Mapping[str, Any], owner: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a record by name, those of lists and of records in it as name/part."""
    for name, value in record.items():
        if isinstance(value, list):
            value = {str(place): each for place, each in enumerate(value)}
        if isinstance(value, Mapping):
            yield from scalars(value, f"{owner}{name}/")
        elif type(value) in (int, float) and math.isfinite(value) and name not in ("step", "epoch"):
            yield f"{owner}{name}", float(value)
