"""What a command is to write beside its lines, looked at before any work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGES = (".html", ".htm")
TABLES = (".csv", ".jsonl")


def check_target(target: Path | None, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Raises UsageError for another suffix, OutputError for a file that cannot be written.

    A page of ours may be written over, no other file.
    """
    from aim_mlx.errors import OutputError, UsageError
    from aim_mlx.files import remove_leftovers
    from aim_mlx.report.page import is_ours

    if target is None:
        return
    if target.suffix.lower() not in suffixes:  # never over a photo given by mistake
        raise UsageError(f"expected a name that ends in {', '.join(suffixes)}, got {target.name!r}")
    with _found(target):
        remove_leftovers(target)
        if target.exists() and not target.is_file():
            raise OutputError(f"{str(target)!r} is not a file: choose another output")
        if os.path.lexists(target) and not overwrite and not is_ours(target):
            raise OutputError(f"{str(target)!r} exists: pass --overwrite to replace it")


def check_folder(folder: Path | None, overwrite: bool) -> None:
    """Raises OutputError for a folder that cannot be written into."""
    from aim_mlx.errors import OutputError

    if folder is None:
        return
    with _found(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputError(f"{str(folder)!r} is not a folder: choose another output")
        if folder.is_dir() and not overwrite and any(folder.iterdir()):
            raise OutputError(f"{str(folder)!r} is not empty: pass --overwrite to write into it")


@contextmanager
def _found(target: Path) -> Iterator[None]:
    """A place in a folder that is there; what cannot be looked for is an OutputError."""
    from aim_mlx.errors import OutputError

    try:
        if not target.parent.is_dir():
            raise OutputError(f"folder {str(target.parent)!r} does not exist: create it first")
        yield
    except OSError as error:  # its name may be too long to look for
        raise OutputError(
            f"cannot write {str(target)!r}: {error.strerror}: choose another name"
        ) from error
