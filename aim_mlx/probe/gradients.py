"""A batch of tokens through many heads at once: the tokens are read once for all of them.

In small chunks, the queries of all heads make one matrix product with the tokens; what that leaves
is a vector for each query, with which the heads go on by themselves, a part of the batch at a time;
with its gradient the chunks are gone through again. A CPU computes chunk by chunk and head by head,
in its caches, and converts tokens to float32 both times: to read a part's back from the memory
costs more. On a GPU a chunk is a whole part, and all that is made of it is one evaluation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from aim_mlx.backend import evaluate_on_cpu, mx, tree_map, tree_unflatten
from aim_mlx.models.pooling import pool
from aim_mlx.models.query_attention import attend_folded, project, query_gradient
from aim_mlx.probe.chunks import BatchPart, ImageMoments, over_chunks, rounds
from aim_mlx.probe.heads import Head, Moments, Normalisation, flat, measure
from aim_mlx.probe.losses import Targets, loss_sum, total_weight
from aim_mlx.tokens.source import TokenSource

_FOLDED = ("cls_token", "k.weight", "q.weight")  # what `Head.queries` is made of

Tree = dict[str, Any]


@dataclass(frozen=True)
class Gradients:
    """Of each head its loss, the gradient of its trainable parameters, and the batch's moments.

    On a GPU they are not computed yet.
    """

    losses: mx.array
    gradients: list[Tree]
    moments: Sequence[Moments | None]


def batch_gradients(
    heads: Sequence[Head],
    tokens: Sequence[np.ndarray],
    targets: Targets,
    moments: Moments | None = None,
) -> Gradients:
    """Images, (N, D) each, and their targets -> the gradient of each head's mean loss.

    Heads of one kind and size. Those with batch normalisation take the batch's moments; if those of
    the tokens are known, they may be given. A head whose numbers are not finite leaves the others
    as they are.
    """
    if not heads[0].config.attends:
        return _pooled_gradients(heads, tokens, targets)
    if not heads[0].config.normalises_tokens:
        return _sliced_gradients(heads, tokens, targets)
    if moments is None and _any_normalises(heads):
        moments = ImageMoments(len(tokens), tokens[0].shape).of(np.arange(len(tokens)), tokens)
    norms, total = [_norm(head, moments) for head in heads], total_weight(targets)

    def differentiate(index: int, read: "_Read") -> tuple[mx.array, Tree]:
        wanted = targets.of(read.part.rows)
        return read.differentiate(index, heads[index], norms[index], wanted, total)

    losses, gradients = _through_queries(heads, norms, tokens, differentiate)
    return Gradients(losses, gradients, [moments] * len(heads))


def _through_queries(
    heads: Sequence[Head],
    norms: Sequence[Normalisation | None],
    tokens: Sequence[np.ndarray],
    differentiate: Callable[[int, "_Read"], tuple[mx.array, Tree]],
) -> tuple[mx.array, list[Tree]]:
    """The losses (heads,), and the gradient of each head.

    `differentiate` gives a head's share, of a part that was read, in the loss and in the gradient
    of what comes after the averaging.
    """
    queries = _queries(heads, norms)
    of_tails: list[dict[int, Any]] = [{} for _ in heads]  # by core
    of_queries: dict[int, mx.array] = {}
    with rounds(tokens, times=2) as work:
        for together in work:
            mx.eval(of_tails, of_queries)  # before the next tokens take memory
            read = _average(together, queries, len(heads))
            for index in range(len(heads)):
                for each in read:
                    _add(of_tails[index], each.part, differentiate(index, each))
                evaluate_on_cpu(of_tails[index], [each.gradients for each in read])
            _go_back(read, of_queries)
        streams = [part.stream for part in work[0]]
        losses, gradients = [], []
        of_heads = mx.split(_total(of_queries), len(heads))
        for index, (head, norm) in enumerate(zip(heads, norms, strict=True)):
            with mx.stream(streams[index % len(streams)]):
                loss, of_tail = _total(of_tails[index])
                of_folded = _unfolded(head, norm, of_heads[index])
            losses.append(loss)
            gradients.append(_nested(flat(of_folded) | flat(of_tail)))
            if (index + 1) % len(streams) == 0:
                evaluate_on_cpu(gradients[-len(streams) :])
        evaluate_on_cpu(losses, gradients)
    return mx.stack(losses), gradients


def logits_of(
    heads: Sequence[Head], source: TokenSource, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """The logits (heads, n, C) float32 of images `rows` of a source, by the running moments."""
    logits = np.empty((len(heads), len(rows), heads[0].config.classes), np.float32)
    for start in range(0, len(rows), batch_size):
        tokens = source.batch(rows[start : start + batch_size])
        here = logits[:, start : start + len(tokens)]
        if heads[0].config.attends:
            norms = [_running_norm(head) for head in heads]
            _over_means(heads, norms, tokens, Head.classify, here)
        else:
            _pooled_logits(heads, tokens, here)
    return logits


@dataclass
class _Read:
    """A part of a batch whose tokens were read.

    `averaged` are for each head the means by its queries (K, B, D), `weights` the attention that
    made them, by where a chunk starts; `gradients` are those of `averaged`.
    """

    part: BatchPart
    weights: dict[int, mx.array] = field(default_factory=dict)
    averaged: list[mx.array] = field(default_factory=list)
    gradients: list[mx.array] = field(default_factory=list)

    def differentiate(
        self, index: int, head: Head, norm: Normalisation | None, targets: Targets, total: float
    ) -> tuple[mx.array, Tree]:
        """A head's share in its loss, and in the gradient of what comes after the averaging."""
        tail = _only(head.trainable_parameters(), folded=False)

        def loss(tail: Tree, averaged: mx.array) -> mx.array:
            head.update(tail)
            return loss_sum(head.classify(averaged, norm), targets) / total

        with mx.stream(self.part.stream):
            differentiate = mx.value_and_grad(loss, argnums=(0, 1))
            value, (of_tail, of_averaged) = differentiate(tail, self.averaged[index])
        head.update(tail)
        self.gradients.append(of_averaged)
        return value, of_tail

    def differentiate_values(self, index: int, head: Head, of_values: mx.array) -> Tree:
        """A head's share in the gradient of its value projection, from that of its values."""
        with mx.stream(self.part.stream):
            means = [self.averaged[index], head.v.weight]
            _, (of_averaged, of_weight) = mx.vjp(project, means, [of_values])
        self.gradients.append(of_averaged)
        return {"v": {"weight": of_weight}}

    def of_queries(self, places: slice, tokens: mx.array) -> mx.array:
        """A chunk's share in the gradient of the queries of all heads, (K, D)."""
        averaged = mx.concatenate([each[:, places] for each in self.gradients])
        return query_gradient(tokens, self.weights[places.start], averaged.swapaxes(0, 1))


