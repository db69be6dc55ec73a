"""The operations of the layout table: other layouts' tensors to ours and back, bit for bit."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.layouts import AXIS, CONV, JOIN, KEEP, Layout, fill, others, split, unexpected
from aim_mlx.weights.strict_json import show


@dataclass(frozen=True)
class Step:
    """One tensor of ours and where it comes from: tensors `sources` put together by `operation`."""

    ours: str
    sources: tuple[str, ...]
    operation: str


def plan(layout: Layout, keys: Iterable[str]) -> list[Step]:
    """The steps that use every source key exactly once, in the keys' order.

    Raises CheckpointError naming the keys that no rule knows, or that a joined tensor lacks.
    """
    keys = list(keys)
    present = set(keys)
    unknown = [key for key in keys if layout.rule_for(key) is None]
    if unknown:
        raise unexpected(layout, unknown)
    steps: dict[str, Step] = {}
    for key in keys:
        rule = layout.rule_for(key)
        if rule is None:
            continue
        index = split(key)[1]
        ours = fill(rule.ours, index)
        if ours in steps:
            continue
        sources = tuple(fill(name, index) for name in rule.theirs)
        if missing := [name for name in sources if name not in present]:
            raise CheckpointError(
                f"missing tensor {show(missing[0])}{others(missing)}: expected beside {show(key)} "
                f"in the {layout.name} layout; download the checkpoint again"
            )
        steps[ours] = Step(ours, sources, rule.operation)
    return list(steps.values())


def shape_in_ours(step: Step, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of our tensor from those of its sources; CheckpointError if they do not fit."""
    shape = shapes[0]
    if step.operation == CONV and len(shape) == 4:
        return shape[0], shape[2], shape[3], shape[1]
    if step.operation == AXIS and len(shape) == 2:
        return (1, *shape)
    if step.operation == JOIN and len(shape) == 2 and all(other == shape for other in shapes):
        return len(shapes) * shape[0], shape[1]
    if step.operation == KEEP:
        return shape
    expected = {CONV: "four dimensions", AXIS: "two dimensions", JOIN: "two equal dimensions each"}
    raise CheckpointError(
        f"wrong shape of tensor {', '.join(map(show, step.sources))}: expected "
        f"{expected[step.operation]}, got {', '.join(str(list(s)) for s in shapes)}"
    )


def to_ours(step: Step, arrays: list[np.ndarray]) -> np.ndarray:
    """Our tensor from its sources' arrays, of any dtype, bit for bit."""
    if step.operation == CONV:
        return np.ascontiguousarray(arrays[0].transpose(0, 2, 3, 1))
    if step.operation == JOIN:
        return np.concatenate(arrays)
    return arrays[0][None] if step.operation == AXIS else arrays[0]


def from_ours(layout: Layout, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`: our tensor as the named tensors of a layout, bit for bit.

    Raises CheckpointError for a name that the layout's table does not have.
    """
    rule = layout.rule_of(name)
    if rule is None:
        raise CheckpointError(f"the {layout.name} layout ({layout.kind}) has no {show(name)}")
    names = layout.source_names(name)
    if rule.operation == CONV:
        parts = [np.ascontiguousarray(array.transpose(0, 3, 1, 2))]
    elif rule.operation == JOIN:
        parts = np.split(array, len(names))
    elif rule.operation == AXIS:
        parts = [array[0]]
    else:
        parts = [array]
    return dict(zip(names, parts, strict=True))
