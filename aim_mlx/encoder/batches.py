"""Samples in order -> batches of one shape, and their rows back into the order of the samples."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

from aim_mlx.images import Embedded

# A sample of a rare shape waits no longer than this many samples for others of its shape, and
# all that wait hold no more than this many batches' worth of patches: memory stays bounded.
_LONGEST_WAIT = 512
_BATCHES_WAITING = 4


def batches(
    samples: Iterable[Embedded], patch_size: int, batch_size: int, patches: int | None = None
) -> Iterator[list[Embedded]]:
    """Samples in order -> lists whose pixels have one shape; failures ride along with any.

    A list is full at `batch_size` samples or, where `patches` is given, at about that many patches.
    """
    groups: dict[tuple[int, ...], list[Embedded]] = {}
    failures: list[Embedded] = []
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


def _oldest_waits(groups: dict[tuple[int, ...], list[Embedded]], index: int) -> bool:
    """Whether the group begun first has waited too long; dictionaries keep that order."""
    return index - next(iter(groups.values()))[0].index >= _LONGEST_WAIT


def in_order(
    rows: Generator[Embedded, None, None], places: Sequence[int]
) -> Generator[Embedded, None, None]:
    """Rows in the order of their places, each as soon as those before it are out."""
    early: dict[int, Embedded] = {}
    position = 0
    with closing(rows):
        for row in rows:
            early[row.index] = row
            while position < len(places) and places[position] in early:
                yield early.pop(places[position])
                position += 1
    if position != len(places) or early:
        raise RuntimeError(f"{len(places)} rows were expected in order, {position} came")
