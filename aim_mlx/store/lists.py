"""The files that a run was to embed, written down before the first is opened, and its skips."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.errors import OutputError
from aim_mlx.files import open_regular, publish
from aim_mlx.store.fields import PATH, TEXT, Damaged, Kind, check, maybe, parse, whole

FILES = "files.jsonl"
SKIPPED = "skipped.jsonl"
SKIP = {
    "path": PATH,
    "reason": TEXT,
    "detail": TEXT,
    "size": maybe(whole()),
    "mtime_ns": maybe(whole(-(2**127), 2**127)),
}


def _is_share(value: Any) -> bool:
    if value is None:
        return True
    numbers = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    return numbers and 1 <= value[0] <= value[1] <= 10**6


_HEADER = {
    "folder": PATH,
    "listed": whole(),
    "ignored": whole(),
    "sources?": [PATH],
    "output?": maybe(PATH),
    "all_files?": TEXT,
    "share?": Kind("the number and the count of a share, or null", _is_share),
}
_LONGEST = 32 << 20  # bytes of a line; a path has some thousands, the sources of a run 2 million


def write_files(folder: Path, header: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Publishes the list of a run: a line of facts about it, then a path a line; raises OSError."""

    def write(file: BinaryIO) -> None:
        file.write(_line(header))
        file.writelines(map(_line, paths))

    publish({folder / FILES: write})


def read_files(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The facts and the paths of the last run; raises OutputError."""
    with _reading(folder / FILES) as lines:
        header = parse(next(lines, b""), _HEADER)
        paths = [json.loads(line) for line in lines]
        check(paths, [PATH], "paths")
    return header, paths


def read_header(folder: Path) -> dict[str, Any]:
    """The facts of the last run; empty where there are none that can be read."""
    try:
        with _reading(folder / FILES) as lines:
            return parse(next(lines, b""), _HEADER)
    except OutputError:
        return {}


def started_in(folder: Path) -> str:
    """The folder that relative names of a store start in; empty where that is not known.

    It is not where the store was moved or copied since, with its photos or without.
    """
    header = read_header(folder)
    if header.get("output") not in (None, place(folder)):
        return ""
    base = header.get("folder", "")
    return base if os.path.isdir(base) else ""


def place(folder: Path) -> str:
    """Where a store is, for the facts of a run into it."""
    return os.path.realpath(folder)


def digest(folder: Path) -> str:
    """SHA-256 of the list of the last run, in hex; raises OutputError."""
    path = folder / FILES
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


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
    with _reading(folder / SKIPPED) as lines:
        return [parse(line, SKIP) for line in lines]


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


@contextmanager
def _reading(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a list; whatever is wrong with it, or found wrong, is an OutputError."""
    try:
        with open_regular(path) as file:
            yield iter(partial(file.readline, _LONGEST), b"")
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, Damaged) else "it is not JSON"
        raise OutputError(
            f"{str(path)!r} is damaged ({why}): embed again to write it anew"
        ) from error
