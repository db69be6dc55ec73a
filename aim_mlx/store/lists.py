"""The lists of a run, one JSON record a line: the files it was to embed, and those it skipped.

The files are written down before the first is opened. Records may come from elsewhere, so they are
checked against a form before use: a Kind; [form], a list of such values; or {name: form}, an object
with these members and maybe others. A name that ends with "?" may be missing.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.errors import CheckpointError, OutputError
from aim_mlx.files import disk_errors, open_regular, publish
from aim_mlx.images import is_under
from aim_mlx.weights.strict_json import parse_object, show

_ABSENT = object()


class Damaged(ValueError):
    """A record that is not as it was written; the message says where."""


@dataclass(frozen=True)
class Kind:
    """The values of a field: in words, and whether a value is one."""

    words: str
    holds: Callable[[Any], bool]


def whole(low: int = 0, high: int = 2**63 - 1) -> Kind:
    """Whole numbers of a range."""
    words = f"a whole number from {low} to {high}"
    return Kind(words, lambda value: type(value) is int and low <= value <= high)


def maybe(kind: Kind) -> Kind:
    """These values, or null."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


def matching(pattern: str, words: str) -> Kind:
    """Texts that match a pattern from end to end."""
    match = re.compile(pattern).fullmatch
    return Kind(words, lambda value: isinstance(value, str) and match(value) is not None)


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # half a pair of surrogates: no name of a file
        return False


def _is_share(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    return numbers and 1 <= value[0] <= value[1] <= 10**6


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
PATH = Kind("the path of a file", _is_path)
SHA256 = matching("[0-9a-f]{64}", "a SHA-256 in hex")


def check(value: Any, form: Any, name: str = "") -> None:
    """Raises Damaged, with the name of the field, for a value that is not of a form."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise _wrong(value, "an object", name)
        for key, inner in form.items():
            member = value.get(key.removesuffix("?"), _ABSENT)
            if member is not _ABSENT:
                check(member, inner, f"{name}.{key}".strip(".?"))
            elif not key.endswith("?"):
                raise Damaged(f"it lacks {f'{name}.{key}'.strip('.')}")
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise _wrong(value, "a list", name)
        for number, each in enumerate(value):
            check(each, form[0], f"{name}[{number}]")
    elif not form.holds(value):
        raise _wrong(value, form.words, name)


def _wrong(value: Any, words: str, name: str) -> Damaged:
    """The message never is as long or as deep as the value may be."""
    kinds = {dict: "an object", list: "a list"}
    shown = kinds.get(type(value)) or show(value)
    return Damaged(f"its {name or 'content'} must be {words}, not {shown}")


def parse(data: bytes, form: Any) -> dict[str, Any]:
    """The one JSON object of this form in `data`; raises Damaged."""
    try:
        record = parse_object(data, "it")
    except CheckpointError as error:
        raise Damaged("it is not a plain JSON object") from error
    check(record, form)
    return record


FILES = "files.jsonl"
SKIPPED = "skipped.jsonl"
SKIP = {
    "path": PATH,
    "reason": TEXT,
    "detail": TEXT,
    "size": maybe(whole()),
    "mtime_ns": maybe(whole(-(2**127), 2**127)),
}
_HEADER = {
    "folder": PATH,
    "listed": whole(),
    "ignored": whole(),
    "sources?": [PATH],
    "output?": maybe(PATH),
    "all_files?": TEXT,
    "share?": maybe(Kind("the number and the count of a share", _is_share)),
}
_LONGEST = 32 << 20  # bytes of a line; a path has some thousands, the sources of a run 2 million


def write_files(folder: Path, header: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Publishes the list of a run: a line about the run, then a path a line; raises OSError."""

    def write(file: BinaryIO) -> None:
        file.write(_line(header))
        file.writelines(map(_line, paths))

    publish({folder / FILES: write})


def read_files(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The header and the paths of the last run; raises OutputError."""
    with _lines(folder / FILES) as lines:
        header = parse(next(lines, b""), _HEADER)
        paths = [json.loads(line) for line in lines]
        check(paths, [PATH], "paths")
    return header, paths


def read_header(folder: Path) -> dict[str, Any]:
    """What is known of the last run; empty where its list cannot be read."""
    try:
        with _lines(folder / FILES) as lines:
            return parse(next(lines, b""), _HEADER)
    except OutputError:
        return {}


def digest(folder: Path) -> str:
    """SHA-256 of the list of the last run, in hex; raises OutputError."""
    path = folder / FILES
    with disk_errors("read", path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_paths(paths: Iterable[str]) -> str:
    """SHA-256 of paths in their order, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()


def write_skips(folder: Path, skips: Iterable[Mapping[str, Any]]) -> None:
    """Publishes the skips, one a line; raises OSError."""
    publish({folder / SKIPPED: lambda file: file.writelines(map(_line, skips))})


def append_skips(folder: Path, skips: Iterable[Mapping[str, Any]]) -> None:
    """Adds skips for whoever looks while a run goes on; the journal is what counts."""
    with open_regular(folder / SKIPPED, "ab") as file:
        file.write(b"".join(map(_line, skips)))  # in one piece, for who reads meanwhile


def read_skips(folder: Path) -> list[dict[str, Any]]:
    """The skips of the last run; raises OutputError."""
    with _lines(folder / SKIPPED) as lines:
        return [parse(line, SKIP) for line in lines]


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a list; an error in reading or parsing them becomes an OutputError."""
    try:
        with disk_errors("read", path), open_regular(path) as file:
            yield iter(partial(file.readline, _LONGEST), b"")
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, Damaged) else "it is not JSON"
        raise OutputError(
            f"{str(path)!r} is damaged ({why}): embed again to write a new one"
        ) from error


def place(folder: Path) -> str:
    """Where a store is, for the header of a run into it."""
    return os.path.realpath(folder)


def started_in(folder: Path) -> str:
    """The folder that relative names of a store start in; empty where that is not known.

    It is not known where the store was moved or copied since, with its photos or without.
    """
    header = read_header(folder)
    if header.get("output") not in (None, place(folder)):
        return ""
    base = header.get("folder", "")
    return base if os.path.isdir(base) else ""


# A directory entry: its folder (device and inode, or the real path of one that is gone) and name.
Entry = tuple[tuple[int, int] | str, str]


class Places:
    """The files that names in lists stand for; relative names start in `base`.

    Each folder is looked at once, however many files are in it.
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
        status = os.stat(folder)
    except OSError:
        return os.path.realpath(folder)
    # Some network file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
