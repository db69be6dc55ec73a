"""The files that a run was to embed, written down before the first is opened, and its skips."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.durable import publish
from aim_mlx.errors import OutputError

FILES = "files.jsonl"
SKIPPED = "skipped.jsonl"


def write_files(folder: Path, header: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Publishes the list of a run: a line of facts about it, then a path a line; raises OSError."""

    def write(file: BinaryIO) -> None:
        file.write(_line(header))
        file.writelines(map(_line, paths))

    publish({folder / FILES: write})


def read_files(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The facts and the paths of the last run; raises OutputError."""
    lines = list(_lines(folder / FILES))
    if not lines or not isinstance(lines[0], dict):
        raise OutputError(f"{str(folder / FILES)!r} is damaged: embed again to write it anew")
    return lines[0], lines[1:]


def read_header(folder: Path) -> dict[str, Any]:
    """The facts of the last run; empty where there are none that can be read."""
    try:
        header = next(_lines(folder / FILES), None)
    except OutputError:
        return {}
    return header if isinstance(header, dict) else {}


def started_in(folder: Path) -> str:
    """The folder that relative names of a store start in; empty where that is not known.

    It is not where the store was moved or copied since, with its photos or without.
    """
    header = read_header(folder)
    if header.get("output") not in (None, place(folder)):
        return ""
    base = header.get("folder")
    return base if isinstance(base, str) and os.path.isdir(base) else ""


def place(folder: Path) -> str:
    """Where a store is, for the facts of a run into it."""
    return os.path.realpath(folder)


def digest(folder: Path) -> str:
    """SHA-256 of the list of the last run, in hex; raises OutputError."""
    path = folder / FILES
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def write_skips(folder: Path, skips: Iterable[Mapping[str, Any]]) -> None:
    """Publishes the skips, one a line; raises OSError."""
    publish({folder / SKIPPED: lambda file: file.writelines(map(_line, skips))})


def append_skips(folder: Path, skips: Iterable[Mapping[str, Any]]) -> None:
    """Adds skips for whoever looks while a run goes on; the journal is what counts."""
    with open(folder / SKIPPED, "ab") as file:
        file.write(b"".join(map(_line, skips)))  # in one piece, for who reads meanwhile


def read_skips(folder: Path) -> list[dict[str, Any]]:
    """The skips of the last run; raises OutputError."""
    return list(_lines(folder / SKIPPED))


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _lines(path: Path) -> Iterator[Any]:
    try:
        with open(path, "rb") as file:
            for line in file:
                yield json.loads(line)
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise OutputError(f"{str(path)!r} is damaged: embed again to write it anew") from error
