"""What a command is to write beside its lines, looked at before any work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aim_mlx.errors import OutputError, UsageError
from aim_mlx.files import disk_errors, remove_leftovers

PAGES = (".html", ".htm")
TABLES = (".csv", ".jsonl")


def check_target(target: Path | None, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Raises UsageError for another suffix, OutputError for a file that cannot be written.

    A page of ours may be written over, no other file.
    """
    from aim_mlx.report.page import is_ours

    if target is None:
        return
    if target.suffix.lower() not in suffixes:  # never over a photo given by mistake
        raise UsageError(f"expected a name that ends in {', '.join(suffixes)}, got {target.name!r}")
    with _in_a_folder(target):
        remove_leftovers(target)
        if target.exists() and not target.is_file():
            raise OutputError(f"{str(target)!r} is not a file: choose another output")
        if os.path.lexists(target) and not overwrite and not is_ours(target):
            raise OutputError(f"{str(target)!r} exists: pass --overwrite to replace it")


def check_folder(folder: Path | None, overwrite: bool) -> None:
    """Raises OutputError for a folder that cannot be written into."""
    if folder is None:
        return
    with _in_a_folder(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputError(f"{str(folder)!r} is not a folder: choose another output")
        if folder.is_dir() and not overwrite and any(folder.iterdir()):
            raise OutputError(f"{str(folder)!r} is not empty: pass --overwrite to write into it")


@contextmanager
def _in_a_folder(target: Path) -> Iterator[None]:
    """Raises OutputError where the folder is not there, or the name is too long to look for."""
    with disk_errors("write", target, "choose another name"):
        if not target.parent.is_dir():
            raise OutputError(f"folder {str(target.parent)!r} does not exist: create it first")
        yield
