"""Which files a run is about: what the user named, filtered and divided, as one fixed list."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aim_mlx.images import Listing, discover, in_share


@dataclass(frozen=True)
class Selection:
    """Sources on the command line, paths from a list, and the rules for what is in folders.

    `share` (i, n) takes the i-th of n parts of the list, for as many machines.
    """

    sources: tuple[str, ...]
    from_list: tuple[str, ...] = ()
    follow: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    share: tuple[int, int] | None = None

    def listing(self, outputs: Iterable[Path]) -> tuple[Listing, dict[str, Any]]:
        """The files, without those of the outputs, and the facts for the record of the run.

        Raises UsageError for a source that is missing.
        """
        whole = discover(
            self.sources,
            follow=self.follow,
            exclude=list(outputs),
            include_patterns=self.include,
            exclude_patterns=self.exclude,
            from_list=self.from_list,
        )
        listing = whole if self.share is None else _share(whole, self.share)
        facts = {
            "folder": _working_folder(),
            "sources": list(self.sources),
            "listed": listing.listed,
            "ignored": listing.ignored,
            "share": self.share,
            "all_files": digest_of_list(whole.files),  # the same on every machine that has a share
        }
        return listing, facts

    def __str__(self) -> str:
        return ", ".join(self.sources) or "the list of paths"


def _share(whole: Listing, share: tuple[int, int]) -> Listing:
    """One share of a listing; each counts what was ignored, as each has met it."""
    return replace(
        whole,
        files=tuple(path for path in whole.files if in_share(path, share)),
        skipped=tuple(skip for skip in whole.skipped if in_share(skip.path, share)),
    )


def _working_folder() -> str:
    """Where relative paths start; empty where that folder is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def digest_of_list(paths: Iterable[str]) -> str:
    """SHA-256 of paths in their order, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()
