"""A batch of tokens through many heads at once: the tokens are read and converted once for all.

The batch goes in parts through as many streams as there are cores. Within a part, the queries of
all heads make one matrix product with the tokens; what is left is a vector for each query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np

from aim_mlx.backend import BLAS, cpu_streams, mx, tree_map, tree_unflatten
from aim_mlx.probe.heads import Head, flat, gather, normalised_input
from aim_mlx.probe.losses import Targets, loss_sum, total_weight
from aim_mlx.probe.moments import Moments, Normalisation, measure
from aim_mlx.tokens import TokenSource

_FOLDED = ("cls_token", "k.weight", "q.weight")  # what `Head.queries` is made of
_PART_BYTES = 256 << 20  # of what a part holds in memory at once

Tree = dict[str, Any]


@dataclass(frozen=True)
class Gradients:
    """Of each head its loss and the gradient of its trainable parameters; the batch's moments."""

    losses: np.ndarray
    gradients: list[Tree]
    moments: Moments | None


def batch_gradients(heads: Sequence[Head], tokens: np.ndarray, targets: Targets) -> Gradients:
    """Tokens (B, N, D) and their targets -> the gradient of each head's mean loss.

    Heads of one kind and size. Those with batch normalisation take the batch's moments. A head
    whose numbers are not finite leaves the others as they are.
    """
    with cpu_streams(BLAS.threads) as streams:
        parts = _parts(heads, tokens, streams)
        moments = _moments(heads, parts, streams)
        norms = [_norm(head, moments) for head in heads]
        folded = [head.queries(norm) for head, norm in zip(heads, norms, strict=True)]
        before = [head.trainable_parameters() for head in heads]
        tails = [_only(tree, folded=False) for tree in before]
        total = total_weight(targets)

        def loss(folded: list[mx.array], tails: list[Tree], part: _Part) -> tuple[mx.array, list]:
            losses = []
            found = gather(heads[0].config, part.floats(), folded)
            for head, tail, each, norm in zip(heads, tails, found, norms, strict=True):
                head.update(tail)
                losses.append(loss_sum(head.classify(each, norm), targets.of(part.rows)) / total)
            return sum(losses[1:], losses[0]), losses

        differentiate = mx.value_and_grad(loss, argnums=(0, 1))
        losses, (of_folded, of_tails) = _accumulated(differentiate, folded, tails, parts, streams)
        for head, tree in zip(heads, before, strict=True):
            head.update(tree)
        gradients = [
            _nested(flat(_unfolded(head, norm, query)) | flat(tail))
            for head, norm, query, tail in zip(heads, norms, of_folded, of_tails, strict=True)
        ]
        mx.eval(losses, gradients)
    return Gradients(np.array([float(each) for each in losses], np.float32), gradients, moments)


def logits_of(
    heads: Sequence[Head], source: TokenSource, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """The logits (heads, n, C) float32 of images `rows` of a source, by the running moments."""
    found = np.empty((len(heads), len(rows), heads[0].config.classes), np.float32)
    norms = [head.bn.normalisation if head.config.batch_norm else None for head in heads]
    with cpu_streams(BLAS.threads) as streams:
        folded = [head.queries(norm) for head, norm in zip(heads, norms, strict=True)]
        for start in range(0, len(rows), batch_size):
            tokens = source.batch(rows[start : start + batch_size])
            for together in _rounds(_parts(heads, tokens, streams), len(streams)):
                computed = []
                for part, stream in zip(together, streams, strict=False):
                    with mx.stream(stream):
                        each = gather(heads[0].config, part.floats(), folded)
                        computed.append(
                            [h.classify(e, n) for h, e, n in zip(heads, each, norms, strict=True)]
                        )
                mx.eval(computed)
                for part, logits in zip(together, computed, strict=True):
                    found[:, start + part.rows] = [np.array(each) for each in logits]
    return found


@dataclass
class _Part:
    """Some images of a batch: `rows` in it, tokens float16, or already converted."""

    rows: np.ndarray
    tokens: np.ndarray
    converted: mx.array | None = None

    def floats(self) -> mx.array:
        if self.converted is not None:
            return self.converted
        return mx.array(self.tokens).astype(mx.float32)


def _parts(heads: Sequence[Head], tokens: np.ndarray, streams: Sequence[mx.Stream]) -> list[_Part]:
    """The batch in parts of nearly one size, of about _PART_BYTES, as many for each stream."""
    B, N, D = tokens.shape
    config = heads[0].config
    K = len(heads) * config.heads * config.queries if config.attends else 1
    most = max(1, _PART_BYTES // (4 * (N * D + 2 * K * D + 3 * N * K)))
    count = min(B, -(-B // (most * len(streams))) * len(streams))
    split = np.array_split(np.arange(B), count)
    return [_Part(rows, tokens[rows[0] : rows[-1] + 1]) for rows in split]


def _rounds(parts: Sequence[_Part], streams: int) -> Iterator[list[_Part]]:
    left = iter(parts)
    while together := list(islice(left, streams)):
        yield together


def _moments(
    heads: Sequence[Head], parts: Sequence[_Part], streams: Sequence[mx.Stream]
) -> Moments | None:
    """Those of the whole batch, if any head needs them; the parts then stay converted."""
    if not any(head.config.batch_norm for head in heads):
        return None
    found = []
    for number, part in enumerate(parts):
        with mx.stream(streams[number % len(streams)]):
            part.converted = part.floats()
            found.append(measure([normalised_input(heads[0].config, part.converted)]))
    mx.eval([part.converted for part in parts], [(each.mean, each.variance) for each in found])
    moments = found[0]
    for each in found[1:]:
        moments = moments.merged(each)
    mx.eval(moments.mean, moments.variance)
    return moments


def _norm(head: Head, moments: Moments | None) -> Normalisation | None:
    return moments.normalisation if moments is not None and head.config.batch_norm else None


def _accumulated(differentiate, folded, tails, parts, streams) -> tuple[list, Any]:
    """Losses and gradients, summed over the parts; each stream has sums of its own until then."""
    sums: list[Any] = [None] * len(streams)
    for together in _rounds(parts, len(streams)):
        for number, part in enumerate(together):
            with mx.stream(streams[number]):
                (_, losses), gradients = differentiate(folded, tails, part)
                sums[number] = _added(sums[number], (losses, gradients))
        mx.eval(sums)
    total = None
    for each in sums:
        total = total if each is None else _added(total, each)
    if total is None:
        raise ValueError("no parts to learn from")
    return total


def _added(total: Any, more: Any) -> Any:
    """Trees of equal structure, summed leaf by leaf."""
    if total is None:
        return more
    return tree_map(lambda a, b: a + b, total, more)


def _only(tree: Tree, folded: bool) -> Tree:
    """The part of a head's parameters that its queries are made of, or the rest."""
    return _nested({n: v for n, v in flat(tree).items() if (n in _FOLDED) == folded})


def _unfolded(head: Head, norm: Normalisation | None, of_folded: mx.array) -> Tree:
    """The gradient of what the queries are made of, from that of the folded queries."""
    before = _only(head.trainable_parameters(), folded=True)
    if not before:
        return {}

    def along(tree: Tree) -> mx.array:
        head.update(tree)
        return (head.queries(norm) * of_folded).sum()

    gradient = mx.grad(along)(before)
    head.update(before)
    return gradient


def _nested(named: dict[str, mx.array]) -> Tree:
    """The inverse of `flat`."""
    return cast(Tree, tree_unflatten(list(named.items()))) if named else {}
