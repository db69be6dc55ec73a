"""A batch of tokens through many heads at once: the tokens are read once for all of them.

In small chunks, the queries of all heads make one matrix product with the tokens; what that leaves
is a vector for each query, with which the heads go on by themselves, some chunks at a time; with
its gradient the chunks are gone through again. Tokens are converted to float32 chunk by chunk, each
time anew: whatever is larger than the processor's cache, or than what the C library hands out
again, costs more than converting twice. As many parts run together as there are cores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import numpy as np

from aim_mlx.backend import BLAS, cpu_streams, mx, on_gpu, tree_map, tree_unflatten
from aim_mlx.models.folded import attend, query_gradient
from aim_mlx.models.pooling import pool
from aim_mlx.probe.heads import Head, flat, normalised_input
from aim_mlx.probe.losses import Targets, loss_sum, total_weight
from aim_mlx.probe.moments import Moments, Normalisation, measure
from aim_mlx.tokens import TokenSource

_FOLDED = ("cls_token", "k.weight", "q.weight")  # what `Head.queries` is made of
_CPU_CHUNK, _GPU_CHUNK = 2 << 20, 256 << 20  # bytes of a chunk's tokens in float32
_PART_BYTES = 256 << 20  # of the vectors of all queries, and their gradient
_MOST_IN_PART = 128  # images: more gain nothing
_NOT_REPEATED_SIGN = ~0x70000000  # three of the bits that widening to 32 filled with the sign

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
        moments = _moments(heads, parts)
        norms = [_norm(head, moments) for head in heads]
        queries = [head.queries(norm) for head, norm in zip(heads, norms, strict=True)]
        every = mx.concatenate(queries)
        tails = [_only(head.trainable_parameters(), folded=False) for head in heads]
        total = total_weight(targets)
        sums: dict[int, Any] = {}
        of_queries: dict[int, mx.array] = {}

        def loss(tails: list[Tree], found: list[mx.array], part: _Part) -> tuple[mx.array, list]:
            losses = []
            for head, tail, each, norm in zip(heads, tails, found, norms, strict=True):
                head.update(tail)
                losses.append(loss_sum(head.classify(each, norm), targets.of(part.rows)) / total)
            return sum(losses[1:], losses[0]), losses

        differentiate = mx.value_and_grad(loss, argnums=(0, 1))
        for together in _rounds(parts, streams):
            _gather(heads, together, every)
            for part in together:
                with mx.stream(part.stream):
                    (_, losses), (of_tails, part.gradients) = differentiate(tails, part.found, part)
                    sums[part.place] = _added(sums.get(part.place), (losses, of_tails))
            mx.eval(sums, [part.gradients for part in together])
            for part in together:
                part.found = []
            for chunks in _by_chunk(together) if heads[0].config.attends else ():
                for part, number in chunks:
                    more = part.query_gradient(number)
                    of_queries[part.place] = _added(of_queries.get(part.place), more)
                mx.eval(of_queries)
        for head, tail in zip(heads, tails, strict=True):
            head.update(tail)
        losses, of_tails = _total(sums)
        gradients = of_tails
        if heads[0].config.attends:
            each = mx.split(_total(of_queries), len(heads))
            gradients = []
            for place, parts_of in enumerate(zip(heads, norms, each, of_tails, strict=True)):
                head, norm, query, tail = parts_of
                with mx.stream(streams[place % len(streams)]):
                    gradients.append(_nested(flat(_unfolded(head, norm, query)) | flat(tail)))
        mx.eval(losses, gradients)
    return Gradients(np.array([float(each) for each in losses], np.float32), gradients, moments)


def logits_of(
    heads: Sequence[Head], source: TokenSource, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """The logits (heads, n, C) float32 of images `rows` of a source, by the running moments."""
    logits = np.empty((len(heads), len(rows), heads[0].config.classes), np.float32)
    norms = [head.bn.normalisation if head.config.batch_norm else None for head in heads]
    queries = [head.queries(norm) for head, norm in zip(heads, norms, strict=True)]
    every = mx.concatenate(queries)
    with cpu_streams(BLAS.threads) as streams:
        for start in range(0, len(rows), batch_size):
            tokens = source.batch(rows[start : start + batch_size])
            for together in _rounds(_parts(heads, tokens, streams), streams):
                _gather(heads, together, every)
                computed = []
                for part in together:
                    with mx.stream(part.stream):
                        each = zip(heads, part.found, norms, strict=True)
                        computed.append([head.classify(found, norm) for head, found, norm in each])
                mx.eval(computed)
                for part, found in zip(together, computed, strict=True):
                    logits[:, start + part.rows] = [np.array(each) for each in found]
    return logits


@dataclass
class _Part:
    """Some images of a batch, with the tokens of its chunks, and the stream they run in.

    `weights` and `found` are what `_gather` leaves: of each chunk the attention, of each head what
    it goes on with; `gradients` are those of `found`.
    """

    rows: np.ndarray
    chunks: list[np.ndarray]
    place: int
    stream: mx.Stream
    weights: list[mx.array] = field(default_factory=list)
    found: list[mx.array] = field(default_factory=list)
    gradients: list[mx.array] = field(default_factory=list)

    def attend(self, number: int, queries: mx.array) -> tuple[mx.array, mx.array]:
        """A chunk's means by the queries (K, B, D), and the weights."""
        with mx.stream(self.stream):
            averaged, weights = attend(_floats(self.chunks[number]), queries)
            return averaged.swapaxes(0, 1), weights

    def query_gradient(self, number: int) -> mx.array:
        """A chunk's share in the gradient of the queries of all heads, (K, D)."""
        start = sum(map(len, self.chunks[:number]))
        here = slice(start, start + len(self.chunks[number]))
        with mx.stream(self.stream):
            averaged = mx.concatenate([each[:, here] for each in self.gradients]).swapaxes(0, 1)
            return query_gradient(_floats(self.chunks[number]), self.weights[number], averaged)


