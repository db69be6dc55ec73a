"""The layouts in which weights are published, as rows of data, and which one a checkpoint has."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.rules import AXIS, CONV, JOIN, KEEP, Layout, Rule, others, unexpected
from aim_mlx.weights.safetensors_file import TensorInfo
from aim_mlx.weights.strict_json import show

PATCH_CONV = "preprocessor.patchifier.proj.weight"

AIMV1_ONLY = "trunk.post_trunk_norm.bias"  # in every checkpoint of AIMv1, in no other

# A tensor that gives away what else a file of a known layout is, and what to do about it.
_RELATIVES = {
    "head.output_proj.weight": "transformers' Aimv2VisionModel with its pooling head: save it "
    "again with use_head=False in its config, as the published encoders are",
    "embeddings.token_embedding.weight": "transformers' Aimv2TextModel alone: give the LiT model "
    "that it belongs to, with both of its towers",
    "head.weight": "timm's encoder with a classifier: save it again after reset_classifier(0)",
}


def detect_layout(tensors: Mapping[str, TensorInfo]) -> Layout:
    """The layout and kind of a checkpoint, from its keys and the exact shape of its patch conv.

    Raises CheckpointError for keys of two layouts, of none, and for an orientation that the shapes
    leave open.
    """
    if not tensors:
        raise CheckpointError("no tensors in the checkpoint: expected an AIM encoder")
    # The two ml-aim layouts share their keys; the first stands for both until the shapes decide.
    candidates = [layout for layout in LAYOUTS if layout.name != "ml-aim-torch"]
    known = {id(c): {k for k in tensors if c.rule_for(k) is not None} for c in candidates}
    best = max(candidates, key=lambda c: len(known[id(c)]))
    rest = [key for key in tensors if key not in known[id(best)]]
    if len(rest) == len(tensors):
        raise CheckpointError(
            f"no known layout has the tensor {show(rest[0])}{others(rest)}: expected an AIM "
            f"encoder as published ({', '.join(dict.fromkeys(c.name for c in LAYOUTS))})"
        )
    for other in candidates:
        foreign = [key for key in rest if key in known[id(other)]]
        if foreign:
            ours = next(iter(k for k in tensors if k in known[id(best)]))
            raise CheckpointError(
                f"tensors of two layouts in one checkpoint: {show(ours)} is {best}, "
                f"{show(foreign[0])}{others(foreign)} is {other}; expected one layout"
            )
    for key in _RELATIVES.keys() & set(rest):
        raise CheckpointError(
            f"unexpected tensor {show(key)}{others(rest)}: this is {_RELATIVES[key]}"
        )
    if rest:
        raise unexpected(best, rest)
    return _oriented(best, tensors)


def layout_named(name: str, kind: str = "vision", family: str = "aimv2") -> Layout:
    """A row of the tables; raises CheckpointError naming the known ones."""
    for layout in (*LAYOUTS, *TOWER_LAYOUTS):
        if (layout.name, layout.kind, layout.family) == (name, kind, family):
            return layout
    known, asked = ", ".join(map(str, LAYOUTS)), Layout(name, kind, (), family)
    raise CheckpointError(f"layout must be one of {known}, got {asked}")


def _oriented(layout: Layout, tensors: Mapping[str, TensorInfo]) -> Layout:
    """Decides between the two ml-aim layouts: (D, p, p, 3) is MLX's, (D, 3, p, p) PyTorch's."""
    if layout.name != "ml-aim-mlx":
        return layout
    key = PATCH_CONV if layout.kind == "vision" else f"image_encoder.{PATCH_CONV}"
    if key not in tensors:
        raise CheckpointError(f"missing tensor {key}: expected in every AIM encoder")
    shape = tensors[key].shape
    last = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    first = len(shape) == 4 and shape[2] == shape[3] and shape[1] == 3
    if last and first:
        raise CheckpointError(
            f"tensor {key} of shape {list(shape)} can be read in two ways: with patches of 3 "
            "pixels, save the weights in the transformers layout"
        )
    if not last and not first:
        raise CheckpointError(
            f"wrong shape of tensor {key}: expected (D, p, p, 3) or (D, 3, p, p), got {list(shape)}"
        )
    return layout if last else layout_named("ml-aim-torch", layout.kind, layout.family)


def _ml_aim(rules: Iterable[Rule], conv: str) -> tuple[Rule, ...]:
    """The same tensors under our own names; only the patch conv differs, by `conv`."""
    return tuple(
        Rule(rule.ours, (rule.ours,), conv if rule.operation == CONV else KEEP) for rule in rules
    )


def _within(ours: str, theirs: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules with prefixes, for a tower of a larger model."""
    return tuple(
        Rule(ours + r.ours, tuple(theirs + name for name in r.sources), r.operation) for r in rules
    )


