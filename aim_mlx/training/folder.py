"""The folder of a training run, which says what the run is, so that it never goes on as another."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aim_mlx.errors import OutputError
from aim_mlx.files import TEMPORARY
from aim_mlx.weights.save import WORK_FOLDER, check_folder

RUN, TOKENS = "run.json", "tokens"


def check_output(folder: Path) -> None:
    """Raises OutputError for a folder that holds something else than a run of this kind."""
    if not folder.parent.is_dir():
        raise OutputError(f"folder {str(folder.parent)!r} does not exist: create it first")
    check_folder(folder, overwrite=(folder / WORK_FOLDER / RUN).is_file())


def check_same_run(work: Path, facts: Mapping[str, Any]) -> None:
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
    others = [name for name, value in facts.items() if there.get(name) != value]
    if not others:
        return
    name, advice = others[0], "choose another folder, or give the same command"
    if others == ["epochs"]:
        advice = "the learning rate falls over all epochs, so that other epochs begin anew: choose "
        advice += "another folder by -o"
        if (work / TOKENS).is_dir():
            advice += f", and add --cache {shlex.quote(str(work / TOKENS))} to use its tokens again"
    raise OutputError(
        f"{str(work.parent)!r} holds another run (its {name}: {_short(there.get(name))}, not "
        f"{_short(facts[name])}): {advice}"
    )


def remove_unfinished(work: Path) -> None:
    """Removes what a killed run was writing, by whoever holds the folder's lock; raises OSError."""
    for path in work.glob(f".*{TEMPORARY}"):
        path.unlink()


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """A failing disk becomes one line; a listener that has gone is for the caller."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {str(folder)!r}: {error.strerror or error}: mend that; what is finished "
            "is kept, and the same command resumes"
        ) from error


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
