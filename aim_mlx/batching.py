"""Grouping what has one shape into batches, and putting finished rows back into order."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Protocol, TypeVar

import numpy as np

from aim_mlx.images import Sample

# A sample of a rare shape waits no longer than this many samples for others of its shape, and
# all that wait hold no more than this many batches' worth of patches: memory stays bounded.
_LONGEST_WAIT = 512
_BATCHES_WAITING = 4


class Indexed(Protocol):
    @property
    def index(self) -> int: ...


Row = TypeVar("Row", bound=Indexed)


def batches(
    samples: Iterable[Sample], patch_size: int, batch_size: int, patches: int | None = None
) -> Iterator[list[Sample]]:
    """Samples in order -> lists whose pixels have one shape; failures ride along with any.

    A list is full at `batch_size` samples or, where `patches` is given, at about that many patches.
    """
    groups: dict[tuple[int, ...], list[Sample]] = {}
    failures: list[Sample] = []
    waiting = 0
    for sample in samples:
        if sample.pixels is None:
            failures.append(sample)
            if len(failures) >= _LONGEST_WAIT:
                yield failures
                failures = []
            continue
        shape = sample.pixels.shape
        grid = (shape[0] // patch_size) * (shape[1] // patch_size)
        group = groups.setdefault(shape, [])
        group.append(sample)
        waiting += grid
        full = batch_size if patches is None else min(batch_size, max(1, patches // grid))
        if len(group) >= full:
            ready = shape
        elif waiting > _BATCHES_WAITING * full * grid or _oldest_waits(groups, sample.index):
            ready = next(iter(groups))
        else:
            continue
        batch = groups.pop(ready)
        waiting -= len(batch) * (ready[0] // patch_size) * (ready[1] // patch_size)
        yield [*failures, *batch]
        failures = []
    yield from groups.values()
    if failures:
        yield failures


def by_length(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Texts of these lengths -> the rows of each batch, longest first, with little to pad.

    A batch, each row padded to its longest, has at most `tokens` tokens, or one row.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, tokens // int(lengths[order[start]]))]
        yield rows
        start += len(rows)


def _oldest_waits(groups: dict[tuple[int, ...], list[Sample]], index: int) -> bool:
    """Whether the group begun first has waited too long; dictionaries keep that order."""
    return index - next(iter(groups.values()))[0].index >= _LONGEST_WAIT


def in_order(rows: Generator[Row, None, None], count: int) -> Generator[Row, None, None]:
    """Rows 0 to count - 1 in the order of their index, each as soon as those before it are out."""
    early: dict[int, Row] = {}
    position = 0
    with closing(rows):
        for row in rows:
            early[row.index] = row
            while position in early:
                yield early.pop(position)
                position += 1
    if position != count or early:
        raise RuntimeError(f"{count} rows were expected in order, {position} came")
