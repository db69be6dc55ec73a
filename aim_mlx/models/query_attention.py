"""Attention of learned queries to tokens, without a key or a value for any token.

A learned query is the same for every image, so its scores q . (W_k x) are those of one vector,
(W_k^T q) . x, and the values are projected once an image, after averaging: W_v (sum a x) is
sum a (W_v x). With H heads that takes about 4 N H D + 2 D^2 operations an image in place of
4 N D^2. Batch normalisation without gains folds in as well: dividing a channel of the tokens is
dividing that channel of the query, subtracting its mean shifts all scores of a query by one number,
which the softmax does not see, and weights that sum to one let the average be normalised instead of
what is averaged.
"""

import functools
import math
from collections.abc import Sequence
from typing import cast

from aim_mlx.backend import BLAS, mx, on_gpu

# Products up to which OpenBLAS copies nothing, and for how many vectors that gains something.
_SMALL_PRODUCT, _FEW_VECTORS, _FEWEST_ROWS = 10**6, 8, 32


def folded_queries(queries: mx.array, keys: mx.array, heads: int) -> mx.array:
    """Queries (Q, D) and the key projection W_k (D, D) -> (Q * heads, D), to score tokens with."""
    Q, D = queries.shape
    split = queries.reshape(Q, heads, D // heads).swapaxes(0, 1) / math.sqrt(D // heads)
    folded = split @ keys.reshape(heads, D // heads, D)  # (heads, Q, D)
    return folded.swapaxes(0, 1).reshape(Q * heads, D)


def attend(tokens: mx.array, queries: mx.array) -> tuple[mx.array, mx.array]:
    """Tokens (B, N, D), folded queries (K, D) -> weighted means (B, K, D) and weights (B, N, K).

    Scores and softmax run in float32; the weights of a query sum to one over the tokens.
    """
    return cast(tuple[mx.array, mx.array], _attend_with_gradient(tokens, queries))


def query_gradient(tokens: mx.array, weights: mx.array, averaged: mx.array) -> mx.array:
    """From the gradient of attend's `averaged` (B, K, D) to that of its queries (K, D).

    `weights` are those that attend gave; for where tokens are not to be held until the gradient.
    """
    return _of_queries(tokens, _of_scores(tokens, weights, averaged))


def project(averaged: mx.array, values: mx.array) -> mx.array:
    """Averaged tokens (heads, B, D), one for each head, and W_v (D, D) -> values (B, D)."""
    return cast(mx.array, _project_with_gradient(averaged, values))


def _project(averaged: mx.array, values: mx.array) -> mx.array:
    heads, B, D = averaged.shape
    split = values.reshape(heads, D // heads, D)
    return (averaged @ split.swapaxes(1, 2)).swapaxes(0, 1).reshape(B, D)


def _projection_gradient(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array]:
    """Written out, so that both gradients come out as they are to lie in memory."""
    averaged, values = primals
    heads, B, D = averaged.shape
    split = cotangent.reshape(B, heads, D // heads).swapaxes(0, 1)
    of_averaged = split @ values.reshape(heads, D // heads, D)
    return of_averaged, (split.swapaxes(1, 2) @ averaged).reshape(D, D)


def _attend(tokens: mx.array, queries: mx.array) -> tuple[mx.array, mx.array]:
    weights = _softmax(_products(tokens, queries[None]).astype(mx.float32))
    return _weighted_sums(tokens, weights.astype(tokens.dtype)), weights


def _gradient(
    primals: tuple[mx.array, mx.array],
    cotangents: tuple[mx.array, mx.array],
    outputs: tuple[mx.array, mx.array],
) -> tuple[mx.array, mx.array]:
    """Written out, as the automatic one takes twice the passes over scores and weights.

    Nothing is computed for tokens whose gradient nobody asks for.
    """
    tokens, queries = primals
    averaged, weights = cotangents[0], outputs[1]
    of_scores = _of_scores(tokens, weights, averaged, cotangents[1])
    of_tokens = weights.astype(tokens.dtype) @ averaged + of_scores @ queries
    return of_tokens, _of_queries(tokens, of_scores)


def _of_scores(
    tokens: mx.array, weights: mx.array, averaged: mx.array, of_weights: mx.array | None = None
) -> mx.array:
    """The gradient of the scores (B, N, K)."""
    total = _products(tokens, averaged).astype(mx.float32)
    total = total if of_weights is None else total + of_weights
    found = weights * (total - (weights * total).sum(axis=1, keepdims=True))
    return found.astype(tokens.dtype)


def _of_queries(tokens: mx.array, of_scores: mx.array) -> mx.array:
    if _rows_at_once(tokens.shape, of_scores.shape[-1]) < tokens.shape[1]:
        return _weighted_sums(tokens, of_scores).sum(axis=0)
    flat = of_scores.reshape(-1, of_scores.shape[-1])
    return flat.T @ tokens.reshape(-1, tokens.shape[-1])


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
    """Into how many tokens a product of K vectors with tokens (B, N, D) is best divided.

    OpenBLAS copies what it multiplies, which for a few vectors takes longer than the product; a
    small product it does without.
    """
    _, N, D = shape
    if BLAS.library is None or on_gpu() or K > _FEW_VECTORS:
        return N
    rows = _largest_divisor(N, _SMALL_PRODUCT // (K * D))
    return rows if rows >= _FEWEST_ROWS else N


@functools.cache
def _largest_divisor(number: int, most: int) -> int:
    return max((each for each in range(1, min(number, most) + 1) if number % each == 0), default=1)


_attend_with_gradient = mx.custom_function(_attend)
_attend_with_gradient.vjp(_gradient)
_project_with_gradient = mx.custom_function(_project)
_project_with_gradient.vjp(_projection_gradient)


def _softmax(scores: mx.array) -> mx.array:
    """Over axis 1 of (B, N, K)."""
    if on_gpu():
        return mx.softmax(scores, axis=1)
    # `power` takes a third of the time of `exp` in MLX's x86 build.
    powers = mx.power(mx.array(math.e), scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
