"""The folder of a store: what in it is ours, and nothing else is ever touched.

After a crash, or damage, what is sound stays and the rest is named.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from aim_mlx.errors import OutputError
from aim_mlx.files import LOCK, TEMPORARY, disk_errors, locked, sync_folder, temporary
from aim_mlx.store import journal, lists, manifest
from aim_mlx.store.journal import Journal
from aim_mlx.store.rows import Catalog
from aim_mlx.store.shards import Shard, damage, number_of, read_rows

DAMAGED = ".damaged"  # what a shard's name ends with once it was found damaged and set aside
_OURS = {manifest.NAME, journal.NAME, lists.FILES, lists.SKIPPED, LOCK, ".DS_Store"}
_MATRIX = re.compile(r"\.vectors-[0-9a-f]{16}\.f32")


def is_ours(name: str) -> bool:
    """Whether a store has files of this name."""
    if name in _OURS or name.endswith(TEMPORARY) or _MATRIX.fullmatch(name):
        return True
    return number_of(name.removesuffix(DAMAGED)) is not None


def hidden_beside(target: Path) -> Path:
    """The hidden folder in which a store grows until it takes the name of the target.

    Raises OutputError for a link of this name, as what it leads to is no folder of ours.
    """
    folder = target.with_name(f".{target.name}.aim-mlx")
    if os.path.islink(folder):
        raise OutputError(f"{str(folder)!r} is a link in the place of a folder of ours: remove it")
    return folder


@contextmanager
def prepared(folder: Path, overwrite: bool) -> Iterator[None]:
    """Locks a folder that is a store or can become one, and makes it; removes what became none.

    Raises OutputError for a folder with other content, a file, a parent that is not there, a store
    without a manifest, or one that another process writes to.
    """
    with disk_errors("use", folder):
        made = _made(folder)
        if not made and not os.path.lexists(folder / manifest.NAME):
            _check_ours(folder, overwrite)
    with locked(folder):
        try:
            yield
        finally:
            if made and not os.path.lexists(folder / manifest.NAME):
                _remove_empty(folder)


def _made(folder: Path) -> bool:
    """Makes a folder; False where there is one."""
    if folder.is_dir():
        return False
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise OutputError(f"{str(folder)!r} is a file: choose another output") from error
    except FileNotFoundError as error:
        wrong = f"folder {str(folder.parent)!r} does not exist: create it first"
        if folder.parent.is_dir():  # one that the system makes up, such as /proc
            wrong = f"{str(folder.parent)!r} takes no new files: choose another output"
        raise OutputError(wrong) from error
    sync_folder(folder.parent)
    return True


def _check_ours(folder: Path, overwrite: bool) -> None:
    names = os.listdir(folder)
    if others := sorted(name for name in names if not is_ours(name)):
        raise OutputError(
            f"{str(folder)!r} is not a store and holds other files ({others[0]!r}): "
            "choose a new folder"
        )
    # A crash leaves no shards without a manifest: they go before it, and come after it.
    if not overwrite and any(number_of(name) is not None for name in names):
        raise OutputError(
            f"{str(folder)!r} has lost its {manifest.NAME}: restore it, or embed again with "
            "--overwrite"
        )


def _remove_empty(folder: Path) -> None:
    """Removes a folder in which at most the lock is left; it stays where something else is."""
    (folder / LOCK).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def matrix_name(state: journal.State) -> str:
    """The file that holds all vectors of this state as one; made when they are first read so."""
    digest = hashlib.sha256()
    for shard in state.shards:
        digest.update(bytes.fromhex(shard.sha256))
    return f".vectors-{digest.hexdigest()[:16]}.f32"


def clean(folder: Path, state: journal.State) -> None:
    """Removes what a crash left, and what the journal does not name: parts, shards, matrices."""
    live = {shard.name for shard in state.shards} | {matrix_name(state)}
    for entry in list(os.scandir(folder)):
        name = entry.name
        stray = name not in live and (number_of(name) is not None or _MATRIX.fullmatch(name))
        if (stray or name.endswith(TEMPORARY)) and not entry.is_dir(follow_symlinks=False):
            (folder / name).unlink(missing_ok=True)


def next_number(folder: Path, live: Iterable[Shard]) -> int:
    """A number that no shard of this folder has or had in the journal."""
    names = [*os.listdir(folder), *(shard.name for shard in live)]
    numbers = [number_of(name.removesuffix(DAMAGED)) for name in names]
    return max((number for number in numbers if number is not None), default=-1) + 1


def remove(folder: Path) -> None:
    """Deletes a store, all of whose files are ours, and its folder; raises OutputError.

    It loses its name first, so that a crash leaves no store that seems to be damaged; no room is
    needed on the disk.
    """
    with disk_errors("remove", folder, "it is no longer needed"):
        folder = folder.rename(temporary(folder))
        for name in filter(is_ours, os.listdir(folder)):
            (folder / name).unlink(missing_ok=True)
        _remove_empty(folder)


def damages(folder: Path, shards: Sequence[Shard], dim: int) -> dict[str, str]:
    """What is wrong with which shards, by name; reads every byte of them."""
    with ThreadPoolExecutor() as threads:  # digests are computed outside the interpreter's lock
        wrongs = threads.map(lambda shard: damage(folder, shard, dim), shards)
        return {shard.name: wrong for shard, wrong in zip(shards, wrongs, strict=True) if wrong}


def without_damaged(folder: Path, journal: Journal, dim: int) -> list[str]:
    """Takes damaged shards out of the journal and sets their files aside; a note on each."""
    damaged = damages(folder, journal.state.shards, dim)
    rows = {shard.name: shard.rows for shard in journal.state.shards}
    if damaged:
        journal.append(removed=damaged)
    for name in damaged:
        if os.path.lexists(folder / name):
            os.replace(folder / name, folder / (name + DAMAGED))
    return [
        f"shard {name} is damaged ({wrong}): its {rows[name]:,} rows are computed again"
        for name, wrong in damaged.items()
    ]


def load_rows(folder: Path, shards: Sequence[Shard], catalog: Catalog) -> None:
    """Fills the catalog; raises OutputError for a shard that cannot be read."""
    for shard in shards:
        catalog.add(*read_rows(folder, shard))
