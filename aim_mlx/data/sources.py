"""The tables in a folder, as the Hugging Face Hub lays data sets out.

DATA/metadata.csv, .jsonl, .parquet         beside the images that the column file_name names, or
DATA/train/metadata.csv ...                 one for each split
DATA/data/train-00000-of-00002.parquet      the images themselves, in any folder below DATA
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aim_mlx.data.labels import quoted
from aim_mlx.errors import UsageError
from aim_mlx.files import disk_errors
from aim_mlx.images import is_under

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Source:
    """A table, and the split that its rows are in where its place says so."""

    path: Path
    split: str | None = None


def split_called(name: str) -> str | None:
    """The split of SPLITS that a name stands for."""
    return _SPLIT_NAMES.get(name.strip().casefold())


def tables_in(
    folder: Path, exclude: Sequence[str | Path], has_images: bool, notes: list[str]
) -> list[Source]:
    """The tables that say what is in a folder; none where its own folders do.

    Those of metadata, or where it `has_images` not, Parquet files. Raises UsageError for two of
    metadata in one place.
    """
    if found := _metadata_in(folder):
        return found
    if has_images:
        return []
    with disk_errors("read", folder, kind=UsageError):
        files = sorted(folder.rglob("*.parquet"))
    sources = []
    for path in files:
        inner = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inner.parts)
        if not hidden and not any(is_under(str(path), each) for each in exclude):
            sources.append(Source(path, _split_of(inner)))
    return _of_splits(sources, notes)


def _metadata_in(folder: Path) -> list[Source]:
    """The metadata of a folder, or of its splits' folders."""
    with disk_errors("read", folder, kind=UsageError):
        whole = _metadata(folder)
        if whole:
            return [Source(whole)]
        inner = [path for path in sorted(folder.iterdir()) if split_called(path.name)]
        found = [(_metadata(path), split_called(path.name)) for path in inner if path.is_dir()]
    return _of_splits([Source(path, split) for path, split in found if path], [])


def _metadata(folder: Path) -> Path | None:
    there = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(there) > 1:
        raise UsageError(f"{str(folder)!r} has {quoted([p.name for p in there])}: keep one")
    return there[0] if there else None


def _split_of(path: Path) -> str | None:
    """Of the folder that a file is in, or the word that its name begins with."""
    words = [*path.parent.parts, re.split(r"[-_.]", path.name)[0]]
    return next(filter(None, map(split_called, words)), None)


def _of_splits(sources: Sequence[Source], notes: list[str]) -> list[Source]:
    """Tables of train and others, without those of no split; else all of them, of no split."""
    splits = {source.split for source in sources} - {None}
    if "train" not in splits or len(splits) == 1:
        return [replace(source, split=None) for source in sources]
    others = [source.path.name for source in sources if source.split is None]
    if others:
        notes.append(f"beside the splits, left out: {quoted(others)}")
    return [source for source in sources if source.split]
