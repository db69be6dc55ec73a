"""From tokens to one vector an image."""

from aim_mlx.backend import mx
from aim_mlx.errors import UsageError

POOLINGS = ("mean", "max", "gem")
_GEM_POWER = 3.0
_GEM_FLOOR = 1e-6


def pool(tokens: mx.array, method: str = "mean") -> mx.array:
    """Tokens (B, N, D) -> vectors (B, D) in float32 by "mean", "max" or "gem".

    "gem" is the generalised mean of power 3 over the positive part (arXiv 1711.02512, eq. 3).
    """
    tokens = tokens.astype(mx.float32)
    if method == "mean":
        return tokens.mean(axis=1)
    if method == "max":
        return tokens.max(axis=1)
    check_pooling(method)
    powered = mx.maximum(tokens, _GEM_FLOOR) ** _GEM_POWER
    return powered.mean(axis=1) ** (1 / _GEM_POWER)


def check_pooling(method: str) -> None:
    """Raises UsageError, with the reason, for a pooling that the encoder cannot do."""
    if method in POOLINGS:
        return
    choices = ", ".join(POOLINGS)
    if method in ("cls", "token"):
        raise UsageError(f"AIM encoders have no CLS token: choose a pooling of {choices}")
    if method == "attention":
        raise UsageError(
            f"this checkpoint has no attention pool (LiT checkpoints have): choose one of {choices}"
        )
    raise UsageError(f"pooling must be one of {choices}, got {method!r}")