def _average(parts: Sequence[BatchPart], queries: mx.array, heads: int) -> list[_Read]:
    """Reads the tokens of parts: the means by all queries."""
    read = {part.core: _Read(part) for part in parts}
    averaged: dict[int, list[mx.array]] = {part.core: [] for part in parts}
    for part, places, (means, weights) in over_chunks(
        parts, lambda _, __, tokens: attend_folded(tokens, queries)
    ):
        averaged[part.core].append(means.swapaxes(0, 1))
        read[part.core].weights[places.start] = weights
    for core, each in read.items():
        with mx.stream(each.part.stream):
            each.averaged = list(mx.split(mx.concatenate(averaged[core], axis=1), heads))
    evaluate_on_cpu([each.averaged for each in read.values()])
    return list(read.values())


def _go_back(read: Sequence[_Read], of_queries: dict[int, mx.array]) -> None:
    """Adds the gradient of the queries by parts to that of their cores."""
    by_core = {each.part.core: each for each in read}
    for each in read:
        each.averaged.clear()

    def more(part: BatchPart, places: slice, tokens: mx.array) -> mx.array:
        _add(of_queries, part, by_core[part.core].of_queries(places, tokens))
        return of_queries[part.core]

    for _ in over_chunks([each.part for each in read], more):
        pass


def _over_means(
    heads: Sequence[Head],
    norms: Sequence[Normalisation | None],
    tokens: Sequence[np.ndarray],
    compute: Callable[[Head, mx.array, Normalisation | None], mx.array],
    into: np.ndarray,
) -> None:
    """Writes what `compute` makes of each head's means (K, b, D) of images, (heads, B, ...)."""
    queries = _queries(heads, norms)
    with rounds(tokens) as work:
        for together in work:
            for each in _average(together, queries, len(heads)):
                inputs = zip(heads, each.averaged, norms, strict=True)
                computed = [compute(head, averaged, norm) for head, averaged, norm in inputs]
                into[:, each.part.rows] = np.array(mx.stack(computed))


def _sliced_gradients(
    heads: Sequence[Head], tokens: Sequence[np.ndarray], targets: Targets
) -> Gradients:
    """Of heads that normalise their values by the whole batch, which is read once more for it."""
    norms = [None] * len(heads)
    values = np.empty((len(heads), len(tokens), heads[0].config.dim), np.float32)
    _over_means(heads, norms, tokens, lambda head, means, _: head.values(means), values)
    ends = [_end(head, mx.array(each), targets) for head, each in zip(heads, values, strict=True)]

    def differentiate(index: int, read: "_Read") -> tuple[mx.array, Tree]:
        of_values = ends[index].of_values[mx.array(read.part.rows)]
        return mx.zeros(()), read.differentiate_values(index, heads[index], of_values)

    _, gradients = _through_queries(heads, norms, tokens, differentiate)
    gradients = [
        _nested(flat(tree) | flat({"linear": end.of_linear}))
        for tree, end in zip(gradients, ends, strict=True)
    ]
    losses = mx.stack([end.loss for end in ends])
    return Gradients(losses, gradients, [end.moments for end in ends])


