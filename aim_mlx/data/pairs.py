"""Images with their captions: read from a table, split by image, dealt into batches."""

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aim_mlx.data.columns import MissingColumn
from aim_mlx.data.labels import check_characters, quoted
from aim_mlx.data.parts import Progress, read_contents
from aim_mlx.data.sources import Source, tables_in
from aim_mlx.data.tables import beside, read_table
from aim_mlx.errors import UsageError
from aim_mlx.images import Content, Skip, discover
from aim_mlx.wording import counted


@dataclass(frozen=True)
class Pairs:
    """Captions (n,) and the image of each; images are the same where their content is.

    `paths` and `contents` have one entry for each image, `images` (n,) says which is a caption's:
    an image may have several captions, and none where whoever reads the pairs allows it.
    """

    paths: tuple[str, ...]
    contents: tuple[Content, ...]
    captions: tuple[str, ...]
    images: np.ndarray

    @property
    def digests(self) -> list[str]:
        return [content.digest for content in self.contents]

    def digest(self) -> str:
        """SHA-256 in hex over all pairs in their order."""
        total = hashlib.sha256()
        for image, caption in zip(self.images, self.captions, strict=True):
            total.update(bytes.fromhex(self.contents[image].digest))
            total.update(hashlib.sha256(caption.encode()).digest())
        for image in np.setdiff1d(np.arange(len(self.paths)), self.images):
            total.update(bytes.fromhex(self.contents[image].digest))
        return total.hexdigest()

    def of(self, keep: Collection[int] | np.ndarray) -> "Pairs":
        """The pairs whose image is among these, in the order they had."""
        kept = sorted(int(image) for image in set(keep))
        place = np.full(len(self.paths), -1)
        place[kept] = np.arange(len(kept))
        chosen = np.flatnonzero(place[self.images] >= 0)
        return Pairs(
            tuple(self.paths[i] for i in kept),
            tuple(self.contents[i] for i in kept),
            tuple(self.captions[i] for i in chosen),
            place[self.images[chosen]],
        )

    def without(self, paths: Collection[str]) -> "Pairs":
        """The pairs but for those of some images."""
        return self.of([i for i, path in enumerate(self.paths) if path not in paths])


def read_pairs(
    source: str | os.PathLike[str],
    columns: tuple[str, str] = ("path", "caption"),
    progress: Progress | None = None,
    may_lack_captions: bool = False,
    noted: Callable[[str], None] = lambda note: None,
) -> tuple[Pairs, list[Skip]]:
    """The pairs of a table or folder, and the images that cannot be read; a pair counts once.

    A folder has tables (see `tables_in`), of which train alone counts where there are splits. One
    that `may_lack_captions` may have images alone. Raises UsageError for bad tables, or where no
    image can be read.
    """
    source, notes = Path(source), []
    if not source.is_dir():
        return _paired(_rows(source, columns, may_lack_captions), progress)
    listing = discover([source])
    tables = tables_in(source, (), bool(listing.files), notes)
    if not tables and not may_lack_captions:
        raise UsageError(
            f"{str(source)!r} has no metadata.csv, .jsonl or .parquet and no images in Parquet "
            "files: expected a table of images and captions"
        )
    captions = _of_tables(tables, columns, may_lack_captions, bool(listing.files), notes)
    stated = {os.path.normpath(path) for path, _ in captions}
    left = [path for path in listing.files if os.path.normpath(path) not in stated]
    if may_lack_captions and not any(table.split for table in tables):
        captions += [(path, "") for path in left]
    elif left:
        notes.append(f"{counted(len(left), 'image')} that no row of the metadata names, left out")
    for note in notes:
        noted(note)
    if not captions:
        raise UsageError(f"{str(source)!r} has no images: choose another folder")
    pairs, skips = _paired(captions, progress)
    return pairs, [*listing.skipped, *skips]


