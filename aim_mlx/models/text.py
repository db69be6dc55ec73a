"""The LiT text tower (arXiv 2411.14402, section 4.1): a causal trunk over token embeddings.

- learned token and position embeddings, the blocks of the vision trunk, a final norm
- always causal, whatever the padding: nothing after the end token can reach it
- the vector of a text is the token at its first end token
"""

import numpy as np

from aim_mlx.backend import mx, nn
from aim_mlx.config import TextConfig
from aim_mlx.errors import UsageError
from aim_mlx.models.layers import Trunk


class TokenEmbedding(nn.Module):
    """The table of token vectors: weight (vocabulary, D)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.weight = mx.zeros((config.vocab_size, config.embed_dim))


class TextPreprocessor(nn.Module):
    """Token ids (B, L) -> embeddings with positions (B, L, D)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.text_embedding = TokenEmbedding(config)
        self.positional_embedding = mx.zeros((config.context_length, config.embed_dim))

    def __call__(self, ids: mx.array) -> mx.array:
        return self.text_embedding.weight[ids] + self.positional_embedding[: ids.shape[1]]


class TextEncoder(nn.Module):
    """The text tower: source apple/ml-aim, `AIMv2TextEncoder`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self._config = config
        self.preprocessor = TextPreprocessor(config)
        self.trunk = Trunk(config)

    def __call__(self, ids: np.ndarray) -> mx.array:
        """Token ids (B, L) -> the token at the first end token of each text, (B, D).

        Raises UsageError for ids that are not of the vocabulary, for texts over the context length
        and for a text without an end token.
        """
        ends = self._check(ids)
        L = ids.shape[1]
        x = self.preprocessor(mx.array(ids.astype(np.int32)))
        causal = mx.array(np.tri(L, dtype=bool))
        for block in self.trunk.blocks:
            x = block(x, causal)
        x = x[mx.arange(len(ids)), mx.array(ends)]
        return self.trunk.post_trunk_norm(x)

    def _check(self, ids: np.ndarray) -> np.ndarray:
        """The position of the first end token of each row; MLX itself checks no index."""
        config = self._config
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise UsageError(f"expected integer ids (B, L), got {ids.dtype} {ids.shape}")
        if not 1 <= ids.shape[1] <= config.context_length:
            raise UsageError(
                f"expected 1 to {config.context_length} tokens a text, got {ids.shape[1]}: "
                "truncate it, keeping the end token"
            )
        if ids.size and (ids.min() < 0 or ids.max() >= config.vocab_size):
            raise UsageError(
                f"token ids must be from 0 to {config.vocab_size - 1}, "
                f"got {ids.min()} to {ids.max()}"
            )
        is_end = ids == config.eos_token_id
        if not is_end.any(axis=1).all():
            row = int(np.flatnonzero(~is_end.any(axis=1))[0])
            raise UsageError(f"text {row} has no end token ({config.eos_token_id}): append it")
        return is_end.argmax(axis=1)
