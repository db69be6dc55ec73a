"""What a training run tells, while it goes on and at its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aim_mlx.images import Skip


@dataclass(frozen=True)
class Result:
    """What a run came to: `metrics` are those of the held-out pairs, empty where there are none."""

    output: str
    pairs: int
    images: int
    held_out: int
    skipped: int
    steps: int
    metrics: dict[str, float]
    seconds: float

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


class Report(Protocol):
    """Whom a run tells."""

    def skipped(self, skip: Skip) -> None: ...
    def noted(self, note: str) -> None: ...
    def advanced(self, what: str, done: int, total: int) -> None: ...
    def recorded(self, record: Mapping[str, Any]) -> None: ...


class Silent:
    """A report to nobody."""

    def skipped(self, skip: Skip) -> None:
        pass

    def noted(self, note: str) -> None:
        pass

    def advanced(self, what: str, done: int, total: int) -> None:
        pass

    def recorded(self, record: Mapping[str, Any]) -> None:
        pass
