"""The LiT text tower (arXiv 2411.14402, section 4.1): a causal trunk over token embeddings.

- learned token and position embeddings, the blocks of the vision trunk, a final norm
- always causal, whatever the padding: nothing after the end token can reach it
- the vector of a text is the token at its first end token
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from aim_mlx.backend import check_not_forked, mx, nn, on_gpu
from aim_mlx.config import TextConfig
from aim_mlx.errors import UsageError
from aim_mlx.models.layers import Seen, Trunk


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What the tower makes of a batch of texts; nothing is computed before it is read.

    tokens: (B, L, D) after the final norm, in the tower's dtype
    ends:   (B,) the place of each text's first end token; what is behind it belongs to no text
    layers: index as asked for -> that block's output (B, L, D), before the final norm
    """

    tokens: mx.array
    ends: np.ndarray
    layers: dict[int, mx.array] = field(default_factory=dict)


class TokenEmbedding(nn.Module):
    """The table of token vectors, weight (vocabulary, D): token ids of any shape -> (..., D)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.weight = mx.zeros((config.vocab_size, config.embed_dim))

    def __call__(self, ids: mx.array) -> mx.array:
        return cast(mx.array, _rows_on_gpu(self.weight, ids)) if on_gpu() else self.weight[ids]


@mx.custom_function
def _rows_on_gpu(table: mx.array, ids: mx.array) -> mx.array:
    """The rows of a table, with a gradient that has the same bits each time.

    MLX's own adds the gradients of a row as they come, in any order.
    """
    return table[ids]


@_rows_on_gpu.vjp
def _summed_in_order(
    inputs: tuple[mx.array, mx.array], of_rows: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    table, ids = inputs
    order = mx.argsort(ids.reshape(-1))
    ordered, count = ids.reshape(-1)[order], ids.size
    sums = of_rows.reshape(count, -1)[order].astype(mx.float32)
    reach = 1  # each place has the sum of so many from it on, of those with its id
    while reach < count:
        same = ordered[reach:] == ordered[:-reach]
        more = mx.where(same[:, None], sums[reach:], 0)
        sums = mx.concatenate([sums[:-reach] + more, sums[-reach:]])
        reach *= 2
    # The first place of an id has its sum; the others add zero, in whatever order.
    first = mx.concatenate([mx.array([True]), ordered[1:] != ordered[:-1]])
    whole = mx.where(first[:, None], sums, 0).astype(table.dtype)
    return mx.zeros_like(table).at[ordered].add(whole), mx.zeros_like(ids)


class TextPreprocessor(nn.Module):
    """Token ids (B, L) -> embeddings with positions (B, L, D)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.text_embedding = TokenEmbedding(config)
        self.positional_embedding = mx.zeros((config.context_length, config.embed_dim))

    def __call__(self, ids: mx.array) -> mx.array:
        return self.text_embedding(ids) + self.positional_embedding[: ids.shape[1]]


class TextEncoder(nn.Module):
    """The text tower: source apple/ml-aim, `AIMv2TextEncoder`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self._config = config
        self.preprocessor = TextPreprocessor(config)
        self.trunk = Trunk(config)

    def __call__(self, ids: np.ndarray, shared: int = 0) -> mx.array:
        """Token ids (B, L) -> the token at the first end token of each text, (B, D).

        The first `shared` tokens are the same in all texts and come before any end: as nothing
        behind them can reach them, they are computed once. Raises UsageError for ids that are not
        of the vocabulary, for texts over the context length and for a text without an end token.
        """
        check_not_forked()
        ends = self.ends(ids)
        x = self.preprocessor(mx.array(ids.astype(np.int32)))
        seen = [Seen() for _ in self.trunk.blocks] if shared else []
        if shared:
            self.trunk(x[:1, :shared], mx.array(np.tri(shared, dtype=bool)), seen=seen)
        L = ids.shape[1]
        causal = mx.array(np.tri(L - shared, L, shared, dtype=bool))
        _, outputs = self.trunk(x[:, shared:], causal, layers=[-1], seen=seen)
        # The final norm is computed for these tokens alone.
        x = outputs[-1][mx.arange(len(ids)), mx.array(ends - shared)]
        return self.trunk.post_trunk_norm(x)

    def features(self, ids: np.ndarray, layers: Sequence[int] = ()) -> TextFeatures:
        """Token ids (B, L) -> TextFeatures; `layers` as for the vision encoder.

        Raises UsageError as a call does, and for layers that do not exist.
        """
        check_not_forked()
        ends = self.ends(ids)
        x = self.preprocessor(mx.array(ids.astype(np.int32)))
        causal = mx.array(np.tri(ids.shape[1], dtype=bool))
        tokens, outputs = self.trunk(x, causal, layers)
        return TextFeatures(tokens, ends, outputs)

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """The place of the first end token of each row; MLX itself checks no index.

        Raises UsageError for ids that are no texts of this vocabulary and context length.
        """
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
