"""Opening a store that may have met a crash, or damage: what is sound stays, the rest is named."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aim_mlx.store.catalog import Catalog
from aim_mlx.store.folder import DAMAGED
from aim_mlx.store.journal import Journal
from aim_mlx.store.shards import Shard, damage, read_rows


def damages(folder: Path, shards: Sequence[Shard], dim: int) -> dict[str, str]:
    """What is wrong with which shards, by name; reads every byte of them."""
    with ThreadPoolExecutor() as threads:  # digests are computed outside the interpreter's lock
        found = threads.map(lambda shard: damage(folder, shard, dim), shards)
        return {shard.name: wrong for shard, wrong in zip(shards, found, strict=True) if wrong}


def without_damaged(folder: Path, journal: Journal, dim: int) -> list[str]:
    """Takes damaged shards out of the journal and sets their files aside; a note on each."""
    found = damages(folder, journal.state.shards, dim)
    rows = {shard.name: shard.rows for shard in journal.state.shards}
    if found:
        journal.append(removed=found)
    for name in found:
        if os.path.lexists(folder / name):
            os.replace(folder / name, folder / (name + DAMAGED))
    return [
        f"shard {name} is damaged ({wrong}): its {rows[name]:,} rows are computed again"
        for name, wrong in found.items()
    ]


def load_rows(folder: Path, shards: Sequence[Shard], catalog: Catalog) -> None:
    """Fills the catalog; raises OutputError for a shard that cannot be read."""
    for shard in shards:
        catalog.add(*read_rows(folder, shard))
