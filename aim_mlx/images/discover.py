"""Folders and files named by the user -> the list of image files, in a fixed order, with a count.

Every entry met is listed, skipped with a reason, or ignored by a rule and counted. The names may
come from a stream, and the files may be divided among machines.
"""

import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

from aim_mlx.errors import AimError, ImageError, UsageError
from aim_mlx.images.contents import check_regular, unreadable
from aim_mlx.wording import counted


class Patterns:
    """Globs over paths below a source: `*` (crosses folders), `?`, `[abc]`, `[!abc]`.

    Case matters. A glob without "/" is matched against the name, one with "/" against the whole
    path; one that ends in "/" means folders only, one that begins with it the top of the source.
    Raises UsageError for an empty glob.
    """

    def __init__(self, globs: Iterable[str]):
        if isinstance(globs, str):
            globs = (globs,)
        self._globs: list[tuple[str, bool, bool]] = []  # glob, of whole paths, of folders only
        for text in globs:
            glob = text.removesuffix("/").removeprefix("/")
            if not glob.strip("/"):
                raise UsageError(f"expected a pattern such as '*.png' or 'drafts/', got {text!r}")
            self._globs.append((_composed(glob), "/" in text.removesuffix("/"), text[-1] == "/"))

    def __bool__(self) -> bool:
        return bool(self._globs)

    def match(self, path: str, is_folder: bool) -> bool:
        """Whether any glob matches this path, which is given below its source."""
        path = _composed(path)
        name = path.rpartition("/")[2]
        return any(
            fnmatchcase(path if of_paths else name, glob)
            for glob, of_paths, folders_only in self._globs
            if is_folder or not folders_only
        )


def _composed(text: str) -> str:
    # What is typed as one letter may be two in a file's name: macOS takes them for the same.
    return unicodedata.normalize("NFC", text)


_Identity = tuple[int, int]  # device and inode

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
_NO_IMAGE = "file that is no image"
_SEVERAL = {
    "link to a folder": "links to folders",
    "photo library": "photo libraries",
    _NO_IMAGE: "files that are no images",
}


@dataclass(frozen=True)
class Skip:
    """Something that should have been an image and cannot be: a fixed word and a sentence."""

    path: str
    reason: str
    detail: str

    @classmethod
    def of(cls, path: str, failure: ImageError) -> "Skip":
        return cls(path, failure.reason, failure.detail)


@dataclass(frozen=True)
class Listing:
    """What discover() met: listed == len(files) + ignored + len(skipped).

    `links` are those of the files that are symbolic links.
    """

    files: tuple[str, ...]
    ignored: int
    skipped: tuple[Skip, ...]
    notes: tuple[str, ...]
    links: tuple[str, ...] = ()

    @property
    def listed(self) -> int:
        return len(self.files) + self.ignored + len(self.skipped)

    def check_any(self, under: str) -> None:
        """Raises AimError, saying what was ignored, where there is no image."""
        if not self.files and not self.skipped:
            notes = f" ({', '.join(self.notes)})" if self.notes else ""
            raise AimError(f"0 images under {under}{notes}: give a folder with images")


