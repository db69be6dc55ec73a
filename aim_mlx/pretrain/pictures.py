"""Decoded pictures, kept in memory as far as they fit: a small set is read many times."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from aim_mlx.errors import AimError, ImageError
from aim_mlx.images import KnownFile, Skip
from aim_mlx.images.decode import decoded

_THREADS = 2


class Pictures:
    """Pictures by number, their shorter edge at most `longest_short_edge` pixels.

    That is done whether or not they are kept, so that the memory decides nothing. Every thread may
    ask. `limit` bounds what is kept, in bytes.
    """

    def __init__(self, files: Sequence[KnownFile], longest_short_edge: int, limit: int):
        self._files, self._side, self._room = files, longest_short_edge, limit
        self._kept: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> Image.Image:
        """One of them, mode RGB; raises ImageError."""
        if index in self._kept:
            return Image.fromarray(self._kept[index])
        with decoded(self._files[index]) as image:
            smaller = self._reduced(image)
        pixels = np.asarray(smaller)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[index] = pixels
        return smaller

    def check(self, progress: Callable[[int, int], None]) -> dict[int, Skip]:
        """Decodes all once; those that cannot be, by number."""
        failures: dict[int, Skip] = {}

        def look(index: int) -> None:
            try:
                self[index]
            except ImageError as error:
                failures[index] = Skip(str(self._files[index].path), error.reason, error.detail)

        with ThreadPoolExecutor(_THREADS) as pool:
            for done, _ in enumerate(pool.map(look, range(len(self._files))), 1):
                progress(done, len(self._files))
        return dict(sorted(failures.items()))

    def required(self, index: int) -> Image.Image:
        """One that could be decoded before; raises AimError where it is no longer there."""
        try:
            return self[index]
        except ImageError as error:
            raise AimError(
                f"{str(self._files[index].path)!r} could be read when the run began, and now "
                f"cannot ({error}): put it back, and run the same command again"
            ) from error

    def _reduced(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        if short <= self._side:
            return image
        width, height = (max(1, round(edge * self._side / short)) for edge in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)
