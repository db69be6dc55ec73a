"""What the commands that look things up in a store share: opening it."""

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