def _parts(heads: Sequence[Head], tokens: np.ndarray, streams: Sequence[mx.Stream]) -> list[_Part]:
    """The batch in parts of nearly one size, as many for each stream; each in chunks."""
    B, N, D = tokens.shape
    config = heads[0].config
    K = len(heads) * config.heads * config.queries if config.attends else 1
    most = max(1, min(_MOST_IN_PART, _PART_BYTES // (8 * K * D)))
    count = min(B, -(-B // (most * len(streams))) * len(streams))
    chunk = max(1, (_GPU_CHUNK if on_gpu() else _CPU_CHUNK) // (4 * N * D))
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(B), count)):
        inside = np.array_split(rows, -(-len(rows) // chunk))
        chunks = [tokens[each[0] : each[-1] + 1] for each in inside]
        place = number % len(streams)
        parts.append(_Part(rows, chunks, place, streams[place]))
    return parts


def _rounds(parts: Sequence[_Part], streams: Sequence[mx.Stream]) -> Iterator[list[_Part]]:
    """As many parts at a time as there are streams."""
    left = iter(parts)
    while together := list(islice(left, len(streams))):
        yield together


def _by_chunk(parts: Sequence[_Part]) -> Iterator[list[tuple[_Part, int]]]:
    """The first chunks of all parts, the second ones, and so on.

    Evaluated so, their tokens take memory that the C library still has from the last ones.
    """
    for number in range(max(len(part.chunks) for part in parts)):
        yield [(part, number) for part in parts if number < len(part.chunks)]


def _gather(heads: Sequence[Head], parts: Sequence[_Part], queries: mx.array) -> None:
    """Reads the tokens of parts: for each head the means by its queries, or the pooled token."""
    config = heads[0].config
    computed: dict[int, list[Any]] = {part.place: [] for part in parts}
    for together in _by_chunk(parts):
        for part, number in together:
            if config.attends:
                computed[part.place].append(part.attend(number, queries))
            else:
                with mx.stream(part.stream):
                    computed[part.place].append(pool(_floats(part.chunks[number]), config.kind))
        mx.eval([computed[part.place][number] for part, number in together])
    for part in parts:
        with mx.stream(part.stream):
            chunks = computed[part.place]
            if config.attends:
                part.weights = [weights for _, weights in chunks]
                every = mx.concatenate([averaged for averaged, _ in chunks], axis=1)
                part.found = list(mx.split(every, len(heads)))
            else:
                part.found = [mx.concatenate(chunks)] * len(heads)


def _floats(chunk: np.ndarray) -> mx.array:
    """Finite float16 tokens as float32."""
    if on_gpu() or chunk.dtype != np.float16:
        return mx.array(chunk).astype(mx.float32)
    # In MLX's x86 build that takes longer than a matrix product with eight queries. Instead: sign,
    # exponent and fraction to where float32 has them, then the exponent's other bias, exactly.
    bits = mx.left_shift(mx.array(chunk.view(np.int16)).astype(mx.int32), 13)
    return mx.bitwise_and(bits, _NOT_REPEATED_SIGN).view(mx.float32) * 2.0**112


def _moments(heads: Sequence[Head], parts: Sequence[_Part]) -> Moments | None:
    """Those of the whole batch, if any head needs them."""
    if not any(head.config.batch_norm for head in heads):
        return None
    found = []
    for part in parts:
        with mx.stream(part.stream):
            inputs = (normalised_input(heads[0].config, _floats(chunk)) for chunk in part.chunks)
            found.append(measure(inputs))
    mx.eval([(each.mean, each.variance) for each in found])
    moments = found[0]
    for each in found[1:]:
        moments = moments.merged(each)
    mx.eval(moments.mean, moments.variance)
    return moments


def _norm(head: Head, moments: Moments | None) -> Normalisation | None:
    return moments.normalisation if moments is not None and head.config.batch_norm else None


def _added(total: Any, more: Any) -> Any:
    """Trees of equal structure, summed leaf by leaf."""
    return more if total is None else tree_map(lambda a, b: a + b, total, more)


def _total(sums: dict[int, Any]) -> Any:
    """The sum over the streams, in their order."""
    total = None
    for place in sorted(sums):
        total = _added(total, sums[place])
    return total


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
