"""Images and texts in one space: an encoder whose vectors can be compared with words."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from aim_mlx.backend import BLAS, cpu_streams, mx, on_gpu
from aim_mlx.encoder.encoder import EmbedOptions, Encoder, listed
from aim_mlx.errors import CheckpointError, TruncatedTextWarning, UsageError
from aim_mlx.images import ImageSource
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.pooling import POOLINGS, normalized
from aim_mlx.models.text import TextFeatures
from aim_mlx.registry import DEFAULT_LIT

if TYPE_CHECKING:
    from aim_mlx.words.tokenizer import TokenIds, Tokenizer

Texts = Sequence[str] | NDArray[Any] | Sequence[Sequence[int]]

# Tokens in a batch. On a CPU, where each core has one of its own, 256 to 1024 take equally long.
_GPU_TOKENS = 32 * 1024
_CPU_TOKENS = 512
_SMALLEST_GROUP = 64  # texts that begin alike, to be worth batches of their own


@dataclass(eq=False)
class LiT(Encoder):
    """A LiT model with its preprocessing; `model` is its image tower."""

    lit: LiTModel = field(kw_only=True)
    tokenizer: "Tokenizer | None" = field(default=None, kw_only=True)

    @property
    def network(self) -> LiTModel:
        return self.lit

    @property
    def poolings(self) -> tuple[str, ...]:
        return ("attention", *POOLINGS)

    def dim(self, options: EmbedOptions) -> int:
        attended = self.pooling(options) == "attention"
        return self.lit.config.projection_dim if attended else super().dim(options)

    def check(self, options: EmbedOptions) -> None:
        super().check(options)
        if options.layers and self.pooling(options) == "attention":
            raise UsageError("attention pooling takes the final tokens: leave out the layers")

    def _pool(self, tokens: mx.array, options: EmbedOptions) -> mx.array:
        if self.pooling(options) == "attention":
            return self.lit.project_tokens(tokens).astype(mx.float32)
        return super()._pool(tokens, options)

    def encode_image(self, pixels: NDArray[Any] | mx.array) -> mx.array:
        """Normalised pixels (B, H, W, 3) -> projected, not normalised (B, P), float32.

        Float32 whatever the model's dtype, as from `encode_text`. Raises UsageError for a size that
        the model does not take.
        """
        return self.lit.encode_image(self._as_pixels(pixels)).astype(mx.float32)

    def tokenize(self, texts: Sequence[str]) -> "TokenIds":
        """Texts -> token ids, with the rows that were over the context length and are cut.

        Raises CheckpointError where the model came without a tokenizer, or was loaded where the
        package `tokenizers` is missing.
        """
        if self.tokenizer is None:
            _check_package()
            raise CheckpointError(
                "this model came without a tokenizer: put tokenizer.json, or vocab.json and "
                f"merges.txt, beside its weights ({self.identity.get('path', 'no file')})"
            )
        return self.tokenizer.encode(texts)

    def encode_text(self, texts: Texts) -> mx.array:
        """Texts, or ids (B, L) with an end token each -> projected, not normalised (B, P), float32.

        Texts that begin alike or are of like length run together; neither their order nor what
        they are padded with changes a row. Warns with TruncatedTextWarning where texts were cut.
        Raises CheckpointError for words without a tokenizer, UsageError for ids that the text tower
        cannot take.
        """
        ids = self._ids(texts)
        ends = self.lit.text_encoder.ends(ids)
        vectors = np.empty((len(ids), self.lit.config.projection_dim), np.float32)
        budget = _GPU_TOKENS if on_gpu() else _CPU_TOKENS
        share = math.ceil(int((ends + 1).sum()) / BLAS.threads)  # that no stream stands idle
        batches = text_batches(ids, ends + 1, max(1, min(budget, share)))
        with cpu_streams(len(ids)) as streams:
            while together := list(islice(batches, len(streams))):
                started = []
                for (rows, shared), device_stream in zip(together, streams, strict=False):
                    with mx.stream(device_stream):
                        texts_of = ids[rows, : int(ends[rows].max()) + 1]
                        started.append(self.lit.encode_text(texts_of, shared).astype(mx.float32))
                mx.async_eval(started)
                for (rows, _), computing in zip(together, started, strict=True):
                    vectors[rows] = np.array(computing)
        return mx.array(vectors)

    def text_features(self, texts: Texts, layers: Sequence[int] = ()) -> TextFeatures:
        """Texts or ids -> tokens (B, L, D), the place of each text's end, and outputs of blocks.

        All in the model's dtype, and computed when they are read. Raises what `encode_text` raises,
        and UsageError for layers that do not exist.
        """
        return self.lit.text_encoder.features(self._ids(texts), layers)

    def logits(self, pixels: NDArray[Any] | mx.array, texts: Texts) -> mx.array:
        """Normalised pixels (n, H, W, 3), texts or ids (C, L) -> scaled cosines (n, C), float32.

        The scale is exp(log_logit_scale), from 1 to `max_logit_scale` of the config. Raises what
        `encode_image` and `encode_text` raise.
        """
        return self.lit.logits(self.encode_image(pixels), self.encode_text(texts))

    def classify(
        self,
        images: Iterable[ImageSource],
        labels: Sequence[str],
        templates: str | os.PathLike[str] | Sequence[str] = "plain",
        *,
        multi_label: bool = False,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Images -> scores (n, C) float32 for the labels: probabilities, which sum to one.

        `templates` are "plain", "varied", a file or a list of texts with one `{}`. `multi_label`
        gives the cosine with each label instead. To use labels again, make a ZeroShotHead. Raises
        what `embed` raises, and UsageError for labels or templates that do not serve.
        """
        from aim_mlx.words.zeroshot import ZeroShotHead  # which is made with a LiT

        head = ZeroShotHead.build(self, labels, templates, single=multi_label)
        if head.cut:
            warn_of_cut(head.cut, self.lit.config.text.context_length)
        vectors = self.embed(images, pooling="attention", batch_size=batch_size)
        return head.scores(vectors, multi_label)

    def similarity_map(self, image: ImageSource, text: str) -> NDArray[np.float32]:
        """Where an image looks like a text: the cosine of each patch with it, float32 (h, w).

        A patch's vector is what the attention pool would give if it attended to that patch alone:
        W_P (W_O (W_V t_i) + b), with W_V and W_O, b the pool's value and output projections and
        W_P the image projection. Where all heads attend alike, the image's vector is the mean of
        these, weighted by the attention, which is left out here. Limits: the model was never
        trained for places, a patch's token holds what it has seen of the whole image, and cosines
        of single patches are not on the scale of whole images. Compare places within one image.
        The map covers what the model sees, after resizing and cropping. Raises what `encode_text`
        and `preprocess` raise.
        """
        return self.similarity_maps(self.preprocess([image]), self.encode_text([text]))[0]

    def similarity_maps(
        self, pixels: NDArray[Any] | mx.array, vectors: NDArray[Any] | mx.array
    ) -> NDArray[np.float32]:
        """Normalised pixels of one image (1, H, W, 3), text vectors (C, P) -> maps (C, h, w).

        Cosines from -1 to 1, float32, as of `similarity_map`; the vectors, such as `encode_text`
        gives, may be of any length. Raises UsageError for pixels or vectors of another shape.
        """
        pixels, vectors = self._as_pixels(pixels), mx.array(vectors)
        expected = self.lit.config.projection_dim
        if vectors.ndim != 2 or vectors.shape[1] != expected or len(pixels) != 1:
            raise UsageError(
                f"expected pixels of one image and text vectors (C, {expected}), got "
                f"{tuple(pixels.shape)} and {tuple(vectors.shape)}"
            )
        features = self.features(pixels)
        patches = self.lit.project_each(features.tokens)[0]
        maps = normalized(vectors) @ normalized(patches).T
        return np.array(maps).reshape(len(vectors), *features.grid)

    def _ids(self, texts: Texts) -> NDArray[Any]:
        """The ids (B, L) of texts, or those given."""
        if not isinstance(texts, (np.ndarray, mx.array)):
            texts = listed(texts, "texts")
        if not len(texts) or isinstance(texts[0], str):
            tokens = self.tokenize(cast(Sequence[str], texts))
            if tokens.cut:
                warn_of_cut(len(tokens.cut), tokens.ids.shape[1], stacklevel=4)
            return tokens.ids
        try:
            return np.asarray(texts)
        except ValueError:
            raise UsageError("expected ids (B, L), got rows of several lengths: pad them") from None


