"""One writer a store: a lock that the system releases when its process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aim_mlx.errors import OutputError
from aim_mlx.files import regular

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a store for the length of a block; a dead process's is taken over.

    Raises OutputError, with the process's number, while another writes there; OSError where the
    lock cannot be made.
    """
    handle = regular(folder / NAME, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise OutputError(
                f"process {owner} is writing to {str(folder)!r}: wait for it, or stop it"
            ) from error
        if os.fstat(handle).st_nlink == 1:  # no file of somebody else under this name too
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