_TRANSFORMERS_TRUNK = (
    Rule(
        "trunk.blocks.{i}.attn.qkv.weight",
        (
            "encoder.layers.{i}.attention.q_proj.weight",
            "encoder.layers.{i}.attention.k_proj.weight",
            "encoder.layers.{i}.attention.v_proj.weight",
        ),
        JOIN,
    ),
    Rule("trunk.blocks.{i}.attn.proj.weight", ("encoder.layers.{i}.attention.out_proj.weight",)),
    Rule("trunk.blocks.{i}.mlp.fc1.weight", ("encoder.layers.{i}.ffn.gate_proj.weight",)),
    Rule("trunk.blocks.{i}.mlp.fc3.weight", ("encoder.layers.{i}.ffn.up_proj.weight",)),
    Rule("trunk.blocks.{i}.mlp.fc2.weight", ("encoder.layers.{i}.ffn.down_proj.weight",)),
    Rule("trunk.blocks.{i}.norm_1.weight", ("encoder.layers.{i}.rms_norm1.weight",)),
    Rule("trunk.blocks.{i}.norm_2.weight", ("encoder.layers.{i}.rms_norm2.weight",)),
    Rule("trunk.post_trunk_norm.weight", ("rms_norm.weight",)),
)

_TRANSFORMERS_VISION = (
    Rule("preprocessor.patchifier.proj.weight", ("embeddings.patch_embed.weight",), CONV),
    Rule("preprocessor.patchifier.proj.bias", ("embeddings.patch_embed.bias",)),
    Rule("preprocessor.patchifier.norm.weight", ("embeddings.rms_norm.weight",)),
    Rule("preprocessor.pos_embed", ("embeddings.position_embedding.weight",), AXIS),
    *_TRANSFORMERS_TRUNK,
)

_TIMM_VISION = (
    Rule("preprocessor.patchifier.proj.weight", ("patch_embed.proj.weight",), CONV),
    Rule("preprocessor.patchifier.proj.bias", ("patch_embed.proj.bias",)),
    Rule("preprocessor.patchifier.norm.weight", ("patch_embed.norm.weight",)),
    Rule("preprocessor.pos_embed", ("pos_embed",)),
    Rule("trunk.blocks.{i}.attn.qkv.weight", ("blocks.{i}.attn.qkv.weight",)),
    Rule("trunk.blocks.{i}.attn.proj.weight", ("blocks.{i}.attn.proj.weight",)),
    Rule("trunk.blocks.{i}.mlp.fc1.weight", ("blocks.{i}.mlp.fc1_g.weight",)),
    Rule("trunk.blocks.{i}.mlp.fc3.weight", ("blocks.{i}.mlp.fc1_x.weight",)),
    Rule("trunk.blocks.{i}.mlp.fc2.weight", ("blocks.{i}.mlp.fc2.weight",)),
    Rule("trunk.blocks.{i}.norm_1.weight", ("blocks.{i}.norm1.weight",)),
    Rule("trunk.blocks.{i}.norm_2.weight", ("blocks.{i}.norm2.weight",)),
    Rule("trunk.post_trunk_norm.weight", ("norm.weight",)),
)

# The training code's own attention, with q, k and v apart; the rest is as in ml-aim.
_ML_L3M_QKV = Rule(
    "trunk.blocks.{i}.attn.qkv.weight",
    tuple(f"trunk.blocks.{{i}}.attn.{part}_proj.weight" for part in "qkv"),
    JOIN,
)

# What LiT adds around its two towers.
_TRANSFORMERS_TEXT = (
    Rule("preprocessor.text_embedding.weight", ("embeddings.token_embedding.weight",)),
    Rule("preprocessor.positional_embedding", ("embeddings.position_embedding.weight",)),
    *_TRANSFORMERS_TRUNK,
)
_TRANSFORMERS_AROUND = (
    Rule("image_encoder.head.cls_token", ("vision_model.head.cls_token",)),
    Rule("image_encoder.head.k.weight", ("vision_model.head.k_proj.weight",)),
    Rule("image_encoder.head.v.weight", ("vision_model.head.v_proj.weight",)),
    Rule("image_encoder.head.linear.weight", ("vision_model.head.output_proj.weight",)),
    Rule("image_encoder.head.linear.bias", ("vision_model.head.output_proj.bias",)),
    Rule("image_projector.weight", ("visual_projection.weight",)),
    Rule("text_projector.weight", ("text_projection.weight",)),
    Rule("log_logit_scale", ("logit_scale",)),
    *_within("text_encoder.", "text_model.", _TRANSFORMERS_TEXT),
)
_TRANSFORMERS_LIT = (
    *_within("image_encoder.", "vision_model.", _TRANSFORMERS_VISION),
    *_TRANSFORMERS_AROUND,
)

