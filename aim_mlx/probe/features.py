"""Where the tokens of a data set come from: a cache as far as it may grow, else the images.

The parts are cached whole or not at all: val and test before train, as they are read as often and
are smaller. Of train there may be random views, as the probes of AIMv2 are trained: so many that
are cached, or new ones in every epoch. A view is a pure function of the image and a key, which
stands for content, seed, number and kind.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from aim_mlx.data.labelled import SPLITS
from aim_mlx.data.parts import Part
from aim_mlx.data.splits import DataSet
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images import Content, ImageSource, Skip
from aim_mlx.images.augment import augmented
from aim_mlx.images.decode import decoded
from aim_mlx.tokens.cache import TokenCache
from aim_mlx.tokens.source import StreamedTokens, TokenSource, undecodable
from aim_mlx.training.report import Advanced, Report
from aim_mlx.wording import megabytes


@dataclass(frozen=True)
class Augmentation:
    """Random views in training: `views` of each image, in turn, or without end where it is 0.

    With `randaugment` they have its changes too.
    """

    seed: int = 0
    views: int = 0
    randaugment: bool = False

    def __post_init__(self):
        if type(self.views) is not int or not 0 <= self.views <= 1000:
            raise UsageError(f"--views must be from 0 to 1000, got {self.views!r}")


class PartTokens:
    """The tokens of one part, in a cache or computed each time they are asked for."""

    def __init__(
        self,
        cache: TokenCache,
        encoder: Encoder,
        layers: tuple[int, ...],
        part: Part,
        augmentation: Augmentation | None = None,
    ):
        self._cache, self._encoder, self._layers = cache, encoder, layers
        self._part, self._augmentation = part, augmentation
        self.cached = False
        self._last: tuple[int, TokenSource] | None = None

    @property
    def endless(self) -> bool:
        """Whether every epoch has views of its own, which no cache could hold."""
        return self._augmentation is not None and not self._augmentation.views

    def for_epoch(self, epoch: int) -> TokenSource:
        """Those of an epoch, counted from 0; asked for again, they are at hand.

        Two epochs with the same source have the same bits: streamed tokens depend on the batch.
        """
        number = self._view(epoch)
        known = number if self.cached else epoch
        if self._last is None or self._last[0] != known:
            self._last = known, self._source(number)
        return self._last[1]

    def size(self) -> int:
        """The bytes that caching it would add, at most."""
        return self._cache.bytes_to_add(list(self._wanted()))

    def fill(self, progress: Callable[[int, int], None]) -> list[Skip]:
        """Computes what is to be cached; else only finds what cannot be decoded."""
        if not self.cached:
            return undecodable(self._encoder, self._part.paths, progress)
        return self._cache.fill(
            self._wanted(), progress, self._views if self._augmentation else None
        )

    def _view(self, epoch: int) -> int:
        """The number of the view that an epoch has."""
        if self._augmentation is None:
            return 0
        return epoch % self._augmentation.views if self._augmentation.views else epoch

    def _source(self, number: int) -> TokenSource:
        keys = self._keys(number)
        if self.cached:
            return self._cache.rows(keys)
        images = self._views(self._part.paths, keys) if self._augmentation else None
        return StreamedTokens(self._encoder, self._part.paths, self._layers, images)

    def _keys(self, number: int) -> list[str]:
        """What the tokens of each image are known by in a view."""
        if self._augmentation is None:
            return self._part.digests
        kind = self._augmentation
        return [view_key(digest, kind, number) for digest in self._part.digests]

    def _wanted(self) -> Mapping[str, tuple[str, Content]]:
        part, views = self._part, self._augmentation.views if self._augmentation else 1
        return {
            key: (path, content)
            for number in range(views)
            for key, path, content in zip(
                self._keys(number), part.paths, part.contents, strict=True
            )
        }

    def _views(self, paths: Sequence[ImageSource], keys: Sequence[str]) -> Sequence[ImageSource]:
        size = self._encoder.preprocessing.crop_size or 0
        further = self._augmentation is not None and self._augmentation.randaugment
        return Views(paths, keys, size, further)


class DataSetTokens:
    """The tokens of a data set's parts under one encoder, after prepare().

    `layers` are the blocks whose outputs are averaged, none for the tokens of the final norm.
    Raises UsageError for a native-resolution model, OutputError for a folder that does not serve.
    """

    def __init__(
        self,
        encoder: Encoder,
        cache: Path,
        limit: int | None,
        layers: Sequence[int] = (),
        augmentation: Augmentation | None = None,
    ):
        self._encoder, self._layers = encoder, tuple(layers)
        self._cache = TokenCache(cache, encoder, layers, limit)
        self._augmentation = augmentation
        if augmentation is not None:
            self._viewing = encoder_of_views(encoder)
            self._cached_views = TokenCache(cache, self._viewing, layers, limit)
        self._chosen: set[str] = set()

    def prepare(self, data: DataSet, report: Report, advanced: Advanced) -> DataSet:
        """Caches what may be cached, having said how much; the data without what is undecodable.

        Whatever `advanced` raises ends it; the tokens computed by then are kept. Raises UsageError
        where a class loses all its images, OutputError where the disk fails.
        """
        self._choose(data, report)
        skips: dict[str, Skip] = {}
        for name, part in data.parts.items():
            tokens = self.tokens(name, part)
            what = "computing the tokens of" if tokens.cached else "checking the images of"
            undecoded = tokens.fill(partial(advanced, f"{what} {name}"))
            skips |= {skip.path: skip for skip in undecoded}
        return data.without([skips[path] for path in sorted(skips)])

    def tokens(self, name: str, part: Part) -> PartTokens:
        """The tokens of a part of what prepare() returned."""
        if name == "train" and self._augmentation is not None:
            tokens = PartTokens(
                self._cached_views, self._viewing, self._layers, part, self._augmentation
            )
        else:
            tokens = PartTokens(self._cache, self._encoder, self._layers, part)
        tokens.cached = name in self._chosen
        return tokens

    def _choose(self, data: DataSet, report: Report) -> None:
        """Which parts to cache, as far as there is room."""
        room, total = self._cache.room, 0
        self._chosen = set()
        for name in (name for name in ("val", "test", "train") if name in data.parts):
            tokens = self.tokens(name, data.parts[name])
            size = tokens.size()
            if tokens.endless:
                report.noted(f"{name} has new random views, whose tokens are computed, each epoch")
            elif total + size <= room:
                self._chosen.add(name)
                total += size
            else:
                report.noted(
                    f"the tokens of {name} would take {megabytes(size)}, over the limit: they are "
                    "computed from the images in every epoch"
                )
        if total:
            names = ", ".join(name for name in SPLITS if name in self._chosen)
            report.noted(f"the tokens of {names} take {megabytes(total)} on the disk, at most")


def view_key(digest: str, kind: Augmentation, number: int) -> str:
    """What view `number` of a content is known by, 64 hex digits."""
    name = "randaugment view" if kind.randaugment else "view"
    return hashlib.sha256(f"{name} {kind.seed} {number} {digest}".encode()).hexdigest()


class Views(Sequence[ImageSource]):
    """One view of each file, made in the thread that asks; a file that cannot be decoded as it is.

    Whoever decodes that file again finds the reason.
    """

    def __init__(
        self,
        files: Sequence[ImageSource],
        keys: Sequence[str],
        size: int,
        randaugment: bool = False,
    ):
        self._files, self._keys, self._size = files, keys, size
        self._randaugment = randaugment

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ImageSource:  # pyright: ignore[reportIncompatibleMethodOverride]
        rng = np.random.default_rng(np.frombuffer(bytes.fromhex(self._keys[index]), np.uint32))
        try:
            with decoded(self._files[index]) as image:
                return augmented(image, self._size, rng, randaugment=self._randaugment)
        except ImageError:
            return self._files[index]


def encoder_of_views(encoder: Encoder) -> Encoder:
    """The same encoder, taking images of its own size as they are."""
    size = encoder.preprocessing.crop_size
    if size is None:
        raise UsageError("random views need a model of one image size")
    viewing = copy.copy(encoder)
    viewing.preprocessing = replace(encoder.preprocessing, shortest_edge=size)
    return viewing
