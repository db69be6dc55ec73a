"""Folders and files named by the user -> the list of image files, in a fixed order, with a count.

Every entry met is listed, skipped with a reason, or ignored by a rule and counted.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

from aim_mlx.errors import UsageError

# Suffixes that say "image". Those that no decoder here reads are listed all the same: the decoder
# gives each a reason, where leaving them out would lose them in silence.
_DECODED = "jpg jpeg jpe jfif mpo png apng webp gif tif tiff bmp dib avif avifs heic heif hif "
_DECODED += "heics heifs pnm ppm pgm pbm"
_REFUSED = "jxl jp2 j2k jpx svg svgz eps psd psb ico tga exr hdr qoi "
_REFUSED += "dng cr2 cr3 crw nef nrw arw srf sr2 raf orf rw2 pef srw 3fr iiq x3f"
IMAGE_SUFFIXES = frozenset("." + word for word in (_DECODED + " " + _REFUSED).split())

_IGNORED_NAMES = frozenset(
    (".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "__MACOSX", "@eaDir", "#recycle")
    + (".Trashes", ".Spotlight-V100", ".fseventsd", ".TemporaryItems", "$RECYCLE.BIN")
    + ("System Volume Information", ".ipynb_checkpoints")
)
_LIBRARY_SUFFIXES = (".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary")


@dataclass(frozen=True)
class Skip:
    """Something that should have been an image and cannot be: a fixed word and a sentence."""

    path: str | Path
    reason: str
    detail: str


@dataclass(frozen=True)
class Listing:
    """What discover() met: listed == len(files) + ignored + len(skipped)."""

    files: tuple[Path, ...]
    ignored: int
    skipped: tuple[Skip, ...]
    notes: tuple[str, ...]

    @property
    def listed(self) -> int:
        return len(self.files) + self.ignored + len(self.skipped)


def discover(
    sources: Iterable[str | Path], follow: bool = False, exclude: Iterable[str | Path] = ()
) -> Listing:
    """Image files under the sources, sorted by the bytes of their paths, each once.

    A file named itself is listed whatever its suffix. Folders are searched by suffix; links to
    files are followed, links to folders only with `follow`, each folder once. `exclude` names
    files and folders to pass by, such as the output. Raises UsageError for a source that is
    missing.
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = (sources,)
    search = _Search(follow)
    search.pass_by(exclude)
    search.add_sources(sources)
    search.run()
    return search.listing()


class _Search:
    """One walk: iterative, so that no depth of folders ends it."""

    def __init__(self, follow: bool):
        self.follow = follow
        self.files: list[str] = []
        self.skipped: list[Skip] = []
        self.ignored: Counter[str] = Counter()
        self.libraries: list[str] = []
        self.named: set[tuple[int, int, str]] = set()  # device, inode of the folder, and file name
        self.visited: set[tuple[int, int]] = set()
        self.folders: list[str] = []
        self.linked: list[tuple[bytes, str]] = []  # a heap: folders behind links come last

    def pass_by(self, paths: Iterable[str | Path]) -> None:
        for path in (os.fspath(path) for path in paths):
            if os.path.isdir(path):
                self.visited.add(_identity(path))
            elif os.path.lexists(path):
                self.named.add(_file_key(path))

    def add_sources(self, sources: Iterable[str | Path]) -> None:
        for path in (os.fspath(source) for source in sources):
            try:
                mode = os.stat(path).st_mode
            except (OSError, ValueError) as error:
                if not os.path.islink(path):
                    raise UsageError(
                        f"expected a file or folder, but {path!r} cannot be found: check the path"
                    ) from error
                mode = 0
            if stat.S_ISDIR(mode):
                self.folders.append(path)
            elif (key := _file_key(path)) not in self.named:
                self.named.add(key)
                if stat.S_ISREG(mode):
                    self.files.append(path)
                else:
                    self._skip_irregular(path)
        self.folders.reverse()

    def run(self) -> None:
        while self.folders or self.linked:
            # Real folders first: a photo is named by its own place, whatever links lead to it.
            self._scan(self.folders.pop() if self.folders else heappop(self.linked)[1])

    def _scan(self, folder: str) -> None:
        try:
            identity = _identity(folder)
            if identity in self.visited:
                return
            self.visited.add(identity)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if (*identity, entry.name) not in self.named:
                        self._add(entry)
        except OSError as error:
            detail = f"the folder cannot be read: {error.strerror or error}"
            self.skipped.append(Skip(Path(folder), "unreadable", detail))

    def _add(self, entry: os.DirEntry) -> None:
        is_image = os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
        if entry.name.startswith("._") or entry.name in _IGNORED_NAMES:
            self.ignored["system files"] += 1
        elif entry.is_dir(follow_symlinks=False):
            if entry.name.lower().endswith(_LIBRARY_SUFFIXES):
                self.ignored["photo libraries"] += 1
                self.libraries.append(entry.path)
            else:
                self.folders.append(entry.path)
        elif entry.is_symlink() and os.path.isdir(entry.path):
            if self.follow:
                heappush(self.linked, (os.fsencode(entry.path), entry.path))
            else:
                self.ignored["links to folders"] += 1
        elif not is_image:
            self.ignored["other files"] += 1
        elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
            self.files.append(entry.path)
        else:
            self._skip_irregular(entry.path)

    def _skip_irregular(self, path: str) -> None:
        detail = "a FIFO, socket or device, not a file"
        if os.path.islink(path) and not os.path.exists(path):
            detail = "a link to nothing"
        self.skipped.append(Skip(Path(path), "not_regular", detail))

    def listing(self) -> Listing:
        notes = [f"{count} {what}" for what, count in sorted(self.ignored.items())]
        for library in sorted(self.libraries, key=os.fsencode):
            notes.append(f"photo library left out: {library!r} (export its photos to a folder)")
        return Listing(
            files=tuple(sorted(map(Path, self.files), key=os.fsencode)),
            ignored=self.ignored.total(),
            skipped=tuple(sorted(self.skipped, key=lambda skip: os.fsencode(skip.path))),
            notes=tuple(notes),
        )


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _file_key(path: str) -> tuple[int, int, str]:
    parent, name = os.path.split(path)
    return (*_identity(parent or "."), name)
