"""Images to vectors: the main job."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aim_mlx.backend import mx, nn
from aim_mlx.config import PreprocessConfig
from aim_mlx.encoder.digest import parameters_digest
from aim_mlx.encoder.pipeline import EmbedOptions, Pipeline
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images import Embedded, ImageSource, Skip, decode, preprocess
from aim_mlx.models.layers import block_indices, layer_numbers
from aim_mlx.models.pooling import POOLINGS, check_pooling, normalized, pool
from aim_mlx.models.vision import Features, VisionEncoder


@dataclass(eq=False)
class Encoder:
    """A vision encoder with its preprocessing; `identity` says where it came from, for records.

    Use one in one thread at a time, and read MLX arrays in the thread that got them.
    """

    model: VisionEncoder
    preprocessing: PreprocessConfig
    trained: bool = True
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> mx.Dtype:
        """What the weights and the tokens are in: mx.float32, mx.float16 or mx.bfloat16."""
        return self.model.trunk.post_trunk_norm.weight.dtype

    @property
    def network(self) -> nn.Module:
        """All that was loaded."""
        return self.model

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of all parameters as loaded, in hex; the same whatever layout they came in."""
        return parameters_digest(self.network)

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings this model can do, its own first."""
        return tuple(POOLINGS)

    def pooling(self, options: EmbedOptions) -> str:
        """The pooling that these options mean for this model."""
        return options.pooling or self.poolings[0]

    def dim(self, options: EmbedOptions) -> int:
        """The length of the vectors."""
        return self.model.config.embed_dim

    def check(self, options: EmbedOptions) -> None:
        """Raises UsageError for options that this model cannot serve."""
        check_pooling(self.pooling(options), self.poolings)
        block_indices(options.layers, self.model.config.num_blocks)

    def preprocess(self, images: Iterable[ImageSource]) -> NDArray[np.float32]:
        """Images -> normalised pixels, float32 (B, H, W, 3).

        Raises ImageError, naming the image, for one that cannot be decoded, UsageError where a
        native-resolution model gives the images different sizes.
        """
        pixels = []
        for index, image in enumerate(listed(images)):
            try:
                pixels.append(preprocess(decode(image), self.preprocessing))
            except ImageError as failure:
                raise named(failure, index, image) from failure
        if not pixels:
            raise UsageError("expected at least one image, got none")
        if len({each.shape for each in pixels}) > 1:
            raise UsageError("these images differ in size at native resolution: one at a time")
        return np.stack(pixels)

    def features(
        self,
        pixels: NDArray[Any] | mx.array,
        layers: Sequence[int] = (),
        interpolate_positions: bool = False,
    ) -> Features:
        """Normalised pixels (B, H, W, 3) -> Features: tokens (B, N, D), grid (h, w), layers.

        All in the encoder's dtype, and computed when they are read. `layers` names blocks, -1 the
        last one. Raises UsageError for sizes or layers that the model does not have.
        """
        return self.model(self._as_pixels(pixels), layers, interpolate_positions)

    def embed(
        self,
        images: Iterable[ImageSource],
        *,
        pooling: str | None = None,
        layers: Sequence[int] = (),
        normalize: bool = True,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Images -> vectors, float32 (n, D), row i for image i, of length 1 if `normalize`.

        Images are paths, encoded bytes, PIL images or uint8 arrays (H, W, 3). Raises ImageError,
        naming the image, for the first that cannot be embedded; `embed_stream` goes on instead.
        """
        options = EmbedOptions(pooling, layer_numbers(layers), normalize, batch_size)
        images = listed(images)
        vectors = np.empty((len(images), self.dim(options)), np.float32)
        with closing(self.embed_stream(images, options)) as rows:
            for row in rows:
                vectors[row.index] = vector_of(row, images)
        return vectors

    def embed_stream(
        self,
        images: Iterable[ImageSource],
        options: EmbedOptions | None = None,
        block: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        known: Callable[[str], bool] | None = None,
        in_host: bool = False,
    ) -> Generator[Embedded, None, None]:
        """Yields one row for each image, in order, with its vector (D,) float32 or its failure.

        With `block`, no batch reaches over a multiple of that many images: a run that starts at
        one gives the same bits as a run that reached it. Once `stop` says so, no further batch
        begins; the rows of those that have begun come, then Interrupted is raised. With `known`,
        which says of the SHA-256 of a file that it need not be embedded, images are paths, and
        rows have their `content`; a content that is known, or came before, only `repeats`. With
        `in_host`, decoding leaves no thread behind. Raises CheckpointError if
        every vector of the first batch is not finite.
        """
        options = options or EmbedOptions()
        self.check(options)
        compute = partial(self._vectors, options=options)
        return Pipeline(
            compute,
            listed(images),
            self.preprocessing,
            self.model.config.grid,
            options,
            dtype=self.dtype,
            block=block,
            known=known,
            stop=stop,
            in_host=in_host,
        ).rows()

    def _as_pixels(self, pixels: NDArray[Any] | mx.array) -> mx.array:
        """Pixels in the encoder's dtype; raises UsageError for what is no array of numbers."""
        if isinstance(pixels, mx.array):
            return pixels.astype(self.dtype)
        try:
            numbers = np.asarray(pixels)
        except ValueError:  # rows of several lengths
            numbers = np.empty(0, object)
        if numbers.dtype.kind not in "fiu":
            raise UsageError(
                "expected pixels as an array (B, H, W, 3), such as preprocess() gives, got "
                f"{type(pixels).__name__} of {numbers.dtype}"
            )
        # A copy, as MLX takes no array with negative strides, such as a mirrored one.
        return mx.array(np.array(numbers, np.float32, order="C")).astype(self.dtype)

    def tokens(self, pixels: mx.array, layers: Sequence[int] = ()) -> mx.array:
        """Pixels (B, H, W, 3) -> the final tokens (B, N, D), or the mean of these blocks' outputs.

        Computed, once they are read, in the wider dtype of pixels and weights; the mean is in
        float32, as it is pooled.
        """
        features = self.model(pixels, layers)
        outputs = [output.astype(mx.float32) for output in features.layers.values()]
        return mx.stack(outputs).mean(axis=0) if outputs else features.tokens

    def _vectors(self, pixels: mx.array, options: EmbedOptions) -> mx.array:
        """Pixels (B, H, W, 3) -> vectors (B, D) float32, not yet computed."""
        vectors = self._pool(self.tokens(pixels, options.layers), options)
        return normalized(vectors) if options.normalize else vectors

    def _pool(self, tokens: mx.array, options: EmbedOptions) -> mx.array:
        """Tokens (B, N, D) -> vectors (B, D) float32."""
        return pool(tokens, self.pooling(options))


