"""What the commands that look things up in a store share: opening it, and what is missing."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from aim_mlx.wording import counted

if TYPE_CHECKING:
    from aim_mlx.store.reader import EmbeddingStore, Photos


def with_rows(folder: Path, use: "Callable[[EmbeddingStore], object]") -> None:
    """Calls `use` with a store that has rows; again where a run changed it before all was read.

    Raises AimError for a store that has none.
    """
    from aim_mlx.errors import AimError
    from aim_mlx.store.reader import reading

    def checked(store: "EmbeddingStore") -> None:
        if not len(store):
            raise AimError(f"{str(folder)!r} holds no rows: embed photos into it first")
        use(store)

    reading(folder, checked)


def note_missing(photos: "Photos", shown: Iterable[int]) -> None:
    """Says on stderr what was left out as it is gone, and which rows shown are not there now."""
    if photos.left_out:
        what = counted(photos.left_out, "photo that is gone was", "photos that are gone were")
        print(f"note: {what} left out: --gone shows them", file=sys.stderr)
    if away := len(photos.away.intersection(shown)):
        what = counted(away, "photo is", "photos are")
        print(f"note: {what} not there now: is their disk mounted?", file=sys.stderr)
