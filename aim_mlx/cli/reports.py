"""What the commands that look things up in a store share: opening it, and where a page may go."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aim_mlx.store.reading import EmbeddingStore


def open_rows(folder: Path) -> "EmbeddingStore":
    """A store that has rows; raises AimError for one that has none."""
    from aim_mlx.errors import AimError
    from aim_mlx.store.reading import EmbeddingStore

    store = EmbeddingStore(folder)
    if not len(store):
        raise AimError(f"{str(folder)!r} holds no rows: embed photos into it first")
    return store


def check_report(target: Path | None, overwrite: bool) -> None:
    """Raises UsageError or OutputError for a page that cannot be written, before any work."""
    from aim_mlx.errors import OutputError, UsageError

    if target is None:
        return
    if target.suffix.lower() not in (".html", ".htm"):  # never over a photo given by mistake
        raise UsageError(f"the page must end in .html, got {target.name!r}")
    try:
        found = os.path.lexists(target)
        if not target.parent.is_dir():
            raise OutputError(f"folder {str(target.parent)!r} does not exist: create it first")
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {str(target)!r}: {error}") from error
    if found and (target.is_dir() or (target.exists() and not target.is_file())):
        raise OutputError(f"{str(target)!r} is no file: choose another output")
    if found and not overwrite:
        raise OutputError(f"{str(target)!r} exists: pass --overwrite to replace it")
