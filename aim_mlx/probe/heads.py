"""The heads of probes: what is trained on the tokens of a frozen trunk.

Every head works in two steps, so that many can share the first: what it needs of the tokens (the
means weighted by its queries, or the pooled token), which is where all the tokens are read, and
what it makes of that. Parameters have the names of the reference's `head.*`.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np

from aim_mlx.backend import check_not_forked, mx, nn, tree_flatten
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models.pooling import pool
from aim_mlx.models.query_attention import attend_folded, folded_queries, project
from aim_mlx.probe.config import KINDS
from aim_mlx.weights.initial import initial_tensor

EPSILON = 1e-6
MOMENTUM = 0.1  # the share of a new batch in the running moments, PyTorch's default
_LARGEST = {"dim": 65_536, "classes": 1_000_000, "heads": 1_024, "queries": 1_024}


@dataclass(frozen=True)
class HeadConfig:
    """What a head is made of.

    `kind` is "attentive" (learned queries used as they are, k, v, linear), "coca" (the fuller
    pooling: queries and pooled vectors are projected too), "ep" (efficient probing, arXiv
    2506.10178: v, linear; each query averages its own slice of the values), or "mean" or "max"
    (linear on the pooled tokens). `heads` matter to the first two alone, whose results are averaged
    over the `queries`. `batch_norm` normalises the tokens, or with the others what the last layer
    takes, by the batch in training and by running moments afterwards. `bias` is that of the last
    layer. Raises UsageError.
    """

    dim: int
    classes: int
    heads: int = 1
    queries: int = 1
    kind: str = "attentive"
    batch_norm: bool = False
    bias: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UsageError(f"a head must be one of {', '.join(KINDS)}, got {self.kind!r:.80}")
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise UsageError(
                    f"{name} must be a whole number from 1 to {largest}, got {value!r:.80}"
                )
        slices = "queries" if self.kind == "ep" else "heads"
        if self.attends and self.dim % getattr(self, slices):
            number = getattr(self, slices)
            raise UsageError(f"dim {self.dim} is not a multiple of {slices} {number}")
        if type(self.batch_norm) is not bool or type(self.bias) is not bool:
            raise UsageError("batch_norm and bias must be true or false")

    @property
    def attends(self) -> bool:
        return self.kind in ("attentive", "coca", "ep")

    @property
    def normalises_tokens(self) -> bool:
        """Whether batch normalisation, if there is any, is of the tokens."""
        return self.kind in ("attentive", "coca")

    @property
    def means(self) -> int:
        """K: how many weighted means of the tokens it takes."""
        if not self.attends:
            return 0
        return self.queries if self.kind == "ep" else self.queries * self.heads

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HeadConfig":
        """From parsed JSON; raises CheckpointError for unknown, missing or bad fields."""
        known = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            raise CheckpointError(f"expected a head with the fields {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except UsageError as error:
            raise CheckpointError(str(error)) from error


@dataclass(frozen=True)
class Normalisation:
    """Subtract `mean` (D,), multiply by `inverse` (D,)."""

    mean: mx.array
    inverse: mx.array

    @classmethod
    def by(cls, mean: mx.array, variance: mx.array) -> "Normalisation":
        return cls(mean, mx.rsqrt(variance + EPSILON))

    def __call__(self, values: mx.array) -> mx.array:
        return (values - self.mean) * self.inverse


@dataclass(frozen=True)
class Moments:
    """Of `count` vectors: `mean` (D,) and biased `variance` (D,)."""

    count: int
    mean: mx.array
    variance: mx.array

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation.by(self.mean, self.variance)


def measure(vectors: mx.array) -> Moments:
    """The moments of vectors (..., D)."""
    vectors = vectors.reshape(-1, vectors.shape[-1])
    mean = vectors.mean(axis=0)
    apart = vectors - mean
    return Moments(len(vectors), mean, (apart * apart).mean(axis=0))


class BatchNorm(nn.Module):
    """The running moments of a batch normalisation without gains: no parameters to train."""

    def __init__(self, dim: int):
        super().__init__()
        self.running_mean = mx.zeros((dim,))
        self.running_var = mx.ones((dim,))
        self.freeze()

    def follow(self, moments: Moments) -> None:
        """Moves towards a batch's moments, the variance unbiased, as PyTorch does."""
        count = moments.count
        unbiased = moments.variance * (count / max(1, count - 1))
        self.running_mean = (1 - MOMENTUM) * self.running_mean + MOMENTUM * moments.mean
        self.running_var = (1 - MOMENTUM) * self.running_var + MOMENTUM * unbiased

    @property
    def normalisation(self) -> Normalisation:
        """By the running moments."""
        return Normalisation.by(self.running_mean, self.running_var)


