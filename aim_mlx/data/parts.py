"""The images of a data set as they are in their files: each content once, with its labels."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from aim_mlx.data.labelled import Item, Labelled
from aim_mlx.data.labels import as_labels, quoted
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images import Content, Skip
from aim_mlx.images.contents import read_content

_READERS = 2  # threads that read files for their digests: the disk is the limit
_AT_ONCE = 4096  # files given to them at a time

Progress = Callable[[int, int], None]  # files done, files to do


@dataclass(frozen=True)
class Part:
    """Images of different contents, sorted by path.

    `labels` is int64 (n,), a class for each, or float32 (n, C) of 0 and 1 for several.
    """

    paths: tuple[str, ...]
    contents: tuple[Content, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digests(self) -> list[str]:
        return [content.digest for content in self.contents]

    def files(self) -> Iterator[tuple[str, Content]]:
        """Each path with what is in its file."""
        return zip(self.paths, self.contents, strict=True)

    def without(self, paths: Collection[str]) -> "Part":
        """The part without some of its images."""
        kept = [row for row, path in enumerate(self.paths) if path not in paths]
        return Part(
            tuple(self.paths[row] for row in kept),
            tuple(self.contents[row] for row in kept),
            self.labels[kept],
        )

    def counts(self, classes: int) -> np.ndarray:
        """The images of each class, int64 (C,)."""
        if self.labels.ndim == 2:
            return self.labels.sum(axis=0).astype(np.int64)
        return np.bincount(self.labels, minlength=classes)


@dataclass(frozen=True)
class Image:
    """One content with its labels, at the first of its paths."""

    path: str
    content: Content
    labels: tuple[str, ...]
    split: str | None


def read_images(
    labelled: Labelled, progress: Progress | None = None
) -> tuple[list[Image], tuple[Skip, ...], tuple[str, ...]]:
    """Each content of a split once; what cannot be read or contradicts itself; and notes.

    Raises UsageError where nothing can be read.
    """
    contents, skips = read_contents([item.path for item in labelled.items], progress)
    skips = [*labelled.skips, *skips]
    grouped: dict[tuple[str | None, str], list[Item]] = defaultdict(list)
    for item in labelled.items:
        if item.path in contents:
            grouped[item.split, contents[item.path].digest].append(item)
    if not grouped:
        raise UsageError(
            f"none of the {len(labelled.items)} images can be read, the first because "
            f"{skips[0].detail}: paths in a table are relative to its own folder"
        )
    images, repeats = [], 0
    for (split, _), items in grouped.items():
        labels = tuple(dict.fromkeys(label for item in items for label in item.labels))
        if len(labels) > 1 and not labelled.multi_label:
            skips += [_contradiction(item, labels) for item in items]
            continue
        repeats += len(items) - 1
        images.append(Image(items[0].path, contents[items[0].path], labels, split))
    notes = labelled.notes
    if repeats:
        notes += (f"{repeats:,} images with the content of another of their split count once",)
    return images, tuple(skips), notes


def as_part(images: Sequence[Image], classes: Sequence[str], multi_label: bool) -> Part:
    """Images as rows of labels; raises UsageError for a class that is not among these."""
    names = [image.labels if multi_label else image.labels[0] for image in images]
    return Part(
        tuple(image.path for image in images),
        tuple(image.content for image in images),
        as_labels(names, classes, multi_label),
    )


def _contradiction(item: Item, labels: Sequence[str]) -> Skip:
    others = [label for label in labels if label not in item.labels]
    return Skip(item.path, "contradiction", f"the same content is in class {quoted(others)} too")


def read_contents(
    paths: Sequence[str], progress: Progress | None = None
) -> tuple[dict[str, Content], list[Skip]]:
    """What is in each file, every one read once, and those that cannot be read."""
    distinct = list(dict.fromkeys(paths))
    contents, skips = {}, []
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(distinct), _AT_ONCE):
            some = distinct[start : start + _AT_ONCE]
            for done, content in enumerate(pool.map(_read, some), start + 1):
                path = distinct[done - 1]
                if isinstance(content, ImageError):
                    skips.append(Skip.of(path, content))
                else:
                    contents[path] = content
                if progress is not None:
                    progress(done, len(distinct))
    return contents, skips


def _read(path: str) -> Content | ImageError:
    try:
        return read_content(path)
    except ImageError as failure:
        return failure.with_traceback(None)
