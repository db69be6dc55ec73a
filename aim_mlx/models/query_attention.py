"""Attention of learned queries to tokens, without a key or a value for any token.

A learned query q is the same for every image. So
- its score of a token x, q . (W_k x), is (W_k^T q) . x: the key projection is folded into the query
- values are projected once an image, after averaging: sum a (W_v x) is W_v (sum a x)
With H heads that takes about 4 N H D + 2 D^2 operations an image in place of 4 N D^2.

Batch normalisation without gains folds in as well. Dividing a channel of the tokens is dividing
that channel of the query. Subtracting its mean shifts all scores of a query by one number, which
the softmax does not see; and as the weights sum to one, the average can be normalised in place of
the tokens.

Gradients are written out: the automatic ones read scores and weights twice as often.
"""

import functools
import math
from collections.abc import Sequence
from typing import cast

from aim_mlx.backend import BLAS, mx, on_gpu
from aim_mlx.models.layers import power_on_cpu

# OpenBLAS copies what it multiplies, which takes longer than a product with up to this many
# vectors; products of up to so many operations it does without, if they have enough rows.
_FEW_VECTORS, _SMALL_PRODUCT, _FEWEST_ROWS = 8, 10**6, 32


def folded_queries(queries: mx.array, keys: mx.array, heads: int) -> mx.array:
    """Queries (Q, D) and the key projection W_k (D, D) -> (Q * heads, D), to score tokens with."""
    Q, D = queries.shape
    split = queries.reshape(Q, heads, D // heads).swapaxes(0, 1) / math.sqrt(D // heads)
    folded = split @ keys.reshape(heads, D // heads, D)  # (heads, Q, D)
    return folded.swapaxes(0, 1).reshape(Q * heads, D)


def attend_folded(tokens: mx.array, queries: mx.array) -> tuple[mx.array, mx.array]:
    """Tokens (B, N, D), folded queries (K, D) -> weighted means (B, K, D) and weights (B, N, K).

    Scores and softmax run in float32; the weights of a query sum to one over the tokens.
    """
    return cast(tuple[mx.array, mx.array], _attend(tokens, queries))


@mx.custom_function
def _attend(tokens: mx.array, queries: mx.array) -> tuple[mx.array, mx.array]:
    weights = _softmax(_products(tokens, queries[None]).astype(mx.float32))
    return _weighted_sums(tokens, weights.astype(tokens.dtype)), weights


@_attend.vjp
def _attend_gradient(
    inputs: tuple[mx.array, mx.array],
    of_outputs: tuple[mx.array, mx.array],
    outputs: tuple[mx.array, mx.array],
) -> tuple[mx.array, mx.array]:
    """Nothing is computed for tokens whose gradient nobody asks for."""
    tokens, queries = inputs
    of_means, of_weights = of_outputs
    weights = outputs[1]
    of_scores = _score_gradient(tokens, weights, of_means, of_weights)
    of_tokens = weights.astype(tokens.dtype) @ of_means + of_scores @ queries
    return of_tokens, _summed_over_images(tokens, of_scores)


def query_gradient(tokens: mx.array, weights: mx.array, of_means: mx.array) -> mx.array:
    """From the gradient of the means (B, K, D) to that of its queries (K, D).

    `weights` are those of `attend_folded`; for where tokens are not held until the gradient.
    """
    return _summed_over_images(tokens, _score_gradient(tokens, weights, of_means))


def project(means: mx.array, values: mx.array) -> mx.array:
    """Averaged tokens (heads, B, D), one for each head, and W_v (D, D) -> values (B, D)."""
    return cast(mx.array, _project(means, values))


@mx.custom_function
def _project(means: mx.array, values: mx.array) -> mx.array:
    heads, B, D = means.shape
    split = values.reshape(heads, D // heads, D)
    return (means @ split.swapaxes(1, 2)).swapaxes(0, 1).reshape(B, D)


@_project.vjp
def _project_gradient(
    inputs: tuple[mx.array, mx.array], of_output: mx.array, output: mx.array
) -> tuple[mx.array, mx.array]:
    """Both gradients come out as they are to lie in memory."""
    means, values = inputs
    heads, B, D = means.shape
    split = of_output.reshape(B, heads, D // heads).swapaxes(0, 1)
    of_means = split @ values.reshape(heads, D // heads, D)
    return of_means, (split.swapaxes(1, 2) @ means).reshape(D, D)


def _score_gradient(
    tokens: mx.array, weights: mx.array, of_means: mx.array, of_weights: mx.array | None = None
) -> mx.array:
    """The gradient of the scores (B, N, K), through the softmax."""
    total = _products(tokens, of_means).astype(mx.float32)
    total = total if of_weights is None else total + of_weights
    of_scores = weights * (total - (weights * total).sum(axis=1, keepdims=True))
    return of_scores.astype(tokens.dtype)


def _summed_over_images(tokens: mx.array, of_scores: mx.array) -> mx.array:
    """The gradient of the queries (K, D) from that of their scores (B, N, K)."""
    if _rows_at_once(tokens.shape, of_scores.shape[-1]) < tokens.shape[1]:
        return _weighted_sums(tokens, of_scores).sum(axis=0)
    flat = of_scores.reshape(-1, of_scores.shape[-1])
    return flat.T @ tokens.reshape(-1, tokens.shape[-1])


def _softmax(scores: mx.array) -> mx.array:
    """Over axis 1 of (B, N, K)."""
    if on_gpu():
        return mx.softmax(scores, axis=1)
    powers = power_on_cpu(math.e, scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _products(tokens: mx.array, vectors: mx.array) -> mx.array:
    """Tokens (B, N, D) times vectors (B, K, D), or (1, K, D) for all -> (B, N, K)."""
    (B, N, D), K = tokens.shape, vectors.shape[1]
    rows = _rows_at_once(tokens.shape, K)
    if rows < N:
        some = tokens.reshape(B, N // rows, rows, D)
        return (vectors[:, None] @ some.swapaxes(2, 3)).swapaxes(2, 3).reshape(B, N, K)
    if len(vectors) == 1:
        return (tokens.reshape(B * N, D) @ vectors[0].T).reshape(B, N, K)
    return tokens @ vectors.swapaxes(1, 2)


def _weighted_sums(tokens: mx.array, weights: mx.array) -> mx.array:
    """Tokens (B, N, D), weights (B, N, K) -> (B, K, D)."""
    (B, N, D), K = tokens.shape, weights.shape[2]
    rows = _rows_at_once(tokens.shape, K)
    if rows == N:
        return weights.swapaxes(1, 2) @ tokens
    some = weights.reshape(B, N // rows, rows, K).swapaxes(2, 3)
    return (some @ tokens.reshape(B, N // rows, rows, D)).sum(axis=1)


def _rows_at_once(shape: Sequence[int], K: int) -> int:
    """How many of the tokens (B, N, D) are best multiplied at a time with K vectors."""
    _, N, D = shape
    if BLAS.library is None or on_gpu() or K > _FEW_VECTORS:
        return N
    rows = _largest_divisor(N, _SMALL_PRODUCT // (K * D))
    return rows if rows >= _FEWEST_ROWS else N


@functools.cache
def _largest_divisor(number: int, most: int) -> int:
    return max((each for each in range(1, min(number, most) + 1) if number % each == 0), default=1)