def _of_tables(
    tables: Sequence[Source],
    columns: tuple[str, str],
    may_lack_captions: bool,
    has_images: bool,
    notes: list[str],
) -> list[tuple[str, str]]:
    """The paths and captions of all tables, or of those of train; none where images serve alone."""
    if others := [table.path.name for table in tables if table.split not in (None, "train")]:
        notes.append(f"only train is learned from, left out: {quoted(others)}")
    try:
        return [
            row
            for table in tables
            if table.split in (None, "train")
            for row in _rows(table.path, columns, may_lack_captions)
        ]
    except MissingColumn as error:
        if not (may_lack_captions and has_images):
            raise
        notes.append(f"the images are taken by themselves, as {error}")
        return []


def _rows(table: Path, columns: tuple[str, str], may_lack_captions: bool) -> list[tuple[str, str]]:
    """The paths and captions of a table; "" for those that lack one, if they may."""
    # A line of JSONL says nothing of the others: there, the column must be.
    lacks = may_lack_captions and columns[1] == "caption" and table.suffix.lower() != ".jsonl"
    try:
        rows = read_table(
            table,
            columns[:1] if lacks else columns,
            optional=columns[1] if lacks else None,
            may_be_empty=columns[1] if may_lack_captions else None,
            images=columns[0],
        )
    except MissingColumn as error:
        raise MissingColumn(f"{error} (--path-column and --caption-column say which)") from None
    pairs = []
    for row in rows:
        path, caption = row.values if len(row.values) == 2 else (row.values[0], "")
        check_characters(f"{row.place}: the caption", caption, is_utf_8=True)
        pairs.append((beside(table, path), caption))
    return pairs


def _paired(
    captions: Sequence[tuple[str, str]], progress: Progress | None
) -> tuple[Pairs, list[Skip]]:
    """Paths with their captions, "" for none -> pairs; raises UsageError where there are none."""
    contents, skips = read_contents([path for path, _ in captions], progress)
    if not contents:
        raise UsageError(
            f"none of {len(skips)} images can be read, the first because {skips[0].detail}: paths "
            "are relative to the table's own folder"
        )
    first: dict[str, str] = {}  # the path where a content stands first
    distinct: dict[tuple[str, str], None] = {}
    for path, caption in captions:
        if path in contents:
            digest = contents[path].digest
            first.setdefault(digest, path)
            if caption:
                distinct[digest, caption] = None
    place = {digest: number for number, digest in enumerate(first)}
    return Pairs(
        tuple(first.values()),
        tuple(contents[path] for path in first.values()),
        tuple(caption for _, caption in distinct),
        np.array([place[digest] for digest, _ in distinct], np.int64),
    ), skips


def split(pairs: Pairs, held_out: float, seed: int) -> tuple[Pairs, Pairs]:
    """The pairs to train on and those held out; no image is in both, whatever its name.

    It depends on the seed and the images' content alone. Raises UsageError for too few images.
    """
    count = len(pairs.paths)
    aside = round(held_out * count)
    if count - aside < 2 or (held_out and aside < 2):
        raise UsageError(
            f"{count} images are too few to train on at least 2 and hold out {held_out:g} of them, "
            "at least 2: add images, or hold out none with --held-out 0"
        )
    ranks = [hashlib.sha256(f"{seed} {digest}".encode()).digest() for digest in pairs.digests]
    order = sorted(range(count), key=ranks.__getitem__)
    return pairs.of(order[aside:]), pairs.of(order[:aside])


def epoch_batches(images: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every pair once, in batches of nearly one size, at most `batch_size`; a pure function.

    `images` (n,) says which image is a pair's. Dealt out image by image like cards, the captions of
    one image come into different batches, unless it has more captions than there are batches.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(images))
    shuffled = rng.permutation(images.max() + 1)
    order = order[np.argsort(shuffled[images[order]], kind="stable")]
    count = -(-len(images) // batch_size)
    return [order[first::count] for first in rng.permutation(count)]
