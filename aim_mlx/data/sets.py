"""The data set that a command is given: what is read, and how it is divided."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aim_mlx.data.labelled import Columns, Labelled, read_labelled
from aim_mlx.data.splits import DataSet, divided


@dataclass(frozen=True)
class Data:
    """A folder or table of labelled images; see read_labelled() and divided() for the fields."""

    source: str
    columns: Columns = field(default_factory=Columns)
    multi_label: bool = False
    allow_empty: bool = False
    follow: bool = False
    val: float = 0.15
    test: float = 0.15

    @property
    def name(self) -> str:
        return Path(self.source).resolve().name

    def labelled(self, *exclude: Path) -> Labelled:
        """The images and their labels, without those below some folders; none is opened."""
        return read_labelled(
            self.source,
            columns=self.columns,
            multi_label=self.multi_label,
            allow_empty=self.allow_empty,
            follow=self.follow,
            exclude=exclude,
        )

    def divided(
        self, seed: int, progress: Callable[[int, int], None] | None = None, *exclude: Path
    ) -> DataSet:
        """The parts to train on, choose by and test with, every file read."""
        return divided(
            self.labelled(*exclude),
            val=self.val,
            test=self.test,
            seed=seed,
            allow_empty=self.allow_empty,
            progress=progress,
        )
