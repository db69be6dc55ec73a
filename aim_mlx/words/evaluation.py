"""How well a LiT model's words tell labelled images apart."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.data.labelled import Item, Labelled
from aim_mlx.data.tables import read_table
from aim_mlx.encoder.encoder import EmbedOptions
from aim_mlx.errors import AimError, UsageError
from aim_mlx.images import Skip
from aim_mlx.report.figures import confusion, figures_of
from aim_mlx.words.lit import LiT
from aim_mlx.words.zeroshot import ZeroShotHead


@dataclass(frozen=True)
class ZeroShotEvaluation:
    """The figures, of which `accuracy` is the share that is right, and what was mistaken for what.

    `confusion` (C, C) counts images of the class of the row that were taken for that of the column.
    """

    classes: tuple[str, ...]
    figures: Mapping[str, Any]
    confusion: np.ndarray

    @property
    def mistakes(self) -> list[dict[str, Any]]:
        """Pairs of classes with how many images of one were taken for the other, most first."""
        off = self.confusion - np.diag(np.diag(self.confusion))
        pairs = sorted(np.argwhere(off).tolist(), key=lambda pair: (-off[pair[0], pair[1]], pair))
        names = self.classes
        return [
            {"class": names[i], "taken_for": names[j], "images": int(off[i, j])} for i, j in pairs
        ]


def labels_of(classes: Sequence[str], names: Path | None) -> tuple[str, ...]:
    """What to call each class in words: its name with blanks for _, or as a table states.

    The table has the columns class and label. Raises UsageError for a class that it lacks.
    """
    if names is None:
        return tuple(name.replace("_", " ") for name in classes)
    stated = {row.values[0]: row.values[1] for row in read_table(names, ("class", "label"))}
    if missing := [name for name in classes if name not in stated]:
        raise UsageError(f"{names.name} has no label for the class {missing[0]!r:.80}: add a row")
    return tuple(stated[name] for name in classes)


def chosen_split(data: Labelled, split: str | None) -> list[Item]:
    """The images of a split; without a name val, else test, or all where there are no splits."""
    there = {item.split for item in data.items}
    if split is not None and split not in there:
        raise UsageError(f"no split {split!r}: there are {', '.join(sorted(map(str, there)))}")
    if split is None:
        split = next((name for name in ("val", "test") if name in there), None)
    return [item for item in data.items if item.split == split]


def evaluate(
    lit: LiT,
    head: ZeroShotHead,
    items: Sequence[Item],
    classes: Sequence[str],
    options: EmbedOptions,
    skipped: Callable[[Skip], None],
    done: Callable[[str], None],
) -> ZeroShotEvaluation:
    """Probabilities of the head's labels, which are those of `classes` in turn, beside the truth.

    Images that cannot be embedded go to `skipped` and do not count. Raises AimError where none can.
    """
    places = {name: index for index, name in enumerate(classes)}
    scores, truth = [], []
    with closing(lit.embed_stream([item.path for item in items], options)) as rows:
        for row in rows:
            if row.failure is not None:
                skipped(Skip.of(row.path, row.failure))
            else:
                scores.append(head.scores(row.vector[None])[0])
                truth.append(places[items[row.index].labels[0]])
                done(row.path)
    if not truth:
        raise AimError(f"none of {len(items)} images could be read: nothing to evaluate")
    probabilities, known = np.stack(scores), np.array(truth)
    figures = figures_of(probabilities, known, classes)
    return ZeroShotEvaluation(tuple(classes), figures, confusion(probabilities, known))