# AIMv1 is published under our names alone.
_AIMV1_VISION = (
    Rule("preprocessor.patchifier.proj.weight", (), CONV),
    *(
        Rule(name, ())
        for name in (
            "preprocessor.patchifier.proj.bias",
            "preprocessor.patchifier.norm.weight", "preprocessor.patchifier.norm.bias",
            "trunk.blocks.{i}.attn.qkv.weight", "trunk.blocks.{i}.attn.proj.weight",
            "trunk.blocks.{i}.mlp.fc1.weight", "trunk.blocks.{i}.mlp.fc2.weight",
            "trunk.blocks.{i}.norm_1.weight", "trunk.blocks.{i}.norm_1.bias",
            "trunk.blocks.{i}.norm_2.weight", "trunk.blocks.{i}.norm_2.bias",
            "trunk.post_trunk_norm.weight", "trunk.post_trunk_norm.bias",
        )
    ),
)  # fmt: skip
_AIMV1_LIT = (*_within("image_encoder.", "", _AIMV1_VISION), *_TRANSFORMERS_AROUND)

LAYOUTS = (
    Layout("ml-aim-mlx", "vision", _ml_aim(_TRANSFORMERS_VISION, KEEP)),
    Layout("ml-aim-torch", "vision", _ml_aim(_TRANSFORMERS_VISION, CONV)),
    Layout("transformers", "vision", _TRANSFORMERS_VISION),
    Layout("timm", "vision", _TIMM_VISION),
    Layout(
        "ml-l3m",
        "vision",
        tuple(
            _ML_L3M_QKV if rule.ours == _ML_L3M_QKV.ours else rule
            for rule in _ml_aim(_TRANSFORMERS_VISION, CONV)
        ),
    ),
    Layout("ml-aim-mlx", "lit", _ml_aim(_TRANSFORMERS_LIT, KEEP)),
    Layout("ml-aim-torch", "lit", _ml_aim(_TRANSFORMERS_LIT, CONV)),
    Layout("transformers", "lit", _TRANSFORMERS_LIT),
    Layout("ml-aim-mlx", "vision", _ml_aim(_AIMV1_VISION, KEEP), "aimv1"),
    Layout("ml-aim-torch", "vision", _ml_aim(_AIMV1_VISION, CONV), "aimv1"),
    Layout("ml-aim-mlx", "lit", _ml_aim(_AIMV1_LIT, KEEP), "aimv1"),
)

_OVIS2_TRANSFORMERS = tuple(
    replace(
        rule, sources=tuple(n.replace("patch_embed.", "patch_embedding.") for n in rule.sources)
    )
    for rule in _TRANSFORMERS_VISION
)
# What Ovis2 adds to its tower: what makes visual tokens of features.
_VISUAL_TOKENS = ("head.linear.weight", "head.norm.weight", "head.norm.bias", "table.weight")


def _named(*sources: str) -> tuple[Rule, ...]:
    """The rules of Ovis2's own part, by the names that each tensor has."""
    return tuple(
        Rule(ours, (source,)) for ours, source in zip(_VISUAL_TOKENS, sources, strict=True)
    )


# Towers of multimodal models; weights/towers.py says whose.
TOWER_LAYOUTS = (
    Layout(
        "ovis2",
        "vision",
        _within("", "visual_tokenizer.backbone.", _ml_aim(_TRANSFORMERS_VISION, CONV)),
    ),
    Layout(
        "ovis2-transformers",
        "vision",
        _within("", "model.vision_tower.transformer.", _OVIS2_TRANSFORMERS),
    ),
    Layout("sail-vl", "vision", _within("", "vision_model.", _ml_aim(_TRANSFORMERS_VISION, CONV))),
    Layout(
        "ovis2",
        "visual tokens",
        _named(
            "visual_tokenizer.head.0.weight",
            "visual_tokenizer.head.1.weight",
            "visual_tokenizer.head.1.bias",
            "vte.weight",
        ),
    ),
    Layout(
        "ovis2-transformers",
        "visual tokens",
        _named(
            "model.vision_tower.head_linear.weight",
            "model.vision_tower.head_norm.weight",
            "model.vision_tower.head_norm.bias",
            "model.visual_embeddings_table.weight",
        ),
    ),
)
# The head of a probe, published by itself: apple/ml-aim's, and the fuller one of apple/ml-l3m.
HEAD = Layout(
    "ml-aim",
    "head",
    tuple(
        Rule(name, (f"head.{name}",))
        for name in (
            "cls_token", "q.weight", "k.weight", "v.weight", "proj.weight", "proj.bias",
            "linear.weight", "linear.bias", "bn.running_mean", "bn.running_var",
            "bn.num_batches_tracked",
        )
    ),
)  # fmt: skip
