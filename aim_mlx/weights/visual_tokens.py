"""Ovis2's head and visual embedding table, beside a checkpoint's tower: their sizes, checked."""

import math
from collections.abc import Mapping
from typing import Any

from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models.visual_tokens import VisualTokensConfig
from aim_mlx.weights.rules import Layout
from aim_mlx.weights.safetensors_file import TensorInfo
from aim_mlx.weights.sizes import check_shapes
from aim_mlx.weights.strict_json import show
from aim_mlx.weights.towers import Tower

_INDICATORS = 5  # in every Ovis2
_HARD = {"softmax": False, "st_argmax": True}
# Our names -> those that Ovis2's and transformers' configs have.
_STATED = {
    "stride": "hidden_stride",
    "vocabulary": "vocab_size",
    "indicators": "num_visual_indicator_tokens",
}


def visual_layout(tower: Tower | None) -> Layout:
    """Where a tower's model keeps its head and table; raises UsageError for models without."""
    layout = None if tower is None else tower.visual_tokens
    if layout is None:
        what = "an encoder by itself" if tower is None else tower.series
        raise UsageError(f"only Ovis2 has visual tokens, this is {what}: leave out visual_tokens")
    return layout


def visual_config(
    layout: Layout, tensors: Mapping[str, TensorInfo], embed_dim: int, stated: Mapping[str, Any]
) -> VisualTokensConfig:
    """The sizes that the head and the table have; `stated` is what config.json says of them.

    Raises CheckpointError for a missing or misshapen tensor, and for what contradicts the tensors.
    """
    names = {rule.ours: rule.sources[0] for rule in layout.rules}

    def shown(ours: str) -> str:
        return show(names[ours])

    if missing := [name for name in names.values() if name not in tensors]:
        raise CheckpointError(
            f"missing tensor {show(missing[0])}: Ovis2's visual tokens need it; download the "
            "checkpoint again"
        )
    shapes = {ours: tensors[name].shape for ours, name in names.items()}
    for ours in ("head.linear.weight", "table.weight"):
        if len(shapes[ours]) != 2 or 0 in shapes[ours]:
            raise CheckpointError(
                f"wrong shape of tensor {shown(ours)}: expected two dimensions, "
                f"got {list(shapes[ours])}"
            )
    (words, merged), (rows, width) = shapes["head.linear.weight"], shapes["table.weight"]
    stride = math.isqrt(merged // embed_dim)
    expected = {
        "head.linear.weight": (words, stride**2 * embed_dim),
        "head.norm.weight": (words,),
        "head.norm.bias": (words,),
        "table.weight": (words + _INDICATORS, width),
    }
    check_shapes(shapes, expected, shown)
    sizes = {"stride": stride, "vocabulary": rows, "indicators": _INDICATORS}
    for name, theirs in _STATED.items():
        if stated.get(theirs) not in (None, sizes[name]):
            raise CheckpointError(
                f"config.json states {theirs} {show(stated[theirs])}, the weights have "
                f"{sizes[name]}: use the config.json they were published with"
            )
    function = stated.get("tokenize_function", "softmax")
    if not isinstance(function, str) or function not in _HARD:
        raise CheckpointError(
            f"tokenize_function must be one of {', '.join(_HARD)}, got {show(function)}"
        )
    final_norm = layout.name != "ovis2"
    return VisualTokensConfig(
        embed_dim, stride, words, _INDICATORS, width, _HARD[function], final_norm
    )
