"""Files that are complete or not there: written aside, flushed to the disk, then renamed.

And files of a folder that may come from elsewhere: opened as they are, or not at all.
"""

import errno
import fcntl
import io
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.errors import AimError, OutputError

LOCK = ".lock"
Content = bytes | Callable[[BinaryIO], Any]  # of a file, or what writes it
TEMPORARY = ".aim-mlx.tmp"  # what the names of unfinished files end with


@contextmanager
def disk_errors(
    action: str, path: os.PathLike[str] | str, advice: str = "", kind: type[AimError] = OutputError
) -> Iterator[None]:
    """Turns an OSError into "cannot ACTION 'PATH': reason: advice"; a broken pipe passes as it is.

    `action` is a verb such as "read" or "write". Raises `kind`.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # nobody listens any more, and the disk is sound
    except OSError as error:
        sentence = f"cannot {action} {os.fspath(path)!r}: {error.strerror or error}"
        raise kind(f"{sentence}: {advice}" if advice else sentence) from error


def publish(files: Mapping[Path, Content], last: Path | None = None) -> None:
    """Writes files of one folder aside, and renames them onto their names in order.

    All that can fail is done before the first rename. On any failure the new files are gone and the
    old ones as they were. The file `last` is renamed after the others, and where there was one
    before it goes before them: a crash never leaves it beside files that are not its own. Raises
    OSError.
    """
    temporaries = {target: temporary(target) for target in files}
    new = [target for target in files if not os.path.lexists(target)]
    try:
        for target, content in files.items():
            temporaries[target].unlink(missing_ok=True)  # of a killed process with our number
            with open(temporaries[target], "xb") as file:
                _write(content, file)
                flush(file)
        if last is not None:
            last.unlink(missing_ok=True)
        for target in sorted(files, key=lambda target: target == last):
            os.replace(temporaries[target], target)
        sync_folder(next(iter(files)).parent)
    except BaseException:
        with suppress(OSError):
            for path in [*temporaries.values(), *new]:
                path.unlink(missing_ok=True)
        raise


def _write(content: Content, file: BinaryIO) -> None:
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)


def open_regular(path: Path, mode: str = "rb") -> io.BufferedRandom:
    """Opens a regular file: never through a link, and nothing that makes one wait, as a pipe does.

    Links in the folders on the way are followed. Raises OSError.
    """
    return open(path, mode, opener=regular)  # pyright: ignore[reportReturnType]


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most so many bytes; raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, expected at most {largest:,}")
        return file.read(size)  # a larger number would take that much memory first


def regular(path: Any, flags: int) -> int:
    """Like os.open, for regular files that are no links; raises OSError for what is something else.

    What is there is looked at before, as opening a device may set it going, and again afterwards,
    as another may be there by then.
    """
    try:
        _check_regular(os.lstat(path), path)
    except FileNotFoundError:
        pass  # made by os.open, or missed by it
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _check_regular(os.fstat(handle), path)
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_regular(status: os.stat_result, path: Any) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a link, which is not followed here", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def temporary(target: Path) -> Path:
    """The name of a file while this process writes it: hidden, beside its target."""
    return target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")


def remove_leftovers(target: Path) -> None:
    """Deletes what killed processes left when they wrote a file, or removed a folder."""
    for path in leftovers(target):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def leftovers(target: Path) -> list[Path]:
    """The unfinished files and folders of a target whose processes have ended."""
    unfinished = re.compile(rf"\.{re.escape(target.name)}\.(\d{{1,9}}){re.escape(TEMPORARY)}")
    names = filter(None, map(unfinished.fullmatch, os.listdir(target.parent)))
    return [target.parent / name[0] for name in names if not _is_running(int(name[1]))]


def _is_running(process: int) -> bool:
    """Whether another process has this number: ours, where it was another's, is free again."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return process not in (0, os.getpid())


def flush(file: BinaryIO) -> None:
    """Puts what was written on the disk itself; on macOS fsync alone stops at the drive's cache."""
    file.flush()
    if sys.platform == "darwin":
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder for the length of a block; a dead process's is taken over.

    Raises OutputError, with the process's number while another writes there.
    """
    with disk_errors("write to", folder):
        handle = regular(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        with disk_errors("write to", folder):
            _take(handle, folder)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path) -> None:
    """Locks an open file and writes our number into it."""
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