def as_lit(encoder: Encoder) -> LiT:
    """The encoder, which must have a text tower; raises UsageError where it has none."""
    if not isinstance(encoder, LiT):
        raise UsageError(
            f"{encoder.identity.get('model')} has no text tower, so words mean nothing to it: "
            f"use a LiT model such as {DEFAULT_LIT}"
        )
    return encoder


def _check_package() -> None:
    """Raises CheckpointError where no tokenizer could be loaded for lack of the package."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            "words need the package tokenizers: pip install tokenizers"
        ) from error


def warn_of_cut(count: int, longest: int, stacklevel: int = 3) -> None:
    """Says that texts were cut, by default to whoever called the function that calls this."""
    warnings.warn(
        f"{count} text{'s' if count > 1 else ''} of more than {longest} tokens "
        "cut to that length, the end token kept",
        TruncatedTextWarning,
        stacklevel=stacklevel,
    )


def text_batches(
    ids: np.ndarray, lengths: np.ndarray, tokens: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Texts (B, L) of these lengths -> rows of each batch, and how many first tokens they share.

    Texts that begin alike run together, as prompts of one template do, then those of like length.
    A batch has at most `tokens` tokens that are not shared, padding included, or one row.
    """
    for group, shared in _alike(ids, lengths, np.arange(len(ids)), 0):
        rest = lengths[group] - shared
        order = np.argsort(-rest, kind="stable")
        start = 0
        while start < len(order):
            part = order[start : start + max(1, tokens // int(rest[order[start]]))]
            yield group[part], shared
            start += len(part)


def _alike(
    ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, shared: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Rows that share `shared` tokens, divided where many go on alike; none shares its last."""
    while len(rows) > 1 and shared < lengths[rows].min() - 1:
        tokens, places, counts = np.unique(
            ids[rows, shared], return_inverse=True, return_counts=True
        )
        if len(tokens) > 1:
            many = np.flatnonzero(counts >= _SMALLEST_GROUP)
            for token in many:
                yield from _alike(ids, lengths, rows[places == token], shared + 1)
            rows = rows[~np.isin(places, many)]
            break
        shared += 1
    if len(rows):
        yield rows, shared
