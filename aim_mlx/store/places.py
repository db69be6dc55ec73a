"""Where the names in a store lead: which file each stands for, and whether it is still there."""

import os
from functools import cache

from aim_mlx.images import is_under

# A directory entry: its folder (device and inode, or the real path of one that is gone) and name.
Entry = tuple[tuple[int, int] | str, str]


class Places:
    """The files that names stand for; relative names start in `base`.

    What was found of a folder is kept, so that many files cost a look at each of their folders.
    """

    def __init__(self, base: str):
        self._base = base
        self._key_of = cache(_key)
        self._real = cache(os.path.realpath)

    def locate(self, name: str) -> str:
        return os.path.join(self._base, name)

    def entry(self, name: str) -> Entry:
        """What is the same for two names of one file, and differs for copies and hard links."""
        folder, last = os.path.split(self.locate(name))
        return self._key_of(folder or "."), last

    def is_gone(self, name: str) -> bool:
        """Whether there is no such file; False where that cannot be known."""
        try:
            os.lstat(self.locate(name))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # in a folder that cannot be read now
        return False

    def is_under(self, name: str, source: str) -> bool:
        """Whether a file is a source or below it, however both are spelled."""
        folder, last = os.path.split(self.locate(name))
        spellings = {os.path.abspath(folder), self._real(folder)}
        tops = {os.path.abspath(source), self._real(source)}
        return any(is_under(os.path.join(f, last), top) for f in spellings for top in tops)


def _key(folder: str) -> tuple[int, int] | str:
    try:
        found = os.stat(folder)
    except OSError:
        return os.path.realpath(folder)
    # Some network file systems number nothing.
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(folder)
