"""From tokens to one vector an image."""

import math

from aim_mlx.backend import mx, nn
from aim_mlx.errors import UsageError

POOLINGS = ("mean", "max", "gem")
_GEM_POWER = 3.0
_GEM_FLOOR = 1e-6


def pool(tokens: mx.array, method: str) -> mx.array:
    """Tokens (B, N, D) -> vectors (B, D) in float32 by "mean", "max" or "gem".

    "gem" is the generalised mean of power 3 over the positive part (arXiv 1711.02512, eq. 3).
    """
    check_pooling(method)
    tokens = tokens.astype(mx.float32)
    if method == "mean":
        return tokens.mean(axis=1)
    if method == "max":
        return tokens.max(axis=1)
    powered = mx.maximum(tokens, _GEM_FLOOR) ** _GEM_POWER
    return powered.mean(axis=1) ** (1 / _GEM_POWER)


def check_pooling(method: str, available: tuple[str, ...] = POOLINGS) -> None:
    """Raises UsageError, with the reason, for a pooling that is not available."""
    if method in available:
        return
    choices = ", ".join(available)
    if method in ("cls", "token"):
        raise UsageError(f"AIM encoders have no CLS token: choose a pooling of {choices}")
    if method == "attention":
        raise UsageError(
            f"this checkpoint has no attention pool (LiT checkpoints have): choose one of {choices}"
        )
    raise UsageError(f"pooling must be one of {choices}, got {method!r}")


def normalized(vectors: mx.array) -> mx.array:
    """Vectors (n, P) of length one, in float32."""
    vectors = vectors.astype(mx.float32)
    return vectors / mx.linalg.norm(vectors, axis=-1, keepdims=True)


class AttentionPool(nn.Module):
    """One learned query that attends to the tokens: (B, N, D) -> (B, D).

    The query does not depend on the image, so the key projection is folded into it and the values
    are projected after averaging: the same numbers for a hundredth of the products. Source:
    apple/ml-aim, `AttentionPoolingClassifier` without its normalisation.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self._heads = heads
        self.cls_token = mx.zeros((1, 1, dim))
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.linear = nn.Linear(dim, dim)

    def __call__(self, tokens: mx.array) -> mx.array:
        B, N, D = tokens.shape
        heads, head_dim = self._heads, D // self._heads
        query = self.cls_token.reshape(heads, 1, head_dim) / math.sqrt(head_dim)
        folded = (query @ self.k.weight.reshape(heads, head_dim, D)).reshape(heads, D)
        scores = (tokens @ folded.T).astype(mx.float32)
        weights = mx.softmax(scores, axis=1).astype(tokens.dtype)
        averaged = weights.swapaxes(1, 2) @ tokens  # (B, heads, D)
        values = self.v.weight.reshape(heads, head_dim, D).swapaxes(1, 2)
        pooled = averaged.swapaxes(0, 1) @ values  # (heads, B, head_dim)
        return self.linear(pooled.swapaxes(0, 1).reshape(B, D))

    def each(self, tokens: mx.array) -> mx.array:
        """What the pool would give if all heads attended to one token alone: (B, N, D) for each."""
        return self.linear(self.v(tokens))
