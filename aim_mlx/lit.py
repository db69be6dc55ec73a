"""Images and texts in one space: an encoder whose vectors can be compared with words."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.embed import EmbedOptions, Encoder
from aim_mlx.errors import UsageError
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.pooling import POOLINGS


@dataclass
class LiT(Encoder):
    """A LiT model with its preprocessing; `model` is its image tower."""

    lit: LiTModel = field(kw_only=True)

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

    def encode_image(self, pixels: np.ndarray | mx.array) -> mx.array:
        """Normalised pixels (B, H, W, 3) -> projected, not normalised (B, P)."""
        return self.lit.encode_image(mx.array(pixels).astype(self.dtype))

    def encode_text(self, ids: np.ndarray | Sequence[Sequence[int]]) -> mx.array:
        """Token ids (B, L), each with an end token -> projected, not normalised (B, P).

        Raises UsageError for ids that the text tower cannot take.
        """
        return self.lit.encode_text(np.asarray(ids))

    def logits(
        self, pixels: np.ndarray | mx.array, ids: np.ndarray | Sequence[Sequence[int]]
    ) -> mx.array:
        """Pixels (n, H, W, 3) and token ids (C, L) -> scaled cosines (n, C) in float32."""
        return self.lit.logits(self.encode_image(pixels), self.encode_text(ids))
