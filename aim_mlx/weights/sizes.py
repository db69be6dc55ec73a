"""What the tensors of a checkpoint say about its sizes, and what a size expects of the tensors.

Names and shapes are ours (see layouts.py). Letters: D width, F hidden width of the feed-forward, p
patch side, N patches.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from aim_mlx.config import HEAD_DIM, LiTConfig, TextConfig, VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.config_json import Stated
from aim_mlx.weights.layouts import others
from aim_mlx.weights.strict_json import show

Shapes = Mapping[str, tuple[int, ...]]
IMAGE, _TEXT = "image_encoder.", "text_encoder."  # what LiT puts before each tower's names


def expected_shapes(config: VisionConfig | LiTConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model of these sizes, with its exact shape."""
    if isinstance(config, VisionConfig):
        return _vision_shapes("", config)
    vision, text, projected = config.vision, config.text, config.projection_dim
    dim = vision.embed_dim
    return {
        **_vision_shapes(IMAGE, vision),
        "image_encoder.head.cls_token": (1, 1, dim),
        "image_encoder.head.k.weight": (dim, dim),
        "image_encoder.head.v.weight": (dim, dim),
        "image_encoder.head.linear.weight": (dim, dim),
        "image_encoder.head.linear.bias": (dim,),
        "image_projector.weight": (projected, dim),
        "text_encoder.preprocessor.text_embedding.weight": (text.vocab_size, text.embed_dim),
        "text_encoder.preprocessor.positional_embedding": (text.context_length, text.embed_dim),
        **_trunk_shapes(_TEXT, text),
        "text_projector.weight": (projected, text.embed_dim),
        "log_logit_scale": (),
    }


def config_from_tensors(
    shapes: Shapes, stated: Stated, kind: str, names: Callable[[str], str] = show
) -> VisionConfig | LiTConfig:
    """The sizes that tensors in our names state, and what is `stated` of what they cannot.

    No position tensor means native resolution. Unless stated, a head has HEAD_DIM channels and the
    last of the vocabulary ends a text. `names` says how messages call one of our tensors. Raises
    CheckpointError when a tensor that states a size is missing or of an impossible shape.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
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

    def trunk(prefix: str, dim: int, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "embed_dim": dim,
            "mlp_hidden_dim": shape(f"{prefix}trunk.blocks.0.mlp.fc1.weight", 2)[0],
            "num_blocks": _count_blocks(shapes, prefix),
            "num_heads": values["num_heads"] if "num_heads" in values else _count_heads(dim),
            **_only(values, "rms_norm_eps"),
        }

    def vision(prefix: str) -> VisionConfig:
        dim, patch = shape(f"{prefix}preprocessor.patchifier.proj.weight", 4)[:2]
        positions, image_size = f"{prefix}preprocessor.pos_embed", None
        if positions in shapes:
            count = shape(positions, 3)[1]
            side = math.isqrt(count)
            if side < 1 or side * side != count:
                raise CheckpointError(
                    f"tensor {names(positions)} has {count} positions, expected a square number"
                )
            image_size = side * patch
        sizes = trunk(prefix, dim, stated.vision)
        return VisionConfig(**sizes, patch_size=patch, image_size=image_size)

    def text(prefix: str) -> TextConfig:
        vocab_size, dim = shape(f"{prefix}preprocessor.text_embedding.weight", 2)
        return TextConfig(
            **trunk(prefix, dim, stated.text),
            vocab_size=vocab_size,
            context_length=shape(f"{prefix}preprocessor.positional_embedding", 2)[0],
            eos_token_id=stated.text.get("eos_token_id", vocab_size - 1),
        )

    if kind == "vision":
        return vision("")
    projected = shape("image_projector.weight", 2)[0]
    return LiTConfig(vision(IMAGE), text(_TEXT), projected, **_only(stated.lit, "max_logit_scale"))


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


def _count_heads(dim: int) -> int:
    """Heads of HEAD_DIM channels, which all published models have; raises CheckpointError."""
    if dim < HEAD_DIM or dim % HEAD_DIM:
        raise CheckpointError(
            f"width {dim} is not a multiple of {HEAD_DIM} channels a head, and no config.json "
            "states the heads: give the sizes with config="
        )
    return dim // HEAD_DIM


def _count_blocks(shapes: Shapes, prefix: str) -> int:
    """One more than the largest block number; a gap shows later as a missing tensor."""
    start = f"{prefix}trunk.blocks."
    numbers = [int(n[len(start) :].split(".")[0]) for n in shapes if n.startswith(start)]
    return max(numbers, default=-1) + 1


def _vision_shapes(prefix: str, config: VisionConfig) -> dict[str, tuple[int, ...]]:
    dim, patch = config.embed_dim, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}preprocessor.patchifier.proj.weight": (dim, patch, patch, 3),
        f"{prefix}preprocessor.patchifier.proj.bias": (dim,),
        f"{prefix}preprocessor.patchifier.norm.weight": (dim,),
    }
    if config.grid is not None:
        shapes[f"{prefix}preprocessor.pos_embed"] = (1, config.grid**2, dim)
    return shapes | _trunk_shapes(prefix, config)


def _trunk_shapes(prefix: str, config: VisionConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    dim, hidden = config.embed_dim, config.mlp_hidden_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.num_blocks):
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


def _only(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: values[name]} if name in values else {}
