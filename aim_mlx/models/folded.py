"""Attention of learned queries to tokens, without a key or a value for any token.

A learned query is the same for every image, so its scores q . (W_k x) are those of one vector,
(W_k^T q) . x, and the values are projected once an image, after averaging: W_v (sum a x) is
sum a (W_v x). With H heads that takes about 4 N H D + 2 D^2 operations an image in place of
4 N D^2. Batch normalisation without gains folds in as well: dividing a channel of the tokens is
dividing that channel of the query, subtracting its mean shifts all scores of a query by one number,
which the softmax does not see, and weights that sum to one let the average be normalised instead of
what is averaged.
"""

import math
from typing import cast

from aim_mlx.backend import mx, on_gpu


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
    heads, B, D = averaged.shape
    split = values.reshape(heads, D // heads, D)
    # In this order the gradient of W_v comes out as it lies in memory.
    return (split @ averaged.swapaxes(1, 2)).reshape(D, B).T


def _attend(tokens: mx.array, queries: mx.array) -> tuple[mx.array, mx.array]:
    B, N, D = tokens.shape
    scores = (tokens.reshape(B * N, D) @ queries.T).reshape(B, N, -1).astype(mx.float32)
    weights = _softmax(scores)
    return weights.astype(tokens.dtype).swapaxes(1, 2) @ tokens, weights


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
    total = (tokens @ averaged.swapaxes(1, 2)).astype(mx.float32)
    total = total if of_weights is None else total + of_weights
    found = weights * (total - (weights * total).sum(axis=1, keepdims=True))
    return found.astype(tokens.dtype)


def _of_queries(tokens: mx.array, of_scores: mx.array) -> mx.array:
    flat = of_scores.reshape(-1, of_scores.shape[-1])
    return flat.T @ tokens.reshape(-1, tokens.shape[-1])


_attend_with_gradient = mx.custom_function(_attend)
_attend_with_gradient.vjp(_gradient)


def _softmax(scores: mx.array) -> mx.array:
    """Over axis 1 of (B, N, K)."""
    if on_gpu():
        return mx.softmax(scores, axis=1)
    # `power` takes a third of the time of `exp` in MLX's x86 build.
    powers = mx.power(mx.array(math.e), scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
