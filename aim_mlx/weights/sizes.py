"""What the tensors of a checkpoint say about its sizes, and what a size expects of the tensors.

Names and shapes are ours (see layouts.py). Letters: D width, F hidden width of the feed-forward, p
patch side, N patches.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aim_mlx.config import HEAD_DIM, VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.layouts import others
from aim_mlx.weights.strict_json import show

Shapes = Mapping[str, tuple[int, ...]]
_IMAGE, _TEXT = "image_encoder.", "text_encoder."


@dataclass(frozen=True)
class LitSizes:
    """Sizes of a LiT model that its tensors state; the text tower's heads come from elsewhere."""

    vision: VisionConfig
    text_dim: int
    text_hidden_dim: int
    text_blocks: int
    vocab_size: int
    context_length: int
    projection_dim: int


def expected_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a vision encoder of these sizes, with its exact shape."""
    dim, patch = config.embed_dim, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "preprocessor.patchifier.proj.weight": (dim, patch, patch, 3),
        "preprocessor.patchifier.proj.bias": (dim,),
        "preprocessor.patchifier.norm.weight": (dim,),
    }
    if config.grid is not None:
        shapes["preprocessor.pos_embed"] = (1, config.grid**2, dim)
    return shapes | _trunk_shapes("", dim, config.mlp_hidden_dim, config.num_blocks)


def expected_lit_shapes(sizes: LitSizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of a LiT model of these sizes, with its exact shape."""
    dim, text, projected = sizes.vision.embed_dim, sizes.text_dim, sizes.projection_dim
    tower = {_IMAGE + name: shape for name, shape in expected_shapes(sizes.vision).items()}
    return (
        tower
        | {
            "image_encoder.head.cls_token": (1, 1, dim),
            "image_encoder.head.k.weight": (dim, dim),
            "image_encoder.head.v.weight": (dim, dim),
            "image_encoder.head.linear.weight": (dim, dim),
            "image_encoder.head.linear.bias": (dim,),
            "image_projector.weight": (projected, dim),
            "text_encoder.preprocessor.text_embedding.weight": (sizes.vocab_size, text),
            "text_encoder.preprocessor.positional_embedding": (sizes.context_length, text),
            "text_projector.weight": (projected, text),
            "log_logit_scale": (),
        }
        | _trunk_shapes(_TEXT, text, sizes.text_hidden_dim, sizes.text_blocks)
    )


def vision_config_from_tensors(
    shapes: Shapes,
    num_heads: int | None = None,
    rms_norm_eps: float | None = None,
    names: Callable[[str], str] = show,
    prefix: str = "",
) -> VisionConfig:
    """The sizes that tensors in our names state; `num_heads` None means HEAD_DIM channels a head.

    No position tensor means native resolution. `names` says how messages call one of our tensors.
    Raises CheckpointError when a tensor that states a size is missing or of an impossible shape.
    """
    conv = _shape(shapes, f"{prefix}preprocessor.patchifier.proj.weight", 4, names)
    dim, patch = conv[0], conv[1]
    hidden = _shape(shapes, f"{prefix}trunk.blocks.0.mlp.fc1.weight", 2, names)[0]
    positions = f"{prefix}preprocessor.pos_embed"
    image_size = None
    if positions in shapes:
        count = _shape(shapes, positions, 3, names)[1]
        side = math.isqrt(count)
        if side < 1 or side * side != count:
            raise CheckpointError(
                f"tensor {names(positions)} has {count} positions, expected a square number"
            )
        image_size = side * patch
    optional: dict[str, Any] = {} if rms_norm_eps is None else {"rms_norm_eps": rms_norm_eps}
    return VisionConfig(
        embed_dim=dim,
        mlp_hidden_dim=hidden,
        num_blocks=count_blocks(shapes, prefix),
        num_heads=count_heads(dim) if num_heads is None else num_heads,
        patch_size=patch,
        image_size=image_size,
        **optional,
    )