class Head(nn.Module):
    """A head of any kind: tokens (B, N, D) -> logits (B, C).

    In training mode the batch's own moments normalise, and the running ones follow them.
    """

    def __init__(self, config: HeadConfig):
        super().__init__()
        self._config = config
        D = config.dim
        if config.attends:
            self.cls_token = mx.zeros((1, config.queries, D))
            if config.kind != "ep":
                self.k = nn.Linear(D, D, bias=False)
            self.v = nn.Linear(D, D, bias=False)
        if config.kind == "coca":
            self.q = nn.Linear(D, D, bias=False)
            self.proj = nn.Linear(D, D)
        self.linear = nn.Linear(D, config.classes, bias=config.bias)
        if config.batch_norm:
            self.bn = BatchNorm(D)

    @property
    def config(self) -> HeadConfig:
        return self._config

    def __call__(self, tokens: mx.array) -> mx.array:
        check_not_forked()
        tokens = tokens.astype(mx.float32)
        if not self._config.attends:
            pooled = pool(tokens, self._config.kind)
            return self.classify(pooled, self._norm(pooled))
        norm = self._norm(tokens) if self._config.normalises_tokens else None
        means = attend_folded(tokens, self.queries(norm))[0].swapaxes(0, 1)
        if self._config.normalises_tokens:
            return self.classify(means, norm)
        values = self.values(means)
        return self.end(values, self._norm(values))

    def _norm(self, vectors: mx.array) -> Normalisation | None:
        """Of what is normalised; in training by its moments, which the running ones follow."""
        if not self._config.batch_norm:
            return None
        if not self.training:
            return self.bn.normalisation
        moments = measure(vectors)
        self.bn.follow(moments)
        return moments.normalisation

    def queries(self, norm: Normalisation | None = None) -> mx.array:
        """(K, D) to weigh raw tokens with, the normalisation of tokens folded in."""
        if not self._config.attends:
            return mx.zeros((0, self._config.dim))
        queries = self.cls_token[0]
        if self._config.kind == "ep":
            return queries / math.sqrt(self._config.dim)
        if self._config.kind == "coca":
            queries = self.q(queries)
        folded = folded_queries(queries, self.k.weight, self._config.heads)
        return folded if norm is None else folded * norm.inverse

    def classify(self, pooled: mx.array, norm: Normalisation | None = None) -> mx.array:
        """The tokens' means by the queries (K, B, D), or pooled tokens (B, D) -> logits (B, C)."""
        config = self._config
        if not config.attends:
            return self.end(pooled, norm)
        if config.kind == "ep":
            return self.end(self.values(pooled), norm)
        if config.queries > 1:
            pooled = pooled.reshape(config.queries, config.heads, -1, config.dim).mean(axis=0)
        if norm is not None:
            pooled = norm(pooled)
        pooled = project(pooled, self.v.weight)
        return self.linear(self.proj(pooled) if config.kind == "coca" else pooled)

    def values(self, means: mx.array) -> mx.array:
        """Of "ep": the tokens' means (queries, B, D), each to its slice of the values -> (B, D)."""
        return project(means, self.v.weight)

    def end(self, vectors: mx.array, norm: Normalisation | None) -> mx.array:
        """Vectors (B, D) that are normalised themselves -> logits (B, C)."""
        return self.linear(vectors if norm is None else norm(vectors))

    def attention(self, tokens: mx.array) -> mx.array:
        """Tokens (B, N, D) -> weights (B, K, N) that sum to one over the tokens.

        Raises UsageError for a head that does not attend.
        """
        if not self._config.attends:
            raise UsageError(f"a head of kind {self._config.kind!r} has no attention to show")
        folded = self._config.batch_norm and self._config.normalises_tokens
        queries = self.queries(self.bn.normalisation if folded else None)
        return attend_folded(tokens.astype(mx.float32), queries)[1].swapaxes(1, 2)


def new_head(config: HeadConfig, seed: int) -> Head:
    """A head as training starts with it: Xavier-uniform products, queries N(0, 0.02), no bias.

    The same for the same seed on every machine. Source: apple/ml-l3m, `classifier.py`.
    """
    head = Head(config)
    start = {
        name: mx.array(initial_tensor(name, value.shape, np.random.default_rng([seed, index])))
        for index, (name, value) in enumerate(sorted(flat(head.trainable_parameters()).items()))
    }
    head.load_weights(list(start.items()), strict=False)
    mx.eval(head.parameters(), mx.random.state)  # making the layers drew numbers: not to pile up
    return head


def flat(tree: Any) -> dict[str, mx.array]:
    """The arrays of nested parameters by their dotted names."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))
