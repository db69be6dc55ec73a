"""What a run has to do: which listed files a store has as they are, and which must be looked at."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aim_mlx.errors import UsageError
from aim_mlx.images import is_under, size_and_time
from aim_mlx.store.catalog import Catalog
from aim_mlx.store.journal import State

# Reasons that lie in the file itself: while it stays as it is, trying again gives the same.
_SETTLED = frozenset({"not_image", "truncated", "too_large", "unsupported_mode", "non_finite"})


@dataclass
class Plan:
    """Listed files by what becomes of them: len(todo) + unchanged + len(skipped) is their number.

    `skipped` are the records of those that failed before and have not changed since.
    """

    todo: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)


def make_plan(
    files: Iterable[str], catalog: Catalog, state: State, retried: Collection[str]
) -> Plan:
    """Compares files with the store by size and time of change; `retried` are reasons to ignore."""
    plan = Plan()
    for path in files:
        row, skip = catalog.find(path), state.skipped.get(path)
        facts = facts_of(path) if row is not None or skip else None
        if row is not None and facts is not None and catalog.is_file(row, *facts):
            plan.unchanged += 1
        elif skip and _stands(skip, state, retried) and _is_same(skip, facts):
            plan.skipped.append(skip)
        else:
            plan.todo.append(path)
    return plan


def facts_of(path: str) -> tuple[int, int] | None:
    """Size and time of change in nanoseconds, None for a file that cannot be looked at."""
    try:
        return size_and_time(os.stat(path))
    except OSError:
        return None  # whoever opens it will say why


def _stands(skip: dict[str, Any], state: State, retried: Collection[str]) -> bool:
    """Whether a file need not be tried again while it is the same.

    That which the run that is being resumed has tried need not be, whatever the reason: the blocks
    that are left must be those that it would have come to.
    """
    settled = skip["reason"] in _SETTLED or skip["path"] in state.tried
    return settled and skip["reason"] not in retried


def _is_same(skip: dict[str, Any], facts: tuple[int, int] | None) -> bool:
    return facts is not None and (skip["size"], skip["mtime_ns"]) == facts


def retried_reasons(everything: bool, truncated: bool, too_large: bool) -> frozenset[str]:
    """The reasons that the options of this run may have done away with."""
    reasons = {"truncated"} if truncated else set()
    reasons |= {"too_large"} if too_large else set()
    return frozenset(_SETTLED if everything else reasons)


def vanished(catalog: Catalog, listed: Collection[str], sources: Sequence[str]) -> list[int]:
    """The rows, by their numbers, of files that were under the sources and are there no more."""
    gone = (
        catalog.find(path)
        for path in catalog.current()
        if path not in listed and any(is_under(path, s) for s in sources) and _is_gone(path)
    )
    return [row for row in gone if row is not None]


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # in a folder that cannot be read now: who knows
    return False


def check_same_folder(last: str, now: str, sources: Sequence[str]) -> None:
    """Raises UsageError where relative paths meant other files in the last run than they do now."""
    if last != now and not all(map(os.path.isabs, sources)):
        raise UsageError(
            f"the last run was started in {last!r}, where relative paths are of other files: "
            "--prune from there, or leave it out"
        )


def check_prune(catalog: Catalog, listed: Collection[str], sources: Sequence[str]) -> None:
    """Raises UsageError where a source lists nothing of what the store has: a disk not mounted?"""
    for source in sources:
        there = sum(is_under(path, source) for path in catalog.current())
        if there and not any(is_under(path, source) for path in listed):
            raise UsageError(
                f"{source!r} lists no image, but the store has {there:,} from there: is its disk "
                "mounted? Nothing was done; leave out --prune to keep those rows"
            )
