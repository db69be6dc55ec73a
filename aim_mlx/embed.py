"""Images to vectors: the main job.

Samples come decoded from `images.stream`, are batched by grid, run through the encoder, pooled,
and leave in the order they came in. Batches compute while the next is being gathered.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aim_mlx.backend import cpu_streams, mx, nn, on_gpu
from aim_mlx.batching import batches, in_order
from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import AimError, CheckpointError, ImageError, UsageError
from aim_mlx.images import ImageSource, Omitted, Sample, decode, preprocess, stream
from aim_mlx.models.pooling import POOLINGS, check_pooling, normalized, pool
from aim_mlx.models.vision import Features, VisionEncoder, block_indices
from aim_mlx.weights.digest import parameters_digest

# Patches in a batch where no size is asked for: 32 images of 224 x 224 on a GPU, four on a CPU,
# where every core has a batch of its own and larger ones gain little.
_GPU_PATCHES = 32 * 256
_CPU_PATCHES = 4 * 256
_MOST_AHEAD = 64  # decoded samples that wait, 0.6 MB each at 224 x 224


@dataclass(frozen=True)
class Embedded:
    """One image's row: `vector` is float32 (D,), or None where `failure` says why there is none.

    Both are None for a source that was OMITTED: it keeps its place and is not computed.

    `width` and `height` are those of the upright original, 0 on failure; `multi_frame` is True
    where only the first of several frames or pages was read.
    """

    index: int
    vector: np.ndarray | None
    width: int
    height: int
    failure: ImageError | None = None
    multi_frame: bool = False


@dataclass(frozen=True)
class EmbedOptions:
    """How tokens become a vector, and how many images run at a time.

    `pooling` None is the model's own: "attention" where it has such a pool, else "mean". `layers`
    takes the mean of those blocks' outputs (before the final norm) in place of the final tokens.
    `batch_size` None fits the batch to the device and the patch grid.
    """

    pooling: str | None = None
    layers: tuple[int, ...] = ()
    normalize: bool = True
    batch_size: int | None = None
    max_pixels: int | None = None
    allow_truncated: bool = False

    def __post_init__(self):
        if self.batch_size is not None and (
            type(self.batch_size) is not int or self.batch_size < 1
        ):
            raise UsageError(f"batch size must be a whole number from 1, got {self.batch_size!r}")


@dataclass
class Encoder:
    """A vision encoder with its preprocessing; `identity` says where it came from, for records."""

    model: VisionEncoder
    preprocessing: PreprocessConfig
    trained: bool = True
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> mx.Dtype:
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
        return POOLINGS

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

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """Images -> normalised pixels, float32 (B, H, W, 3).

        Raises ImageError for an image that cannot be decoded, UsageError where a native-resolution
        model gives the images different sizes.
        """
        pixels = [preprocess(decode(image), self.preprocessing) for image in _listed(images)]
        if not pixels:
            raise UsageError("expected at least one image, got none")
        if len({each.shape for each in pixels}) > 1:
            raise UsageError("these images differ in size at native resolution: one at a time")
        return np.stack(pixels)

    def features(
        self,
        pixels: np.ndarray | mx.array,
        layers: Sequence[int] = (),
        final: bool = True,
        interpolate_positions: bool = False,
    ) -> Features:
        """Normalised pixels (B, H, W, 3) -> Features: tokens (B, N, D), grid (h, w), layers.

        Raises UsageError for sizes or layers that the model does not have.
        """
        return self.model(mx.array(pixels).astype(self.dtype), layers, final, interpolate_positions)

    def embed(
        self,
        images: Sequence[ImageSource],
        *,
        pooling: str | None = None,
        layers: Sequence[int] = (),
        normalize: bool = True,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Images -> vectors, float32 (n, D), row i for image i, of length 1 if `normalize`.

        Images are paths, encoded bytes, PIL images or uint8 arrays (H, W, 3). Raises ImageError,
        naming the image, for the first that cannot be embedded; `embed_stream` goes on instead.
        """
        options = EmbedOptions(pooling, tuple(layers), normalize, batch_size)
        images = _listed(images)
        vectors = np.empty((len(images), self.dim(options)), np.float32)
        with closing(self.embed_stream(images, options)) as rows:
            for row in rows:
                if row.failure is not None or row.vector is None:
                    raise _named(row, images[row.index])
                vectors[row.index] = row.vector
        return vectors

    def embed_stream(
        self,
        images: Sequence[ImageSource | Omitted],
        options: EmbedOptions | None = None,
        block: int | None = None,
    ) -> Generator[Embedded, None, None]:
        """Yields one row for each image, in order; an image that fails is a row with its failure.

        With `block`, no batch reaches over a multiple of that many images: a run that starts at
        one gives the same bits as a run that came to it. Raises CheckpointError if every vector of
        the first batch is not finite.
        """
        options = options or EmbedOptions()
        self.check(options)
        images = _listed(images)
        return in_order(self._rows(images, options, block or max(1, len(images))), len(images))

    def _rows(
        self, images: Sequence[ImageSource | Omitted], options: EmbedOptions, block: int
    ) -> Generator[Embedded, None, None]:
        """Rows as they are finished, batch by batch."""
        checked = False
        most = math.ceil(block / (options.batch_size or 1))  # batches there can be
        with cpu_streams(most) as streams:
            patches = None
            if options.batch_size is None:
                patches = _GPU_PATCHES if on_gpu() else _CPU_PATCHES
            samples = stream(
                images,
                self.preprocessing,
                prefetch=self._ahead(options.batch_size or block, patches, len(streams)),
                max_pixels=options.max_pixels,
                allow_truncated=options.allow_truncated,
            )
            with closing(samples):
                grouped = self._batches(samples, len(images), block, options, patches, len(streams))
                for rows in self._computed(grouped, options, streams):
                    checked = checked or self._check_finite(rows)
                    yield from rows

    def _batches(
        self,
        samples: Iterator[Sample],
        count: int,
        block: int,
        options: EmbedOptions,
        patches: int | None,
        streams: int,
    ) -> Iterator[list[Sample]]:
        """Batches, block by block; none has more than a stream's share, that none stands idle."""
        for number, part in groupby(samples, key=lambda sample: sample.index // block):
            length = min(block, count - number * block)
            size = options.batch_size or math.ceil(length / streams)
            yield from batches(part, self.preprocessing.patch_size, size, patches)

    def _ahead(self, size: int, patches: int | None, streams: int) -> int | None:
        """Samples to decode ahead: those of the next batches, while the present ones compute."""
        grid = self.model.config.grid
        if grid is None:  # up to 10 MB each, and few to a batch
            return None
        full = size if patches is None else min(size, max(1, patches // grid**2))
        return min(full * streams, _MOST_AHEAD)

    def _computed(
        self, grouped: Iterator[list[Sample]], options: EmbedOptions, streams: list[mx.Stream]
    ) -> Iterator[list[Embedded]]:
        """The rows of each batch; as many batches as there are streams compute together.

        They are set going by one call: on the CPU it returns only when most of its work is done,
        so that a call for each would run them in turn. The next are gathered before any is read.
        """
        running: list[tuple[list[Sample], mx.array | None]] = []
        while together := list(islice(grouped, len(streams))):
            started = [
                (batch, self._start(batch, options, device_stream))
                for batch, device_stream in zip(together, streams, strict=False)
            ]
            with _explained(max(map(len, together))):
                mx.async_eval([vectors for _, vectors in started if vectors is not None])
            yield from (self._finish(*each) for each in running)
            running = started
        yield from (self._finish(*each) for each in running)

    def _start(
        self, batch: list[Sample], options: EmbedOptions, device_stream: mx.Stream
    ) -> mx.array | None:
        """The vectors (B, D) of a batch, not yet computed; None where all of it failed."""
        pixels = [sample.pixels for sample in batch if sample.pixels is not None]
        if not pixels:
            return None
        with mx.stream(device_stream):
            return self._vectors(mx.array(np.stack(pixels)), options)

    def _vectors(self, pixels: mx.array, options: EmbedOptions) -> mx.array:
        """Pixels (B, H, W, 3) -> vectors (B, D) float32, not yet computed."""
        features = self.features(pixels, options.layers, final=not options.layers)
        if features.tokens is not None:
            tokens = features.tokens
        else:
            outputs = [output.astype(mx.float32) for output in features.layers.values()]
            tokens = mx.stack(outputs).mean(axis=0)
        vectors = self._pool(tokens, options)
        return normalized(vectors) if options.normalize else vectors

    def _pool(self, tokens: mx.array, options: EmbedOptions) -> mx.array:
        """Tokens (B, N, D) -> vectors (B, D) float32."""
        return pool(tokens, self.pooling(options))

    def _finish(self, batch: list[Sample], computing: mx.array | None) -> list[Embedded]:
        """Waits for a batch; its rows, failures of decoding included."""
        with _explained(len(batch)):
            vectors = iter([] if computing is None else np.array(computing))
        return [_row(sample, vectors) for sample in batch]

    def _check_finite(self, rows: list[Embedded]) -> bool:
        """Whether any vector was computed; CheckpointError if some were and none is finite.

        One image may overflow half precision; where none gives a number, the weights are at fault.
        """
        good = sum(row.vector is not None for row in rows)
        bad = sum(row.failure is not None and row.failure.reason == "non_finite" for row in rows)
        if bad and not good:
            raise CheckpointError(
                f"no vector of the first {bad} images is finite: the weights or the dtype "
                f"{self.dtype} do not serve; try --dtype float32"
            )
        return bool(good)


def _row(sample: Sample, vectors: Iterator[np.ndarray]) -> Embedded:
    if sample.pixels is None:
        return Embedded(sample.index, None, 0, 0, sample.failure)
    vector, failure = next(vectors), None
    if not np.isfinite(vector).all():
        failure = ImageError("non_finite", "the embedding of this image is not finite")
    return Embedded(
        sample.index,
        None if failure else vector,
        sample.width,
        sample.height,
        failure,
        sample.multi_frame,
    )


def _listed(images: Any) -> Sequence[ImageSource]:
    """The images as a sequence; raises UsageError for a single one, which reads as a list too."""
    single = isinstance(images, (str, bytes, Path, Image.Image))
    if single or (isinstance(images, np.ndarray) and images.ndim == 3):
        raise UsageError("expected a list of images, got a single one: put it in [ ]")
    return images if isinstance(images, Sequence) else list(images)


def _named(row: Embedded, image: ImageSource) -> ImageError:
    failure = row.failure or ImageError("non_finite", "no vector")
    name = f" ({image!s:.200})" if isinstance(image, (str, Path)) else ""
    return ImageError(failure.reason, f"image {row.index}{name}: {failure.detail}")


@contextmanager
def _explained(batch: int) -> Iterator[None]:
    """Turns MLX's out-of-memory error into one that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise AimError(
            f"out of memory with {batch} images at a time: try --batch-size {max(1, batch // 2)}"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "alloc" in text or "memory" in text
