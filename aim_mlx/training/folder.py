"""The folder of a training run, which says what the run is, so that it never goes on as another."""

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aim_mlx.errors import OutputError
from aim_mlx.files import TEMPORARY, disk_errors, locked, publish
from aim_mlx.weights.save import WORK_FOLDER

RUN, TOKENS = "run.json", "tokens"
_ADVICE = "fix that; what is finished is kept, and the same command resumes"


def check_output(folder: Path) -> None:
    """Raises OutputError for a folder that holds something else than a training."""
    if not folder.parent.is_dir():
        raise OutputError(f"folder {str(folder.parent)!r} does not exist: create it first")
    if not os.path.lexists(folder):
        return
    with disk_errors("read", folder, "choose another folder"):
        if (folder / WORK_FOLDER / RUN).is_file():
            return
        if not folder.is_dir():
            raise OutputError(f"{str(folder)!r} is not a folder: choose another name")
        names = {entry.name for entry in folder.iterdir() if not entry.name.endswith(TEMPORARY)}
    if names - {WORK_FOLDER}:
        raise OutputError(f"{str(folder)!r} is not empty: choose another folder")


@contextmanager
def working(folder: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """The folder inside `folder` that a training works in, which nobody else then writes to.

    `about` is all that decides the result, in values that JSON has. What a killed run was writing
    is removed. Raises OutputError for a folder of another run or one in use, and where the disk
    fails within the block.
    """
    work = folder / WORK_FOLDER
    check_same_run(work, about)
    with disk_errors("write", folder, _ADVICE):
        work.mkdir(parents=True, exist_ok=True)
        with locked(work):
            for path in (*folder.glob(f".*{TEMPORARY}"), *work.glob(f".*{TEMPORARY}")):
                path.unlink()
            yield work


def begin(work: Path, about: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> None:
    """Writes down what the run is, after the other files that it begins with; raises OSError."""
    contents = {**(files or {}), RUN: json.dumps(about, indent=1).encode() + b"\n"}
    publish({work / name: content for name, content in contents.items()})


def write_lines(target: Path, lines: Iterable[str]) -> None:
    """Publishes a file of lines, given without their ends; raises OSError."""
    publish({target: lambda file: file.writelines(line.encode() + b"\n" for line in lines)})


def check_same_run(work: Path, about: Mapping[str, Any]) -> None:
    """Raises OutputError, naming what differs, where a folder holds another run."""
    path = work / RUN
    if not os.path.lexists(path):
        return
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("not a regular file")
        there = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{str(path)!r} cannot be read: choose another folder") from error
    there = there if isinstance(there, dict) else {}
    about = json.loads(json.dumps(about))  # a tuple is a list there
    others = [name for name, value in about.items() if there.get(name) != value]
    if not others:
        return
    name, advice = others[0], "choose another folder, or give the same command"
    if others == ["epochs"]:
        advice = "the learning rate falls over all epochs, so other epochs start again: choose "
        advice += "another folder by -o"
        if (work / TOKENS).is_dir():
            advice += f", and add --cache {shlex.quote(str(work / TOKENS))} to use its tokens again"
    raise OutputError(
        f"{str(work.parent)!r} holds another run (its {name}: {_short(there.get(name))}, not "
        f"{_short(about[name])}): {advice}"
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
