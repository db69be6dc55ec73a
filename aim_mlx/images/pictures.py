"""Decoded pictures, kept in memory as far as they fit: a small set is read many times."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from aim_mlx.errors import AimError, ImageError
from aim_mlx.images import KnownFile, Skip
from aim_mlx.images.decode import decoded

_THREADS = 2


class Pictures:
    """Pictures by path, their shorter edge at most `longest_short_edge` pixels.

    That is done whether or not they are kept, so that the memory decides nothing. Every thread may
    ask. `limit` bounds what is kept, in bytes.
    """

    def __init__(self, files: Mapping[str, KnownFile], longest_short_edge: int, limit: int):
        self._files, self._side, self._room = files, longest_short_edge, limit
        self._kept: dict[str, np.ndarray] = {}

    def __getitem__(self, path: str) -> Image.Image:
        """One of them, mode RGB; raises ImageError."""
        if path in self._kept:
            return Image.fromarray(self._kept[path])
        with decoded(self._files[path]) as image:
            smaller = self._reduced(image)
        pixels = np.asarray(smaller)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[path] = pixels
        return smaller

    def check(self, progress: Callable[[int, int], None]) -> list[Skip]:
        """Decodes all once; those that cannot be, with the reason."""

        def look(path: str) -> Skip | None:
            try:
                self[path]
            except ImageError as error:
                return Skip.of(path, error)
            return None

        skips = []
        with ThreadPoolExecutor(_THREADS) as pool:
            for done, skip in enumerate(pool.map(look, self._files), 1):
                skips += [skip] if skip else []
                progress(done, len(self._files))
        return skips

    def required(self, path: str) -> Image.Image:
        """One that could be decoded before; raises AimError where it no longer can be."""
        try:
            return self[path]
        except ImageError as error:
            raise AimError(
                f"{path!r} could be read when the run began, and now cannot ({error}): put it "
                "back, and run the same command again"
            ) from error

    def _reduced(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        if short <= self._side:
            return image
        width, height = (max(1, round(edge * self._side / short)) for edge in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)
