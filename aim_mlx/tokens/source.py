"""Images to the tokens of a frozen trunk, float16 (N, D) an image."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np

from aim_mlx.backend import BLAS, mx
from aim_mlx.config import to_dict
from aim_mlx.encoder.encoder import Embedded, Encoder
from aim_mlx.encoder.pipeline import EmbedOptions, Pipeline
from aim_mlx.errors import AimError, UsageError
from aim_mlx.images import ImageSource, Skip, stream


class TokenSource(Protocol):
    """Tokens of a fixed list of images, from a cache or computed when they are asked for."""

    shape: tuple[int, int]

    def batch(self, indices: Sequence[int] | np.ndarray) -> Sequence[np.ndarray]:
        """The tokens of images by their place in the list, float16 (N, D) each."""
        ...


class StreamedTokens:
    """Tokens computed from the images each time, equal to cached ones but for rounding.

    The same batch in the same order has the same bits each time; in another batch an image's tokens
    may differ by the rounding of a float16. `images`, if given, are what is decoded for each path.
    `batch` raises AimError for an image that cannot be decoded any more.
    """

    def __init__(
        self,
        encoder: Encoder,
        paths: Sequence[str],
        layers: Sequence[int] = (),
        images: Sequence[ImageSource] | None = None,
    ):
        self.shape = token_shape(encoder)
        self._encoder = encoder
        self._paths = paths
        self._layers = layers
        self._images = images

    def batch(self, indices: Sequence[int] | np.ndarray) -> Sequence[np.ndarray]:
        paths = [self._paths[i] for i in indices]
        images = None if self._images is None else _Chosen(self._images, indices)
        tokens = np.empty((len(paths), *self.shape), np.float16)
        for row in frozen_tokens(self._encoder, paths, self._layers, images):
            if row.failure is not None:
                raise AimError(
                    f"{paths[row.index]!r} could be read before and cannot now ({row.failure}): "
                    "put it back, or take it out of the table"
                )
            tokens[row.index] = row.vector
        return list(tokens)


def token_shape(encoder: Encoder) -> tuple[int, int]:
    """(N, D) of every image; raises UsageError for a model that has another N for each."""
    grid = encoder.model.config.grid
    if grid is None:
        raise UsageError(
            "this needs a model of one image size; the native-resolution model gives every image "
            "another number of tokens: choose one such as aimv2-large-patch14-224"
        )
    return grid**2, encoder.model.config.embed_dim


def token_identity(encoder: Encoder, layers: Sequence[int] = ()) -> dict[str, Any]:
    """All that decides the tokens of an image, as JSON values."""
    return {
        "weights": encoder.weights_digest,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "layers": list(layers),
    }


def frozen_tokens(
    encoder: Encoder,
    paths: Sequence[str],
    layers: Sequence[int] = (),
    images: Sequence[ImageSource] | None = None,
    block: int | None = None,
    places: Sequence[int] | None = None,
) -> Generator[Embedded, None, None]:
    """A row for each image, in order, whose `vector` is its tokens, float16 (N, D).

    Those after the final norm, or the mean of the outputs of the blocks `layers`. `images`, if
    given, are decoded in place of the paths, of both only those at `places`. One that cannot be
    decoded is a row with its failure. No batch reaches over a multiple of `block` images. Raises
    AimError, naming the image, for tokens that are not finite numbers of float16.
    """

    def tokens(pixels: mx.array) -> mx.array:
        return encoder.tokens(pixels, layers).astype(mx.float16)

    pipeline = Pipeline(
        tokens,
        paths if images is None else images,
        encoder.preprocessing,
        encoder.model.config.grid,
        EmbedOptions(),
        dtype=encoder.dtype,
        block=block,
        places=places,
    )
    for row in pipeline.rows():
        if row.failure is not None and row.failure.reason == "non_finite":
            raise AimError(
                f"{paths[row.index]!r} has tokens beyond float16 (at most 65,504): take it out of "
                "the table"
            )
        yield row


def undecodable(
    encoder: Encoder, paths: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> list[Skip]:
    """The images that cannot be decoded, with the reason; nothing is computed."""
    skips = []
    # Afterwards matrix products have their threads again, which mlx-data's take and give back.
    with BLAS.limited_to(1), closing(stream(paths, encoder.preprocessing)) as samples:
        for sample in samples:
            if sample.failure is not None:
                skips.append(Skip.of(paths[sample.index], sample.failure))
            if progress is not None:
                progress(sample.index + 1, len(paths))
    return skips


class _Chosen(Sequence[ImageSource]):
    """Some of a list's images, each made only when it is asked for."""

    def __init__(self, images: Sequence[ImageSource], indices: Sequence[int] | np.ndarray):
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> ImageSource:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._images[int(self._indices[index])]