def discover(
    sources: Iterable[str | Path],
    follow: bool = False,
    exclude: Iterable[str | Path] = (),
    include_patterns: Iterable[str] = (),
    exclude_patterns: Iterable[str] = (),
    from_list: Iterable[str | Path] = (),
    hidden: bool = False,
) -> Listing:
    """Image files under the sources, sorted by the bytes of their paths, each once.

    A file named itself is listed whatever its suffix and the patterns. Folders are searched by
    suffix; links to files are followed, links to folders only with `follow`, each folder once. A
    hidden folder (".name") is entered only if it is named itself, or with `hidden`.
    `exclude` names files and folders to pass by uncounted, such as the output.

    The patterns are globs (see Patterns) for what is in folders. A folder that matches stands
    for all that is in it; an excluded one is not entered and counts as one. Of the images those
    that match an include pattern, if there are any, and no exclude pattern are listed.

    `from_list` are further sources, of which one that is missing is skipped as `vanished`. Raises
    UsageError for one of `sources` that is missing, and for an empty pattern.
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = (sources,)
    search = _Search(follow, hidden, Patterns(include_patterns), Patterns(exclude_patterns))
    search.pass_by(exclude)
    search.add_sources(sources)
    search.add_sources(from_list, may_be_missing=True)
    search.run()
    return search.listing()


def is_under(path: str, source: str | Path) -> bool:
    """Whether a path, as discover() gives it, is that of a source or of something below it."""
    top = _clean(source)
    if top == ".":
        return not os.path.isabs(path) and path.split("/")[0] != ".."
    return path == top or path.startswith(_prefix(top))


class _Folder(NamedTuple):
    path: str
    below: str = ""  # the path below its source, with a "/" at its end
    included: bool = False  # with all that is in it


class _Search:
    """One walk: iterative, so that no depth of folders ends it."""

    def __init__(self, follow: bool, hidden: bool, include: Patterns, exclude: Patterns):
        self.follow = follow
        self.hidden = hidden
        self.include = include
        self.exclude = exclude
        self.files: dict[str, bool] = {}  # and whether they are links
        self.skipped: dict[str, Skip] = {}
        self.ignored: Counter[str] = Counter()
        self.libraries: list[str] = []
        self.passed: set[_Identity] = set()
        self.visited: set[_Identity] = set()
        self.named: defaultdict[_Identity, set[str]] = defaultdict(set)  # folder -> names of files
        self.folders: list[_Folder] = []  # the last one is next
        self.linked: list[tuple[bytes, _Folder]] = []  # a heap: folders behind links come last
        self.identity = cache(_identity)  # of the few folders that the named files are in

    def pass_by(self, paths: Iterable[str | Path]) -> None:
        for path in (os.fspath(path) for path in paths):
            if os.path.isdir(path):
                self.passed.add(_identity(path))
            elif os.path.lexists(path):
                folder, name = os.path.split(path)
                self.named[_identity(folder or ".")].add(name)

    def add_sources(self, sources: Iterable[str | Path], may_be_missing: bool = False) -> None:
        for path in map(_clean, sources):
            try:
                mode = os.stat(path).st_mode
            except (OSError, ValueError) as error:
                if os.path.islink(path):
                    mode = 0
                elif may_be_missing:
                    self._skip(path, unreadable(path, error))
                    continue
                else:
                    raise UsageError(
                        f"expected a file or folder, but {path!r} cannot be found: check the path"
                    ) from error
            if stat.S_ISDIR(mode):
                self.folders.append(_Folder(path))
            else:
                self._add_named(path, stat.S_ISREG(mode))

    def _add_named(self, path: str, is_regular: bool) -> None:
        folder, name = os.path.split(path)
        identity = self.identity(folder or ".")
        if identity not in self.passed and name not in self.named[identity]:
            self.named[identity].add(name)
            self._add_file(path, os.path.islink(path), is_regular)

    def run(self) -> None:
        self.folders.reverse()
        while self.folders or self.linked:
            # Real folders first: a photo is named by its own place, whatever links lead to it.
            self._scan(self.folders.pop() if self.folders else heappop(self.linked)[1])

    def _scan(self, folder: _Folder) -> None:
        try:
            identity = _identity(folder.path)
            if identity in self.visited or identity in self.passed:
                return
            self.visited.add(identity)
            named = self.named.get(identity, ())
            prefix = _prefix(folder.path)
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    if entry.name not in named:
                        self._add(entry, prefix + entry.name, folder)
        except OSError as error:
            detail = f"the folder cannot be read: {error.strerror or error}"
            self._skip(folder.path, ImageError("unreadable", detail))

    def _add(self, entry: os.DirEntry, path: str, parent: _Folder) -> None:
        is_link = entry.is_symlink()
        if entry.name.startswith("._") or entry.name in _IGNORED_NAMES:
            self.ignored["system file"] += 1
        elif entry.is_dir(follow_symlinks=False) or (is_link and os.path.isdir(path)):
            self._add_folder(path, parent.below + entry.name, is_link, parent.included)
        elif os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
            self.ignored[_NO_IMAGE] += 1
        elif not self._is_wanted(parent.below + entry.name, parent.included):
            self.ignored["excluded file"] += 1
        else:
            is_regular = os.path.isfile(path) if is_link else entry.is_file()
            self._add_file(path, is_link, is_regular)

    def _add_folder(self, path: str, below: str, is_link: bool, included: bool) -> None:
        if is_link and not self.follow:
            self.ignored["link to a folder"] += 1
        elif os.path.basename(path).startswith(".") and not self.hidden:
            self.ignored["hidden folder"] += 1
        elif self.exclude and self.exclude.match(below, is_folder=True):
            self.ignored["excluded folder"] += 1
        elif below.lower().endswith(_LIBRARY_SUFFIXES):
            self.ignored["photo library"] += 1
            self.libraries.append(path)
        else:
            included = included or (bool(self.include) and self.include.match(below, True))
            folder = _Folder(path, below + "/", included)
            if is_link:
                heappush(self.linked, (os.fsencode(path), folder))
            else:
                self.folders.append(folder)

    def _is_wanted(self, below: str, included: bool) -> bool:
        if self.include and not included and not self.include.match(below, is_folder=False):
            return False
        return not (self.exclude and self.exclude.match(below, is_folder=False))

    def _add_file(self, path: str, is_link: bool, is_regular: bool) -> None:
        try:
            if not is_regular:
                check_regular(path)
            self.files[path] = is_link
        except ImageError as failure:
            self._skip(path, failure)

    def _skip(self, path: str, failure: ImageError) -> None:
        self.skipped[path] = Skip.of(path, failure)

    def listing(self) -> Listing:
        notes = [
            f"ignored {counted(count, what, _SEVERAL.get(what))}"
            for what, count in sorted(self.ignored.items())
        ]
        for library in sorted(self.libraries, key=os.fsencode):
            notes.append(f"photo library left out: {library!r} (export its photos to a folder)")
        files = sorted(self.files, key=os.fsencode)
        return Listing(
            files=tuple(files),
            ignored=self.ignored.total(),
            skipped=tuple(self.skipped[path] for path in sorted(self.skipped, key=os.fsencode)),
            notes=tuple(notes),
            links=tuple(path for path in files if self.files[path]),
        )


def _identity(folder: str) -> _Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _prefix(folder: str) -> str:
    """What the paths of a folder's entries begin with."""
    return "" if folder == "." else os.path.join(folder, "")


