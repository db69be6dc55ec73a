"""Ovis2's visual tokens (arXiv 2405.20797): features to a visual vocabulary, and to embeddings.

- each stride x stride patches are merged to one, with zeros beyond the right and lower edge
- a linear head with a layer norm scores every word of the vocabulary
- the embedding of a place is the mean of the words' embeddings, weighted by their softmax
- the last rows of the table are no words: they stand before, between and after images
"""

from dataclasses import dataclass

from aim_mlx.backend import mx, nn


@dataclass(frozen=True)
class VisualTokensConfig:
    """Sizes of Ovis2's own part: `words` and `indicators` are the rows of a table `width` wide.

    `hard` takes the best word's embedding, not the mean. `final_norm` says that features come from
    after the tower's final norm, as in transformers; Ovis2's own code takes those from before it.
    """

    embed_dim: int
    stride: int
    words: int
    indicators: int
    width: int
    hard: bool = False
    final_norm: bool = True


class VisualHead(nn.Module):
    """Merged features (B, M, stride * stride * D) -> scores of the words (B, M, words)."""

    def __init__(self, config: VisualTokensConfig):
        super().__init__()
        merged = config.stride**2 * config.embed_dim
        self.linear = nn.Linear(merged, config.words, bias=False)
        self.norm = nn.LayerNorm(config.words)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.linear(x))


class VisualTokenizer(nn.Module):
    """Source: AIDC-AI/Ovis2-1B, `Aimv2VisualTokenizer` and `VisualEmbedding`."""

    def __init__(self, config: VisualTokensConfig):
        super().__init__()
        self.config = config
        self.head = VisualHead(config)
        self.table = nn.Embedding(config.words + config.indicators, config.width)

    def __call__(self, features: mx.array, grid: tuple[int, int]) -> mx.array:
        """Features (B, N, D) of a grid (h, w) -> visual tokens (B, M, width)."""
        scores = self.head(self._merged(features, grid))
        words = self.table.weight[: self.config.words]
        if self.config.hard:
            return words[scores.argmax(axis=-1)]
        return mx.softmax(scores, axis=-1, precise=True) @ words

    @property
    def indicators(self) -> mx.array:
        """What stands around an image's tokens: start, prefix, column, row and end, (5, width)."""
        return self.table.weight[self.config.words :]

    def _merged(self, features: mx.array, grid: tuple[int, int]) -> mx.array:
        (B, _, D), (h, w), s = features.shape, grid, self.config.stride
        rows, columns = -(-h // s), -(-w // s)
        x = features.reshape(B, h, w, D)
        x = mx.pad(x, [(0, 0), (0, rows * s - h), (0, columns * s - w), (0, 0)])
        x = x.reshape(B, rows, s, columns, s, D).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(B, rows * columns, s * s * D)
