"""From tokens to one vector an image."""

from collections.abc import Callable, Collection

from aim_mlx.backend import mx, nn
from aim_mlx.errors import UsageError
from aim_mlx.models.query_attention import attend_folded, folded_queries, project

_GEM_POWER = 3.0
_GEM_FLOOR = 1e-6


def _gem(tokens: mx.array) -> mx.array:
    """The generalised mean of power 3 over the positive part (arXiv 1711.02512, eq. 3)."""
    powered = mx.maximum(tokens, _GEM_FLOOR) ** _GEM_POWER
    return powered.mean(axis=1) ** (1 / _GEM_POWER)


# Each from tokens (B, N, D) to vectors (B, D), for every encoder; the first is the default.
POOLINGS: dict[str, Callable[[mx.array], mx.array]] = {
    "mean": lambda tokens: tokens.mean(axis=1),
    "max": lambda tokens: tokens.max(axis=1),
    "gem": _gem,
}
# "attention" is a LiT model's own, with weights.
ALL_POOLINGS = (*POOLINGS, "attention")


def pool(tokens: mx.array, method: str) -> mx.array:
    """Tokens (B, N, D) -> vectors (B, D) in float32 by one of POOLINGS."""
    check_pooling(method)
    return POOLINGS[method](tokens.astype(mx.float32))


def check_pooling(method: str, available: Collection[str] = tuple(POOLINGS)) -> None:
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

    The same numbers as with a key and a value for every token, for a hundredth of the products (see
    query_attention.py). Source: apple/ml-aim, `AttentionPoolingClassifier` without normalisation.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self._heads = heads
        self.cls_token = mx.zeros((1, 1, dim))
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.linear = nn.Linear(dim, dim)

    def __call__(self, tokens: mx.array) -> mx.array:
        queries = folded_queries(self.cls_token[0], self.k.weight, self._heads)
        averaged, _ = attend_folded(tokens, queries)
        return self.linear(project(averaged.swapaxes(0, 1), self.v.weight))

    def each(self, tokens: mx.array) -> mx.array:
        """What the pool would give if all heads attended to one token alone: (B, N, D) for each."""
        return self.linear(self.v(tokens))
