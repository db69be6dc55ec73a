"""What a run has to do: which listed files a store has as they are, and which must be looked at."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aim_mlx.embedding.selection import Job, Selected
from aim_mlx.errors import UsageError
from aim_mlx.images import is_under, size_and_time
from aim_mlx.store.journal import State
from aim_mlx.store.rows import Catalog

# Reasons that lie in the file itself: while it stays as it is, trying again gives the same.
_SETTLED = frozenset({"not_image", "truncated", "too_large", "unsupported_mode", "non_finite"})


@dataclass
class EmbeddingPlan:
    """Listed files by what becomes of them: len(todo) + unchanged + len(skipped) is their number.

    `skipped` are the records of those that failed before and have not changed since. `renamed` are
    the listed names, by row, of unchanged files that the store has under another name; `others` are
    all rows of listed files under other names. `new` are those of `todo` without any row, where the
    store has `rows`.
    """

    rows: int
    others: Mapping[str, Sequence[int]]
    todo: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    renamed: dict[int, str] = field(default_factory=dict)


def make_plan(job: Job, selected: Selected, catalog: Catalog, state: State) -> EmbeddingPlan:
    """Compares files with the store by size and time of change."""
    plan = EmbeddingPlan(len(catalog), rows_under_other_names(selected, catalog))
    retried = _retried(job)
    for path in selected.listing.files:
        row, skip, others = catalog.find(path), state.skipped.get(path), plan.others.get(path, ())
        file = looked_at(path) if row is not None or skip or others else None
        names = others if row is None else ()
        same = next((r for r in names if file and catalog.is_file(r, *file)), None)
        if row is not None and file and catalog.is_file(row, *file):
            plan.unchanged += 1
        elif skip and file == (skip["size"], skip["mtime_ns"]) and _stands(skip, state, retried):
            plan.skipped.append(skip)
        elif same is not None:
            plan.unchanged += 1
            plan.renamed[same] = path
        else:
            plan.todo.append(path)
            if row is None and not others:
                plan.new.append(path)
    return plan


def rows_under_other_names(selected: Selected, catalog: Catalog) -> dict[str, list[int]]:
    """Rows of listed files that the store has under other names, by the name that is listed.

    A relative and an absolute path, or a path through a link, name one file.
    """
    files, places = selected.listing.files, selected.places
    listed = frozenset(files)
    rows: dict[Any, list[int]] = defaultdict(list)
    for path in catalog.current():
        row = catalog.find(path)
        if path not in listed and row is not None:
            rows[places.entry(path)].append(row)
    others: dict[str, list[int]] = defaultdict(list)
    if rows:
        for path, name in [*zip(files, files, strict=True), *selected.links.items()]:
            others[name] += rows.pop(places.entry(path), [])
    return {name: numbers for name, numbers in others.items() if numbers}


def looked_at(path: str) -> tuple[int, int] | None:
    """Size and time of change in nanoseconds, None for a file that cannot be looked at."""
    try:
        return size_and_time(os.stat(path))
    except OSError:
        return None  # whoever opens it will say why


def _stands(skip: dict[str, Any], state: State, retried: Collection[str]) -> bool:
    """Whether a file need not be tried again while it is the same.

    What the run that is being resumed has tried need not be, whatever the reason: the blocks that
    are left must be those that it would have had.
    """
    settled = skip["reason"] in _SETTLED or skip["path"] in state.tried
    return settled and skip["reason"] not in retried


def _retried(job: Job) -> frozenset[str]:
    """The reasons to skip that the options of this run may have done away with."""
    reasons = {"truncated": job.options.allow_truncated, "too_large": job.options.max_pixels}
    return _SETTLED if job.rules.retry_skipped else frozenset(r for r in reasons if reasons[r])


@dataclass(frozen=True)
class Stale:
    """The rows that no longer hold: `rows` are to be taken out, those `moved` among them.

    Those `vanished` are of files that were under the sources and are gone.
    """

    rows: frozenset[int]
    moved: frozenset[int]
    vanished: tuple[int, ...]


def find_stale(
    plan: EmbeddingPlan, catalog: Catalog, selected: Selected, skips: Iterable[Mapping[str, Any]]
) -> Stale:
    """What a run over these files, which has ended with these skips, leaves of no use."""
    places, listed = selected.places, frozenset(selected.listing.files)
    moved = frozenset(_moved(plan, catalog, selected))
    gone = (
        row
        for path in catalog.current()
        if path not in listed
        and any(places.is_under(path, source) for source in selected.sources)
        and places.is_gone(path)
        and (row := catalog.find(path)) is not None
    )
    # A file that changed and now fails has no vector any more; one that vanished, or cannot even be
    # looked at, keeps its.
    unseen = {
        skip["path"] for skip in skips if skip["reason"] == "vanished" or skip["size"] is None
    }
    failed = (catalog.find(skip["path"]) for skip in skips if skip["path"] not in unseen)
    others = (row for path, rows in plan.others.items() if path not in unseen for row in rows)
    rows = {row for row in range(len(catalog)) if not catalog.is_current(row)}
    rows.update(row for row in failed if row is not None)
    rows.update(row for row in others if row not in plan.renamed)
    return Stale(frozenset(rows | moved), moved, tuple(row for row in gone if row not in moved))


def _moved(plan: EmbeddingPlan, catalog: Catalog, selected: Selected) -> Iterator[int]:
    """The rows of files that are gone, and whose content is now in the store under a new name."""
    places, listed = selected.places, frozenset(selected.listing.files)
    rows = (catalog.find(path) for path in plan.new)
    contents = {catalog.content(row) for row in rows if row is not None}
    for row in range(plan.rows if contents else 0):
        path = catalog.path(row)
        if catalog.content(row) in contents and path not in listed and places.is_gone(path):
            yield row


def check_prune(catalog: Catalog, selected: Selected) -> None:
    """Raises UsageError where a source lists nothing of what the store has: a disk not mounted?"""
    for source in selected.sources:
        there = sum(selected.places.is_under(path, source) for path in catalog.current())
        if there and not any(is_under(path, source) for path in selected.listing.files):
            raise UsageError(
                f"{source!r} lists no image, but the store has {there:,} from there: is its disk "
                "mounted? Nothing was done; leave out --prune to keep those rows"
            )
