"""Files that are complete or not there: written aside, flushed to the disk, then renamed."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".aim-mlx.tmp"  # what the names of unfinished files end with


def publish(files: Mapping[Path, Callable[[BinaryIO], Any]]) -> None:
    """Writes files of one folder, each by its function, and renames them onto their names in order.

    All that can fail is done before the first rename. On any failure the new files are gone and the
    old ones as they were. Raises OSError.
    """
    temporaries = {target: temporary(target) for target in files}
    new = [target for target in files if not os.path.lexists(target)]
    try:
        for target, write in files.items():
            temporaries[target].unlink(missing_ok=True)  # of a killed process with our number
            with open(temporaries[target], "xb") as file:
                write(file)
                flush(file)
        for target, unfinished in temporaries.items():
            os.replace(unfinished, target)
        sync_folder(next(iter(files)).parent)
    except BaseException:
        with suppress(OSError):
            for path in [*temporaries.values(), *new]:
                path.unlink(missing_ok=True)
        raise


def temporary(target: Path) -> Path:
    """The name of a file while this process writes it: hidden, beside its target."""
    return target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")


def remove_leftovers(target: Path) -> None:
    """Deletes what killed processes left of a file or folder that no other writes now."""
    unfinished = re.compile(rf"\.{re.escape(target.name)}\.\d+{re.escape(TEMPORARY)}")
    for name in os.listdir(target.parent):
        if unfinished.fullmatch(name):
            path = target.parent / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def flush(file: BinaryIO) -> None:
    """Puts what was written on the disk itself; on macOS fsync alone stops at the drive's cache."""
    file.flush()
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
    else:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