def lit_sizes_from_tensors(
    shapes: Shapes,
    num_heads: int | None = None,
    rms_norm_eps: float | None = None,
    names: Callable[[str], str] = show,
) -> LitSizes:
    """The sizes of a LiT model that tensors in our names state; raises CheckpointError."""
    tokens = _shape(shapes, f"{_TEXT}preprocessor.text_embedding.weight", 2, names)
    return LitSizes(
        vision=vision_config_from_tensors(shapes, num_heads, rms_norm_eps, names, _IMAGE),
        text_dim=tokens[1],
        text_hidden_dim=_shape(shapes, f"{_TEXT}trunk.blocks.0.mlp.fc1.weight", 2, names)[0],
        text_blocks=count_blocks(shapes, _TEXT),
        vocab_size=tokens[0],
        context_length=_shape(shapes, f"{_TEXT}preprocessor.positional_embedding", 2, names)[0],
        projection_dim=_shape(shapes, "image_projector.weight", 2, names)[0],
    )


def check_shapes(shapes: Shapes, expected: Shapes, names: Callable[[str], str] = show) -> None:
    """Raises CheckpointError unless every expected tensor is there, no other, each of its shape."""
    if missing := [name for name in expected if name not in shapes]:
        raise CheckpointError(
            f"missing tensor {names(missing[0])}{others(missing)}: expected shape "
            f"{list(expected[missing[0]])}; download the checkpoint again"
        )
    if extra := [name for name in shapes if name not in expected]:
        raise CheckpointError(
            f"unexpected tensor {names(extra[0])}{others(extra)} of shape "
            f"{list(shapes[extra[0]])}: a model of these sizes has none of this name"
        )
    if wrong := [name for name, shape in expected.items() if shapes[name] != shape]:
        raise CheckpointError(
            f"wrong shape of tensor {names(wrong[0])}{others(wrong)}: expected "
            f"{list(expected[wrong[0]])}, got {list(shapes[wrong[0]])}"
        )


def count_heads(dim: int) -> int:
    """Heads of HEAD_DIM channels, which all published models have; raises CheckpointError."""
    if dim < HEAD_DIM or dim % HEAD_DIM:
        raise CheckpointError(
            f"width {dim} is not a multiple of {HEAD_DIM} channels a head, and no config.json "
            "states the heads: give the sizes with config="
        )
    return dim // HEAD_DIM


def count_blocks(shapes: Shapes, prefix: str = "") -> int:
    """One more than the largest block number; a gap shows later as a missing tensor."""
    start = f"{prefix}trunk.blocks."
    numbers = [int(n[len(start) :].split(".")[0]) for n in shapes if n.startswith(start)]
    return max(numbers, default=-1) + 1


def _trunk_shapes(prefix: str, dim: int, hidden: int, blocks: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(blocks):
        block = f"{prefix}trunk.blocks.{i}"
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * dim, dim),
            f"{block}.attn.proj.weight": (dim, dim),
            f"{block}.mlp.fc1.weight": (hidden, dim),
            f"{block}.mlp.fc2.weight": (dim, hidden),
            f"{block}.mlp.fc3.weight": (hidden, dim),
            f"{block}.norm_1.weight": (dim,),
            f"{block}.norm_2.weight": (dim,),
        }
    return shapes | {f"{prefix}trunk.post_trunk_norm.weight": (dim,)}


def _shape(shapes: Shapes, name: str, rank: int, names: Callable[[str], str]) -> tuple[int, ...]:
    """The shape of a tensor that states a size."""
    if name not in shapes:
        raise CheckpointError(
            f"missing tensor {names(name)}: expected in every checkpoint of this kind; "
            "download it again"
        )
    if len(shapes[name]) != rank:
        raise CheckpointError(
            f"wrong shape of tensor {names(name)}: expected {rank} dimensions, "
            f"got {list(shapes[name])}"
        )
    return shapes[name]