def listed(given: Any, what: str = "images") -> Sequence[Any]:
    """What was given, as a sequence; raises UsageError for a single one, which may pass for one."""
    single = isinstance(given, (str, bytes, Path, Image.Image))
    if single or (isinstance(given, np.ndarray) and given.ndim == 3):
        raise UsageError(f"expected a list of {what}, got a single one: put it in [ ]")
    if not isinstance(given, Iterable):
        raise UsageError(f"expected a list of {what}, got {type(given).__name__}")
    return given if isinstance(given, Sequence) else list(given)


def vector_of(row: Embedded, images: Sequence[ImageSource]) -> NDArray[np.float32]:
    """The vector of a row; raises its failure with the image's place and name."""
    if row.failure is None:
        return row.vector
    raise named(row.failure, row.index, images[row.index])


def named(failure: ImageError, index: int, image: ImageSource) -> ImageError:
    """A failure with the image's place and, of a path, its name."""
    name = f" ({image!s:.200})" if isinstance(image, (str, Path)) else ""
    return ImageError(failure.reason, f"image {index}{name}: {failure.detail}")


def vectors_and_skips(
    rows: Generator[Embedded, None, None],
    paths: Sequence[str],
    progress: Callable[[int, int], None],
) -> tuple[list[NDArray[np.float32]], list[Skip]]:
    """All vectors of a stream over files, in order, and the files that have none."""
    vectors, skips = [], []
    with closing(rows):
        for row in rows:
            if row.failure is None:
                vectors.append(row.vector)
            else:
                skips.append(Skip.of(paths[row.index], row.failure))
            progress(row.index + 1, len(paths))
    return vectors, skips
