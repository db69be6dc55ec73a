"""Grouping what has one shape into batches, and putting finished rows back into order."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from aim_mlx.backend import BLAS, on_gpu
from aim_mlx.images import Embedded
from aim_mlx.models.vision import VisionEncoder

# A sample of a rare shape waits no longer than this many samples for others of its shape, and
# all that wait hold no more than this many batches' worth of patches: memory stays bounded.
_LONGEST_WAIT = 512
_BATCHES_WAITING = 4
_SMALLEST_GROUP = 64  # texts that begin alike, to be worth batches of their own

# Operations a second that even a slow device of the kind does: the first Macs with Apple silicon, a
# core of a CPU, one without a fast BLAS. They decide how much work a block is, no more.
_GPU_RATE, _CORE_RATE, _SLOW_CORE_RATE = 2e12, 7.5e10, 5e9
_BLOCK_SECONDS = 5.0
_LARGEST_BLOCK = 1024
_NATIVE_PATCHES = 1536  # of a photograph of 640 x 480


def block_size(model: VisionEncoder, batch_size: int | None) -> int:
    """How many images make a block: some 5 s of work on a slow device, in whole batches.

    Batches do not reach over the end of a block, and only whole blocks are kept: so a run that was
    interrupted gives the same bits as one that was not. On a CPU each core has a batch.
    """
    config = model.config
    patches = config.grid**2 if config.grid else _NATIVE_PATCHES
    block = config.embed_dim * (4 * config.embed_dim + 3 * config.mlp_hidden_dim)
    operations = 2 * patches * config.num_blocks * block
    cores = 1 if on_gpu() else BLAS.threads
    rate = _SLOW_CORE_RATE if BLAS.state == "missing" else _CORE_RATE
    images = int(_BLOCK_SECONDS * (_GPU_RATE if on_gpu() else cores * rate) / operations)
    size = min(_LARGEST_BLOCK, 1 << max(1, images).bit_length() - 1)
    whole = cores * (batch_size or 1)
    return -(-size // whole) * whole


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


def text_batches(
    ids: np.ndarray, lengths: np.ndarray, tokens: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Texts (B, L) of these lengths -> rows of each batch, and how many first tokens they share.

    Texts that begin alike run together, as prompts of one template do, then those of like length.
    A batch has at most `tokens` tokens that are not shared, padding included, or one row.
    """
    for group, shared in _alike(ids, lengths, np.arange(len(ids)), 0):
        rest = lengths[group] - shared
        order = np.argsort(-rest, kind="stable")
        start = 0
        while start < len(order):
            part = order[start : start + max(1, tokens // int(rest[order[start]]))]
            yield group[part], shared
            start += len(part)


def _alike(
    ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, shared: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Rows that share `shared` tokens, divided where many go on alike; none shares its last."""
    while len(rows) > 1 and shared < lengths[rows].min() - 1:
        tokens, places, counts = np.unique(
            ids[rows, shared], return_inverse=True, return_counts=True
        )
        if len(tokens) > 1:
            many = np.flatnonzero(counts >= _SMALLEST_GROUP)
            for token in many:
                yield from _alike(ids, lengths, rows[places == token], shared + 1)
            rows = rows[~np.isin(places, many)]
            break
        shared += 1
    if len(rows):
        yield rows, shared


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
