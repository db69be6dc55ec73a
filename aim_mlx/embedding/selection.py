"""What a run is about: the files that the user named, as one fixed list, where to, and how."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aim_mlx.encoder.pipeline import EmbedOptions
from aim_mlx.images import Listing, discover, in_share
from aim_mlx.store.lists import Places, digest_of_paths
from aim_mlx.wording import counted


@dataclass(frozen=True)
class Selected:
    """The files of a run, each once; `links` are left out, each with the listed file it leads to.

    `header` is what is written down about the list; `places` says where names lead.
    """

    listing: Listing
    links: Mapping[str, str]
    header: dict[str, Any]
    places: Places

    @property
    def sources(self) -> list[str]:
        """What the user named, but for single paths of a list."""
        return self.header["sources"]


@dataclass(frozen=True)
class Selection:
    """Sources on the command line, paths from a list, and the rules for what is in folders.

    `share` (i, n) takes the i-th of n parts of the list, for as many machines.
    """

    sources: tuple[str, ...]
    from_list: tuple[str, ...] = ()
    follow: bool = False
    hidden: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    share: tuple[int, int] | None = None

    def select(self, outputs: Iterable[Path], base: str = "") -> Selected:
        """The files, without those of the outputs.

        `base` is the folder that relative names of an output start in; from another folder the
        files are named by absolute paths. Raises UsageError for a source that is missing, AimError
        where there is no image.
        """
        here = _working_folder()
        base = base or here
        prefix = "" if base == here else here
        sources = [os.path.join(prefix, source) for source in self.sources]
        entries = discover(
            sources,
            follow=self.follow,
            hidden=self.hidden,
            exclude=list(outputs),
            include_patterns=self.include,
            exclude_patterns=self.exclude,
            from_list=[os.path.join(prefix, path) for path in self.from_list],
        )
        places = Places(base)
        whole, links = _each_once(entries, places)
        listing = whole if self.share is None else _share(whole, self.share)
        listing.check_any(str(self))
        header = {
            "folder": base,
            "sources": sources,
            "listed": listing.listed,
            "ignored": listing.ignored,
            "share": self.share,
            "all_files": digest_of_paths(whole.files),  # the same on every machine that has a share
        }
        return Selected(listing, links, header, places)

    def __str__(self) -> str:
        return ", ".join(self.sources) or "the list of paths"


@dataclass(frozen=True)
class Rules:
    """What a run makes of what an earlier one left."""

    overwrite: bool = False
    retry_skipped: bool = False
    prune: bool = False


@dataclass(frozen=True)
class Job:
    """What is to be embedded, where to, and how; `stop` ends it early, to be resumed."""

    selection: Selection
    output: Path
    options: EmbedOptions
    rules: Rules = Rules()
    stop: Callable[[], bool] = lambda: False


def _each_once(whole: Listing, places: Places) -> tuple[Listing, dict[str, str]]:
    """A listing without links to files that it has under another name, and those links."""
    if not whole.links:
        return whole, {}
    links = frozenset(whole.links)
    name_of = {places.entry(path): path for path in whole.files if path not in links}
    left_out: dict[str, str] = {}
    for link in whole.links:
        name = name_of.setdefault(places.entry(os.path.realpath(link)), link)
        if name != link:
            left_out[link] = name
    if not left_out:
        return whole, {}
    note = counted(len(left_out), "link to a listed photo", "links to listed photos")
    once = replace(
        whole,
        files=tuple(path for path in whole.files if path not in left_out),
        ignored=whole.ignored + len(left_out),
        notes=(*whole.notes, f"ignored {note}"),
    )
    return once, left_out


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
