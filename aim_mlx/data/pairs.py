"""Images with their captions: read from a table, split by image, dealt into batches."""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from aim_mlx.data.labels import check_characters
from aim_mlx.data.parts import Progress, read_contents
from aim_mlx.data.tables import MissingColumn, beside, read_table
from aim_mlx.errors import UsageError
from aim_mlx.images import Content, Skip


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
    table: str | os.PathLike[str],
    columns: tuple[str, str] = ("path", "caption"),
    progress: Progress | None = None,
    may_lack_captions: bool = False,
) -> tuple[Pairs, list[Skip]]:
    """The pairs of a table, and the images that cannot be read; the same pair twice counts once.

    Raises UsageError for a bad table, or where no image can be read.
    """
    lacking = columns[1] if may_lack_captions else None
    try:
        rows = read_table(table, columns, may_be_empty=lacking)
    except MissingColumn as error:
        raise MissingColumn(f"{error} (--path-column and --caption-column say which)") from None
    for row in rows:
        check_characters(f"{row.place}: the caption", row.values[1], is_utf_8=True)
    captions = [(beside(table, row.values[0]), row.values[1]) for row in rows]
    try:
        return _paired(captions, progress)
    except UsageError as error:
        raise UsageError(f"{error}: paths are relative to the table's own folder") from None


def images_alone(
    paths: Sequence[str], progress: Progress | None = None
) -> tuple[Pairs, list[Skip]]:
    """Images without captions, and those that cannot be read; raises UsageError for none."""
    return _paired([(path, "") for path in paths], progress)


def _paired(
    captions: Sequence[tuple[str, str]], progress: Progress | None
) -> tuple[Pairs, list[Skip]]:
    """Paths with their captions, "" for none -> pairs; raises UsageError where there are none."""
    contents, skips = read_contents([path for path, _ in captions], progress)
    if not contents:
        reason = f", the first because {skips[0].detail}" if skips else ""
        raise UsageError(f"none of {len(skips)} images can be read{reason}")
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
