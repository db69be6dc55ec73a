"""What the tensors of a checkpoint say about its sizes, and what a size expects of the tensors.

Names and shapes are ours (see rules.py). Letters: D width, F hidden width of the feed-forward, p
patch side, N patches.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aim_mlx.config import HEAD_DIM, MLP_PRODUCTS, LiTConfig, TextConfig, VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.config_json import Stated
from aim_mlx.weights.rules import Layout, others
from aim_mlx.weights.strict_json import show

Shapes = Mapping[str, tuple[int, ...]]
IMAGE, _TEXT = "image_encoder.", "text_encoder."  # what LiT puts before each tower's names
_AIMV1 = {"image_size": 224, "rms_norm_eps": 1e-6}  # what no tensor of it says


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
    shapes: Shapes, stated: Stated, layout: Layout, names: Callable[[str], str] = show
) -> VisionConfig | LiTConfig:
    """The sizes that tensors in our names state, and what is `stated` of what they cannot.

    No position tensor means native resolution, in AIMv1 224 pixels. Unless stated, a head has
    HEAD_DIM channels and the last of the vocabulary ends a text. `names` says how messages call one
    of our tensors. Raises CheckpointError when a tensor that states a size is missing or of an
    impossible shape.
    """
    tensors = _Tensors(shapes, names)
    if layout.kind == "vision":
        return _vision(tensors, "", stated.vision, layout.family)
    return LiTConfig(
        _vision(tensors, IMAGE, stated.vision, layout.family),
        _text(tensors, _TEXT, stated.text),
        tensors.shape("image_projector.weight", 2)[0],
        **_only(stated.lit, "max_logit_scale"),
    )


@dataclass(frozen=True)
class _Tensors:
    shapes: Shapes
    names: Callable[[str], str]

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that states a size."""
        if name not in self.shapes:
            raise CheckpointError(
                f"missing tensor {self.names(name)}: expected in every checkpoint of this kind; "
                "download it again"
            )
        shape = self.shapes[name]
        if len(shape) != rank:
            raise CheckpointError(
                f"wrong shape of tensor {self.names(name)}: expected {rank} dimensions, "
                f"got {list(shape)}"
            )
        return shape

    def blocks(self, prefix: str) -> int:
        """One more than the largest block number; a gap shows later as a missing tensor."""
        start = f"{prefix}trunk.blocks."
        numbers = [int(n[len(start) :].split(".")[0]) for n in self.shapes if n.startswith(start)]
        return max(numbers, default=-1) + 1


def _vision(tensors: _Tensors, prefix: str, stated: Mapping[str, Any], family: str) -> VisionConfig:
    dim, patch = tensors.shape(f"{prefix}preprocessor.patchifier.proj.weight", 4)[:2]
    positions, image_size = f"{prefix}preprocessor.pos_embed", None
    if positions in tensors.shapes:
        count = tensors.shape(positions, 3)[1]
        side = math.isqrt(count)
        if side < 1 or side * side != count:
            raise CheckpointError(
                f"tensor {tensors.names(positions)} has {count} positions, expected a square number"
            )
        image_size = side * patch
    if family == "aimv1":
        stated = _AIMV1 | dict(stated)
        image_size = stated["image_size"]
    trunk = _trunk(tensors, prefix, dim, stated)
    return VisionConfig(**trunk, patch_size=patch, image_size=image_size, family=family)


def _text(tensors: _Tensors, prefix: str, stated: Mapping[str, Any]) -> TextConfig:
    vocab_size, dim = tensors.shape(f"{prefix}preprocessor.text_embedding.weight", 2)
    return TextConfig(
        **_trunk(tensors, prefix, dim, stated),
        vocab_size=vocab_size,
        context_length=tensors.shape(f"{prefix}preprocessor.positional_embedding", 2)[0],
        eos_token_id=stated.get("eos_token_id", vocab_size - 1),
    )


def _trunk(tensors: _Tensors, prefix: str, dim: int, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What both towers have in common, for their configs."""
    return {
        "embed_dim": dim,
        "mlp_hidden_dim": tensors.shape(f"{prefix}trunk.blocks.0.mlp.fc1.weight", 2)[0],
        "num_blocks": tensors.blocks(prefix),
        "num_heads": stated["num_heads"] if "num_heads" in stated else _count_heads(dim),
        **_only(stated, "rms_norm_eps"),
    }


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


def _vision_shapes(prefix: str, config: VisionConfig) -> dict[str, tuple[int, ...]]:
    dim, patch = config.embed_dim, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}preprocessor.patchifier.proj.weight": (dim, patch, patch, 3),
        f"{prefix}preprocessor.patchifier.proj.bias": (dim,),
        **_norm_shapes(f"{prefix}preprocessor.patchifier.norm", config),
    }
    if config.grid is not None and not config.sincos:
        shapes[f"{prefix}preprocessor.pos_embed"] = (1, config.grid**2, dim)
    return shapes | _trunk_shapes(prefix, config)


def _trunk_shapes(prefix: str, config: VisionConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    dim, hidden = config.embed_dim, config.mlp_hidden_dim
    mlp = {"fc1": (hidden, dim), "fc2": (dim, hidden), "fc3": (hidden, dim)}
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.num_blocks):
        block = f"{prefix}trunk.blocks.{i}"
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * dim, dim),
            f"{block}.attn.proj.weight": (dim, dim),
            **{f"{block}.mlp.{name}.weight": mlp[name] for name in MLP_PRODUCTS[config.family]},
            **_norm_shapes(f"{block}.norm_1", config),
            **_norm_shapes(f"{block}.norm_2", config),
        }
    return shapes | _norm_shapes(f"{prefix}trunk.post_trunk_norm", config)


def _norm_shapes(name: str, config: VisionConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias") if config.family == "aimv1" else ("weight",)
    return {f"{name}.{part}": (config.embed_dim,) for part in parts}


def _only(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: values[name]} if name in values else {}