def _clean(path: str | Path) -> str:
    """Without "./" and doubled slashes; the empty path, an unset variable perhaps, stays empty."""
    return os.fspath(path) and str(Path(path))


def read_paths(stream: BinaryIO, null: bool) -> list[str]:
    """The paths in a stream, in their order, each once; the names are kept exactly.

    They are separated by newlines (LF or CRLF), with `null` by NUL bytes. Blank entries do not
    count. Raises UsageError for a NUL byte within a line.
    """
    data = stream.read()
    if null:
        entries = data.split(b"\0")
    elif b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UsageError(f"expected a path a line, but line {line} has a NUL byte: pass -0")
    else:
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        entries = (line.removesuffix(b"\r") for line in lines if not line.isspace())
    return list(dict.fromkeys(os.fsdecode(entry) for entry in entries if entry))


def parse_share(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4), the second of four shares; raises UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    share, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= share <= count:
        raise UsageError(f"a share must be i/n with i from 1 to n, such as 2/4, got {text!r}")
    return share, count


def in_share(path: str | os.PathLike[str], share: tuple[int, int]) -> bool:
    """Whether a path belongs to share (i, n), with i from 1.

    The bytes of the path alone decide, so that no path moves when others come or go. All machines
    must therefore name the files alike.
    """
    number, count = share
    return crc32(os.fsencode(path)) % count == number - 1
