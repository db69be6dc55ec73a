"""What the tests of probes share: noisy heads, tokens to tell apart, and the plain head."""

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.probe.heads import Head, HeadConfig, flat, new_head
from aim_mlx.probe.training import LabelledTokens

D, HEADS, CLASSES = 32, 4, 5


def noisy_head(seed: int = 0, **changes) -> Head:
    """A head with noise in every parameter and in the running moments."""
    values = {"dim": D, "classes": CLASSES, "heads": HEADS, **changes}
    head = new_head(HeadConfig(**values), seed)
    rng = np.random.default_rng(seed)
    noise = {
        name: mx.array(
            (rng.uniform(0.5, 2, v.shape) if "var" in name else rng.normal(0, 0.3, v.shape)).astype(
                np.float32
            )
        )
        for name, v in flat(head.parameters()).items()
    }
    head.load_weights(list(noise.items()), strict=True)
    return head


def noisy_tokens(count: int = 11, seed: int = 0, tokens: int = 6) -> np.ndarray:
    """float16 (count, tokens, D) whose channels have means and spreads of their own."""
    rng = np.random.default_rng(seed)
    spread, mean = rng.uniform(0.5, 2, D), rng.normal(0, 1, D)
    return (rng.normal(0, 1, (count, tokens, D)) * spread + mean).astype(np.float16)


class ArrayTokens:
    """Tokens in memory."""

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens
        self.shape = tokens.shape[1:]

    def for_epoch(self, epoch: int) -> "ArrayTokens":
        return self

    def batch(self, indices) -> list[np.ndarray]:
        return list(self.tokens[np.asarray(indices)])


def labelled(count: int, seed: int = 0, classes: int = 4, strength: float = 4.0) -> LabelledTokens:
    """Images of which one token, anywhere, tells the class."""
    rng = np.random.default_rng([seed, 1])
    centers = np.random.default_rng(99).normal(0, strength, (classes, D))
    labels = rng.integers(0, classes, count)
    tokens = rng.normal(0, 1, (count, 9, D))
    tokens[np.arange(count), rng.integers(0, 9, count)] += centers[labels]
    return LabelledTokens(ArrayTokens(tokens.astype(np.float16)), labels)


def plain(head: Head, tokens: mx.array) -> mx.array:
    """The head with a key and a value for every token, normalised one by one: (B, N, D) -> (B, C).

    In training mode by the batch's own moments, else by the running ones.
    """
    config = head.config
    B, N, D = tokens.shape
    if config.kind == "ep":
        weights = mx.softmax(head.cls_token @ tokens.swapaxes(1, 2) / D**0.5, axis=-1)
        values = head.v(tokens).reshape(B, N, config.queries, D // config.queries)
        tokens = (weights[..., None] * values.swapaxes(1, 2)).sum(axis=2).reshape(B, 1, D)
    elif not config.attends:
        tokens = getattr(tokens, config.kind)(axis=1, keepdims=True)
    if config.batch_norm:
        mean, variance = head.bn.running_mean, head.bn.running_var
        if head.training:
            mean, variance = tokens.mean(axis=(0, 1)), tokens.var(axis=(0, 1))
        tokens = (tokens - mean) / mx.sqrt(variance + 1e-6)
    if not config.normalises_tokens:
        return head.linear(tokens[:, 0])

    def split(x: mx.array) -> mx.array:
        return x.reshape(x.shape[0], -1, config.heads, D // config.heads).transpose(0, 2, 1, 3)

    queries = head.q(head.cls_token) if config.kind == "coca" else head.cls_token
    scores = split(queries) @ split(head.k(tokens)).swapaxes(2, 3) / (D // config.heads) ** 0.5
    pooled = mx.softmax(scores, axis=-1) @ split(head.v(tokens))
    pooled = pooled.transpose(0, 2, 1, 3).reshape(B, -1, D)
    if config.kind == "coca":
        pooled = head.proj(pooled)
    return head.linear(pooled.mean(axis=1))
