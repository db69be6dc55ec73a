"""Multimodal checkpoints with an AIMv2 tower, in the layouts they are published in, full of noise.

Their sizes are free: those of a published model make its whole checkpoint, tensor by tensor.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.config import VisionConfig
from aim_mlx.weights.layouts import layout_named
from aim_mlx.weights.rules import from_ours
from aim_mlx.weights.sizes import expected_shapes
from tests.weights_files import crafted, entry, write_index

LAYOUTS = ("ovis2", "ovis2-transformers", "sail-vl")
TOWER = VisionConfig(64, 176, 3, 2, 14, 70)  # an odd grid, which Ovis2 pads before it merges
INDICATORS = 5  # rows of the visual vocabulary that no image uses
_LANGUAGE = {
    "ovis2": ("llm.model.", "llm.lm_head.weight"),
    "ovis2-transformers": ("model.language_model.", "lm_head.weight"),
    "sail-vl": ("language_model.model.", "language_model.lm_head.weight"),
}


@dataclass(frozen=True)
class Rest:
    """Sizes of a model beside its tower: its language model and its visual vocabulary."""

    width: int = 24
    hidden: int = 32
    blocks: int = 2
    keys: int = 8
    vocabulary: int = 4000
    visual_vocabulary: int = 37
    stride: int = 2


OVIS2_1B = Rest(896, 4864, 24, 128, 151_936, 65_536)


def language_shapes(layout: str, rest: Rest) -> dict[str, tuple[int, ...]]:
    """The language model, as Qwen2 is."""
    start, head = _LANGUAGE[layout]
    W, H, K = rest.width, rest.hidden, rest.keys
    shapes: dict[str, tuple[int, ...]] = {f"{start}embed_tokens.weight": (rest.vocabulary, W)}
    for i in range(rest.blocks):
        block = f"{start}layers.{i}"
        for part, rows in {"q": W, "k": K, "v": K}.items():
            shapes[f"{block}.self_attn.{part}_proj.weight"] = (rows, W)
            shapes[f"{block}.self_attn.{part}_proj.bias"] = (rows,)
        shapes[f"{block}.self_attn.o_proj.weight"] = (W, W)
        shapes |= {f"{block}.mlp.{part}_proj.weight": (H, W) for part in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (W, H)
        shapes |= {f"{block}.{name}_layernorm.weight": (W,) for name in ("input", "post_attention")}
    return shapes | {f"{start}norm.weight": (W,), head: (rest.vocabulary, W)}


def visual_shapes(layout: str, config: VisionConfig, rest: Rest) -> dict[str, tuple[int, ...]]:
    """What makes visual tokens of the tower's features: Ovis2's head and table, SAIL-VL's MLP."""
    merged, V = rest.stride**2 * config.embed_dim, rest.visual_vocabulary
    head = {
        "head.linear.weight": (V - INDICATORS, merged),
        "head.norm.weight": (V - INDICATORS,),
        "head.norm.bias": (V - INDICATORS,),
        "table.weight": (V, rest.width),
    }
    if layout == "sail-vl":
        return {"mlp1.0.weight": (merged,), "mlp1.1.weight": (rest.width, merged)}
    named = layout_named(layout, "visual tokens")
    return {named.source_names(name)[0]: shape for name, shape in head.items()}


def noise(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 noise as float16 holds it; gains lie about one."""
    values = rng.normal(0, 0.1, shape) + (1.0 if "norm" in name else 0.0)
    return values.astype(np.float16).astype(np.float32)


def tower_weights(config: VisionConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """The tower's tensors under our names, float32."""
    rng = np.random.default_rng(seed)
    return {name: noise(rng, name, shape) for name, shape in expected_shapes(config).items()}


def tensors(
    layout: str, config: VisionConfig = TOWER, rest: Rest = Rest(), seed: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of a checkpoint, as they follow one another when it is saved."""
    rng, rng_tower = np.random.default_rng(seed + 1), np.random.default_rng(seed)
    for name, shape in language_shapes(layout, rest).items():
        yield name, noise(rng, name, shape)
    for ours, shape in expected_shapes(config).items():
        values = noise(rng_tower, ours, shape)
        yield from from_ours(layout_named(layout), ours, values).items()
    for name, shape in visual_shapes(layout, config, rest).items():
        yield name, noise(rng, name, shape)


def shapes(layout: str, config: VisionConfig, rest: Rest) -> dict[str, tuple[int, ...]]:
    """The shapes of `tensors`, in the same order."""
    found = language_shapes(layout, rest)
    for ours, shape in expected_shapes(config).items():
        parts = from_ours(layout_named(layout), ours, np.empty(shape, np.float16))
        found |= {name: values.shape for name, values in parts.items()}
    return found | visual_shapes(layout, config, rest)


def config_json(layout: str, config: VisionConfig = TOWER, rest: Rest = Rest()) -> dict[str, Any]:
    tower = {
        "model_type": "ovis2_vision" if layout == "ovis2-transformers" else "aimv2",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_hidden_dim,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
        "rms_norm_eps": config.rms_norm_eps,
        "qkv_bias": False,
    }
    tokens = {"vocab_size": rest.visual_vocabulary, "tokenize_function": "softmax"}
    tokens |= {"hidden_stride": rest.stride}
    if layout == "ovis2":
        tokens |= {"model_type": "aimv2_visual_tokenizer", "tau": 1.0, "drop_cls_token": False}
        tokens |= {"backbone_config": tower}
        return {"model_type": "ovis", "hidden_size": rest.width, "visual_tokenizer_config": tokens}
    if layout == "ovis2-transformers":
        tower |= tokens | {"num_visual_indicator_tokens": INDICATORS}
        return {"model_type": "ovis2", "hidden_size": rest.width, "vision_config": tower}
    return {"model_type": "internvl_chat", "select_layer": -1, "vision_config": tower}


def save(
    folder: Path,
    layout: str,
    config: VisionConfig = TOWER,
    rest: Rest = Rest(),
    shards: int = 4,
) -> Path:
    """A float16 checkpoint in shards of about equal size, with one tensor in memory at a time."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(layout, config, rest)))
    sizes = shapes(layout, config, rest)
    total = sum(2 * int(np.prod(shape)) for shape in sizes.values())
    parts: list[list[str]] = [[] for _ in range(shards)]
    done = 0
    for name, shape in sizes.items():
        parts[min(shards - 1, done * shards // total)].append(name)
        done += 2 * int(np.prod(shape))
    values = tensors(layout, config, rest)
    weight_map = {}
    for i, names in enumerate(parts):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        header, end = {}, 0
        for name in names:
            nbytes = 2 * int(np.prod(sizes[name]))
            header[name] = entry("F16", list(sizes[name]), end, end + nbytes)
            end += nbytes
        with open(folder / file, "wb") as stream:
            stream.write(crafted(header))
            for name in names:
                found, array = next(values)
                assert found == name
                stream.write(array.astype(np.float16).tobytes())
        weight_map |= dict.fromkeys(names, file)
    write_index(folder, weight_map)
    return folder
