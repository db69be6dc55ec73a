"""Where the photos of a store are now: which rows are of one file, and which files are gone."""

import os
from collections.abc import Collection, Hashable, Iterable
from functools import cached_property

from aim_mlx.store.lists import read_header, started_in
from aim_mlx.store.places import Places
from aim_mlx.store.reader import EmbeddingStore


class Photos:
    """The photos of a store's rows; each is looked at once, when it is first asked for.

    A photo is gone when its file is not there while the folder that was embedded still is. Where
    that folder is missing or empty (another machine, a disk that is not mounted) its photos count
    as there. With `gone` those that are gone count too.
    """

    def __init__(self, store: EmbeddingStore, gone: bool = False):
        self._store, self._with_gone = store, gone
        self._places = Places(started_in(store.folder))
        self._files: dict[int, Hashable] = {}
        self._inodes: dict[int, tuple[int, int]] = {}
        self._folders: dict[str, bool] = {}
        self.gone: set[int] = set()  # of the rows asked for
        self.away: set[int] = set()  # not there, in a folder that is not there either

    def file(self, row: int) -> Hashable | None:
        """The same for all rows of one file, links to it included; None for one that is gone."""
        if row not in self._files:
            self._files[row] = self._look(row)
        return self._files[row]

    @property
    def left_out(self) -> int:
        """How many of the rows asked for are left out as their photos are gone."""
        return 0 if self._with_gone else len(self.gone)

    def each_once(self, rows: Iterable[int], without: Collection[Hashable] = ()) -> list[int]:
        """The first row of each file, in order, but none of the files `without`."""
        seen: set[Hashable] = {None, *without}
        return [row for row in rows if not ((file := self.file(row)) in seen or seen.add(file))]

    def is_link(self, row: int) -> bool:
        """Whether a row's path is a symbolic link."""
        return os.path.islink(self._store.locate(row))

    def inode(self, row: int) -> tuple[int, int] | None:
        """The same for hard links, which are names of one file; None where it is not known."""
        return self._inodes.get(row) if self.file(row) is not None else None

    def _look(self, row: int) -> Hashable | None:
        path = self._store.paths[row]
        # As EmbeddingStore.locate() does: from here if it is only there.
        for place in dict.fromkeys((self._places.locate(path), path)):
            try:
                found = os.stat(place)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return place  # in a folder that cannot be read now
            if found.st_ino:  # some network file systems number nothing
                self._inodes[row] = found.st_dev, found.st_ino
            return file_of(place, found)
        gone = self._is_folder_there(path)
        (self.gone if gone else self.away).add(row)
        return None if gone and not self._with_gone else self._places.locate(path)

    def _is_folder_there(self, path: str) -> bool:
        """Whether the folder that was embedded, and a path with it, is there and not empty."""
        folder = os.path.dirname(self._places.locate(path)) or "."
        if folder not in self._folders:
            above = (source for source in self._sources if self._places.is_under(folder, source))
            try:
                with os.scandir(next(above, folder)) as entries:
                    self._folders[folder] = next(entries, None) is not None
            except OSError:
                self._folders[folder] = False
        return self._folders[folder]

    @cached_property
    def _sources(self) -> list[str]:
        """The folders of the last run."""
        sources = read_header(self._store.folder).get("sources", [])
        return [self._places.locate(source) for source in sources]


def file_of(place: str | os.PathLike[str], found: os.stat_result | None = None) -> Hashable:
    """What is the same for all spellings of a path and links to it, and not for hard links.

    `found` is what os.stat() says of it; raises OSError where it is not there.
    """
    found = found or os.stat(place)
    if found.st_nlink == 1 and found.st_ino:
        return found.st_dev, found.st_ino
    return Places("").entry(os.path.realpath(place))