@dataclass(frozen=True)
class _End:
    """A head's loss from its values, the gradients of that, and the moments of the values."""

    loss: mx.array
    of_linear: Tree
    of_values: mx.array
    moments: Moments | None


def _end(head: Head, values: mx.array, targets: Targets) -> _End:
    """Of values (B, D) of a whole batch; the gradient goes through their moments, too."""
    total, before = total_weight(targets), head.linear.trainable_parameters()

    def loss(linear: Tree, values: mx.array) -> mx.array:
        head.linear.update(linear)
        norm = measure(values).normalisation if head.config.batch_norm else None
        return loss_sum(head.end(values, norm), targets) / total

    value, (of_linear, of_values) = mx.value_and_grad(loss, argnums=(0, 1))(before, values)
    head.linear.update(before)
    moments = measure(values) if head.config.batch_norm else None
    evaluate_on_cpu(value, of_linear, of_values)
    return _End(value, of_linear, of_values, moments)


def _pooled_gradients(
    heads: Sequence[Head], tokens: Sequence[np.ndarray], targets: Targets
) -> Gradients:
    """Of heads that see the tokens of an image pooled."""
    pooled = _pooled(tokens, heads[0].config.kind)
    moments = measure(pooled) if _any_normalises(heads) else None
    total = total_weight(targets)
    losses, gradients = [], []
    for head in heads:
        before = head.trainable_parameters()

        def loss(parameters: Tree, head: Head = head) -> mx.array:
            head.update(parameters)
            return loss_sum(head.classify(pooled, _norm(head, moments)), targets) / total

        value, gradient = mx.value_and_grad(loss)(before)
        head.update(before)
        losses.append(value)
        gradients.append(gradient)
    evaluate_on_cpu(losses, gradients)
    return Gradients(mx.stack(losses), gradients, [moments] * len(heads))


def _pooled_logits(heads: Sequence[Head], tokens: Sequence[np.ndarray], logits: np.ndarray) -> None:
    """Writes the logits (heads, B, C) of images, (N, D) each."""
    pooled = _pooled(tokens, heads[0].config.kind)
    computed = [head.classify(pooled, _running_norm(head)) for head in heads]
    logits[:] = np.array(mx.stack(computed))


def _pooled(tokens: Sequence[np.ndarray], kind: str) -> mx.array:
    """Images, (N, D) each -> (B, D)."""
    pooled = np.empty((len(tokens), tokens[0].shape[1]), np.float32)
    with rounds(tokens) as work:
        for together in work:
            for part, places, rows in over_chunks(together, lambda _, __, each: pool(each, kind)):
                pooled[part.rows[places]] = np.array(rows)
    return mx.array(pooled)


def _any_normalises(heads: Sequence[Head]) -> bool:
    return any(head.config.batch_norm for head in heads)


def _norm(head: Head, moments: Moments | None) -> Normalisation | None:
    return moments.normalisation if moments is not None and head.config.batch_norm else None


def _running_norm(head: Head) -> Normalisation | None:
    return head.bn.normalisation if head.config.batch_norm else None


def _queries(heads: Sequence[Head], norms: Sequence[Normalisation | None]) -> mx.array:
    """Those of all heads, (K, D)."""
    return mx.concatenate([head.queries(norm) for head, norm in zip(heads, norms, strict=True)])


def _add(sums: dict[int, Any], part: BatchPart, more: Any) -> None:
    """Adds a tree to the sum of its core, leaf by leaf."""
    with mx.stream(part.stream):
        sums[part.core] = _added(sums[part.core], more) if part.core in sums else more


def _total(sums: dict[int, Any]) -> Any:
    """The sum over the cores, in their order."""
    total, *others = (sums[core] for core in sorted(sums))
    for each in others:
        total = _added(total, each)
    return total


def _added(one: Any, other: Any) -> Any:
    """The sum of two trees."""
    return tree_map(lambda a, b: a + b, one, other)


def _only(tree: Tree, folded: bool) -> Tree:
    """The part of a head's parameters that its queries are made of, or the rest."""
    return _nested({n: v for n, v in flat(tree).items() if (n in _FOLDED) == folded})


def _unfolded(head: Head, norm: Normalisation | None, of_folded: mx.array) -> Tree:
    """The gradient of what the queries are made of, from that of the folded queries."""
    before = _only(head.trainable_parameters(), folded=True)

    def along(tree: Tree) -> mx.array:
        head.update(tree)
        return (head.queries(norm) * of_folded).sum()

    gradient = mx.grad(along)(before)
    head.update(before)
    return gradient


def _nested(named: dict[str, mx.array]) -> Tree:
    """The inverse of `flat`."""
    return cast(Tree, tree_unflatten(list(named.items())))
