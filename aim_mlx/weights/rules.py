"""How tensors of a layout become ours, and ours its: rules, each with one of four operations.

Our names and shapes are those of the reference's MLX files. A rule says which tensors of a layout
make one of ours, and by which operation; `{i}` stands for a block's number. The operations are a
closed set, each undone by a view of our tensor:

- keep   as it is
- conv   (out, in, kh, kw) -> (out, kh, kw, in)
- join   q, k, v of equal shapes -> one tensor, along axis 0
- axis   (N, D) -> (1, N, D)
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.strict_json import show

KEEP, CONV, JOIN, AXIS = "keep", "conv", "join", "axis"

_BLOCK = re.compile(r"(.*\b(?:blocks|layers))\.(0|[1-9][0-9]{0,3})\.(.+)", re.ASCII)


@dataclass(frozen=True)
class Rule:
    """One row: the tensors `sources` of a layout become our tensor `ours` by `operation`."""

    ours: str
    sources: tuple[str, ...]
    operation: str = KEEP

    def in_block(self, index: str) -> "Rule":
        """The row with a block's number in place of `{i}`."""
        sources = tuple(name.replace("{i}", index) for name in self.sources)
        return Rule(self.ours.replace("{i}", index), sources, self.operation)


@dataclass(frozen=True)
class Layout:
    """How one kind of model ("vision" or "lit") of a family is laid out by one publisher."""

    name: str
    kind: str
    rules: tuple[Rule, ...]
    family: str = "aimv2"

    def __str__(self) -> str:
        return f"{self.name} ({'' if self.family == 'aimv2' else 'AIMv1, '}{self.kind})"

    def rule_for(self, key: str) -> Rule | None:
        """The one rule that a source key matches, for its block."""
        return _in_block(self._by_source, key)

    def rule_of(self, ours: str) -> Rule | None:
        """The rule that makes our tensor, for its block."""
        return _in_block(self._by_ours, ours)

    def source_names(self, ours: str) -> tuple[str, ...]:
        """The names that our tensor has in this layout, () for a name that is not ours."""
        rule = self.rule_of(ours)
        return () if rule is None else rule.sources

    @cached_property
    def _by_source(self) -> dict[str, Rule]:
        return {name: rule for rule in self.rules for name in rule.sources}

    @cached_property
    def _by_ours(self) -> dict[str, Rule]:
        return {rule.ours: rule for rule in self.rules}


def _in_block(rules: Mapping[str, Rule], key: str) -> Rule | None:
    """The rule of a key's pattern: trunk.blocks.7.norm is trunk.blocks.{i}.norm with 7."""
    if "{" in key:  # a literal "{i}" in a file must not pass for a pattern
        return None
    match = _BLOCK.fullmatch(key)
    rule = rules.get(f"{match[1]}.{{i}}.{match[3]}" if match else key)
    return rule and rule.in_block(match[2] if match else "")


def plan(layout: Layout, keys: Iterable[str]) -> list[Rule]:
    """The rules, each for one block, that use every source key exactly once, in the keys' order.

    Raises CheckpointError naming the keys that no rule knows, or that a joined tensor lacks.
    """
    rules = {key: layout.rule_for(key) for key in keys}
    if unknown := [key for key, rule in rules.items() if rule is None]:
        raise unexpected(layout, unknown)
    steps: dict[str, Rule] = {}
    for key, rule in rules.items():
        if rule is None or rule.ours in steps:
            continue
        if missing := [name for name in rule.sources if name not in rules]:
            raise CheckpointError(
                f"missing tensor {show(missing[0])}{others(missing)}: expected beside {show(key)} "
                f"in the layout {layout}; download the checkpoint again"
            )
        steps[rule.ours] = rule
    return list(steps.values())


def shape_in_ours(step: Rule, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
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


def parts_of(step: Rule, array: np.ndarray) -> list[np.ndarray]:
    """Views of our tensor, one for each of its sources: filled with them, they make it."""
    if step.operation == CONV:
        return [array.transpose(0, 3, 1, 2)]
    if step.operation == JOIN:
        return np.split(array, len(step.sources))
    return [array[0]] if step.operation == AXIS else [array]


def from_ours(layout: Layout, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Our tensor as the named tensors of a layout, bit for bit.

    Raises CheckpointError for a name that the layout's table does not have.
    """
    rule = layout.rule_of(name)
    if rule is None:
        raise CheckpointError(f"the layout {layout} has no {show(name)}")
    parts = [np.asarray(part, order="C") for part in parts_of(rule, array)]
    return dict(zip(rule.sources, parts, strict=True))


def unexpected(layout: Layout, keys: list[str]) -> CheckpointError:
    """The error for keys that no rule of a layout knows."""
    owner = "head" if layout.kind == "head" else "encoder"
    return CheckpointError(
        f"unexpected tensor {show(keys[0])}{others(keys)} in the layout {layout}: expected only "
        f"the {owner}'s tensors"
    )


def others(names: list[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""
