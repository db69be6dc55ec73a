"""LiT: a vision encoder with attention pooling and a text tower, projected into one space."""

import math

import numpy as np

from aim_mlx.backend import mx, nn
from aim_mlx.config import LiTConfig
from aim_mlx.models.pooling import AttentionPool, normalized
from aim_mlx.models.text import TextEncoder
from aim_mlx.models.vision import VisionEncoder


class ImageTower(VisionEncoder):
    """The vision encoder with its attention pool."""

    def __init__(self, config: LiTConfig):
        super().__init__(config.vision)
        self.head = AttentionPool(config.vision.embed_dim, config.vision.num_heads)


class LiTModel(nn.Module):
    """Both towers; source: apple/ml-aim, `AIMv2LiT`."""

    def __init__(self, config: LiTConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageTower(config)
        self.image_projector = nn.Linear(config.vision.embed_dim, config.projection_dim, bias=False)
        self.text_encoder = TextEncoder(config.text)
        self.text_projector = nn.Linear(config.text.embed_dim, config.projection_dim, bias=False)
        self.log_logit_scale = mx.zeros(())

    def project_tokens(self, tokens: mx.array) -> mx.array:
        """The image tower's final tokens (B, N, D) -> (B, P), not normalised."""
        return self.image_projector(self.image_encoder.head(tokens))

    def project_each(self, tokens: mx.array) -> mx.array:
        """The image tower's final tokens (B, N, D) -> (B, N, P), each by itself, not normalised."""
        return self.image_projector(self.image_encoder.head.each(tokens))

    def encode_image(self, pixels: mx.array) -> mx.array:
        """Normalised pixels (B, H, W, 3) -> (B, P), not normalised."""
        return self.project_tokens(self.image_encoder(pixels).tokens)

    def encode_text(self, ids: np.ndarray, shared: int = 0) -> mx.array:
        """Token ids (B, L) -> (B, P), not normalised; raises UsageError for impossible ids.

        `shared` as for the text tower: so many first tokens are the same in all texts.
        """
        return self.text_projector(self.text_encoder(ids, shared))

    def logits(self, images: mx.array, texts: mx.array) -> mx.array:
        """Projected images (n, P) and texts (C, P) -> scaled cosines (n, C) in float32."""
        cosines = normalized(images) @ normalized(texts).T
        return self.logit_scale * cosines

    @property
    def logit_scale(self) -> mx.array:
        """exp(log_logit_scale), bounded by 1 and the largest scale."""
        log_scale = self.log_logit_scale.astype(mx.float32)
        return mx.exp(mx.clip(log_scale, 0.0, math.log(self.config.max_logit_scale)))
