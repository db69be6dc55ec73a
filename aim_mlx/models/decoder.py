"""AIMv2's pre-training network (arXiv 2411.14402, section 3.1): the encoder and a decoder after it.

- the decoder is causal over [image tokens, beginning of text, text tokens]
- image tokens come through a linear layer and keep the encoder's positions; text has its own
- one head gives the pixels of the next patch, one the next token; neither has a bias
- in the encoder, the patches of a prefix see each other, later ones what is before them
"""

from dataclasses import dataclass

from aim_mlx.backend import mx, nn
from aim_mlx.config import TextConfig, VisionConfig
from aim_mlx.models.layers import Seen, Trunk, through
from aim_mlx.models.text import TokenEmbedding
from aim_mlx.models.vision import VisionEncoder


@dataclass(frozen=True)
class PretrainingConfig:
    """Sizes of the encoder and of the decoder, whose `context_length` counts tokens after BOS."""

    vision: VisionConfig
    decoder: TextConfig


class Decoder(nn.Module):
    """The causal trunk with its embeddings and heads."""

    def __init__(self, config: PretrainingConfig):
        super().__init__()
        text, width = config.decoder, config.decoder.embed_dim
        self.text_embedding = TokenEmbedding(text)
        self.bos = mx.zeros((1, 1, width))
        self.positional_embedding = mx.zeros((text.context_length + 1, width))
        self.trunk = Trunk(text)
        self.pixel_head = nn.Linear(width, 3 * config.vision.patch_size**2, bias=False)
        self.text_head = nn.Linear(width, text.vocab_size, bias=False)

    def embed(self, ids: mx.array) -> mx.array:
        """Token ids (B, L) -> BOS and the tokens, with positions (B, 1 + L, D)."""
        B, L = ids.shape
        bos = mx.broadcast_to(self.bos, (B, *self.bos.shape[1:]))
        tokens = mx.concatenate([bos, self.text_embedding(ids)], axis=1)
        return tokens + self.positional_embedding[: L + 1]

    def embed_one(self, ids: mx.array, place: int) -> mx.array:
        """Token `place` of each text, ids (B,) -> (B, 1, D)."""
        return (self.text_embedding(ids) + self.positional_embedding[place + 1])[:, None]


class PretrainingModel(nn.Module):
    """Encoder, connector and decoder; source: apple/ml-l3m, configs/aimv2."""

    def __init__(self, config: PretrainingConfig):
        super().__init__()
        self._config = config
        self.encoder = VisionEncoder(config.vision)
        self.connector = nn.Linear(config.vision.embed_dim, config.decoder.embed_dim)
        self.decoder = Decoder(config)

    @property
    def config(self) -> PretrainingConfig:
        return self._config

    def __call__(
        self,
        pixels: mx.array,
        mask: mx.array | None,
        ids: mx.array | None = None,
        checkpointed: bool = False,
    ) -> tuple[mx.array, mx.array | None]:
        """Pixels (B, H, W, 3), the encoder's mask (B, 1, N, N), ids (B, L) -> what the heads take.

        Image (B, N, D) and text (B, 1 + L, D), None without ids. Output i of the image is for patch
        i + 1, output i of the text for token i. `checkpointed` keeps only the blocks' inputs for
        the gradient, and computes the rest again.
        """
        B, H, W, _ = pixels.shape
        p = self._config.vision.patch_size
        x = self.encoder.preprocessor(pixels, (H // p, W // p))
        image = self.connector(through(self.encoder.trunk, x, mask, checkpointed))
        N, L = image.shape[1], 0 if ids is None else ids.shape[1] + 1
        x = image if ids is None else mx.concatenate([image, self.decoder.embed(ids)], axis=1)
        causal = mx.tri(N + L, dtype=mx.float32) > 0
        x = through(self.decoder.trunk, x, causal, checkpointed)
        return x[:, :N], None if ids is None else x[:, N:]


class CachedTrunk:
    """A trunk that takes a sequence part by part, and computes only what is new.

    Without a mask the tokens of a part see each other and all parts before.
    """

    def __init__(self, trunk: Trunk):
        self._trunk, self._seen = trunk, [Seen() for _ in trunk.blocks]

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """The next tokens (B, L, D) -> theirs after the final norm."""
        return self._trunk(x, mask, seen=self._seen)[0]
