"""Every published layout maps to our names and back, bit for bit, and nothing is left over."""

import numpy as np
import pytest

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.layouts import LAYOUTS, TOWER_LAYOUTS, detect_layout, layout_named
from aim_mlx.weights.rules import Layout, Rule, from_ours, parts_of, plan, shape_in_ours
from aim_mlx.weights.safetensors_file import TensorInfo, check_file
from tests.weights_files import DATA, Tensors, as_bfloat16, read_tensors, weight_file

ALL = (*LAYOUTS, *TOWER_LAYOUTS)
CASES = [
    (case, folder, name, "lit" if case == "lit" else "vision")
    for case in ("vision_absolute", "vision_native_5x3", "lit")
    for folder, name in (
        ("ml_aim_mlx", "ml-aim-mlx"),
        ("ml_aim_torch", "ml-aim-torch"),
        ("transformers", "transformers"),
        ("timm", "timm"),
    )
    if (DATA / case / folder).is_dir()
]
each_case = pytest.mark.parametrize(("case", "folder", "name", "kind"), CASES)


def published(case: str, folder: str) -> Tensors:
    return read_tensors(weight_file(DATA / case / folder))


def infos(tensors: Tensors) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(dtype, values.shape, 0, values.nbytes)
        for name, (dtype, values) in tensors.items()
    }


def as_ours(step: Rule, arrays: list[np.ndarray]) -> np.ndarray:
    """The tensor that a layout's tensors make."""
    made = np.empty(shape_in_ours(step, [array.shape for array in arrays]), arrays[0].dtype)
    for part, array in zip(parts_of(step, made), arrays, strict=True):
        part[...] = array
    return made


def in_ours(layout: Layout, tensors: Tensors) -> dict[str, np.ndarray]:
    steps = plan(layout, tensors)
    return {s.ours: as_ours(s, [tensors[name][1] for name in s.sources]) for s in steps}


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape, name
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


@each_case
def test_a_published_layout_is_detected_by_keys_and_shapes(case, folder, name, kind):
    checked = check_file(weight_file(DATA / case / folder))
    layout = detect_layout(checked.tensors)
    assert (layout.name, layout.kind) == (name, kind)


@each_case
def test_a_published_layout_becomes_ours_bit_for_bit(case, folder, name, kind):
    ours = {k: v for k, (_, v) in published(case, "ml_aim_mlx").items()}
    same_bits(in_ours(layout_named(name, kind), published(case, folder)), ours)


@each_case
def test_ours_becomes_a_published_layout_bit_for_bit(case, folder, name, kind):
    layout = layout_named(name, kind)
    made: dict[str, np.ndarray] = {}
    for ours, (_, values) in published(case, "ml_aim_mlx").items():
        made |= from_ours(layout, ours, values)
    same_bits(made, {k: v for k, (_, v) in published(case, folder).items()})


@each_case
def test_shapes_are_foretold_without_reading_a_tensor(case, folder, name, kind):
    tensors = published(case, folder)
    ours = published(case, "ml_aim_mlx")
    for step in plan(layout_named(name, kind), tensors):
        shapes = [tensors[source][1].shape for source in step.sources]
        assert shape_in_ours(step, shapes) == ours[step.ours][1].shape


def test_bfloat16_bits_pass_through_the_table():
    tensors = published("vision_absolute", "transformers")
    layout = layout_named("transformers")
    cut = {k: ("BF16", as_bfloat16(v)) for k, (_, v) in tensors.items()}
    expected = {k: as_bfloat16(v) for k, v in in_ours(layout, tensors).items()}
    same_bits(in_ours(layout, cut), expected)


@pytest.mark.parametrize("layout", ALL, ids=lambda x: f"{x.name}-{x.kind}")
def test_a_layout_names_each_source_and_each_tensor_of_ours_once(layout: Layout):
    sources = [name for rule in layout.rules for name in rule.sources]
    ours = [rule.ours for rule in layout.rules]
    assert len(set(sources)) == len(sources) and len(set(ours)) == len(ours)
    alike = [x for x in ALL if (x.kind, x.family) == (layout.kind, layout.family)]
    first = alike[0]
    assert set(ours) == {rule.ours for rule in first.rules}


def test_the_training_codes_split_query_key_and_value_become_ours_bit_for_bit():
    ours = {k: v for k, (_, v) in published("vision_absolute", "ml_aim_mlx").items()}
    layout = layout_named("ml-l3m")
    theirs: Tensors = {}
    for name, values in ours.items():
        theirs |= {k: ("F32", v) for k, v in from_ours(layout, name, values).items()}
    assert theirs["trunk.blocks.2.attn.k_proj.weight"][1].shape == (64, 64)
    assert theirs["preprocessor.patchifier.proj.weight"][1].shape == (64, 3, 14, 14)
    assert detect_layout(infos(theirs)) == layout
    same_bits(in_ours(layout, theirs), ours)


def aimv1() -> Tensors:
    return read_tensors(DATA / "aimv1_probe" / "ml_aim_torch" / "model.safetensors")


def test_aimv1_is_found_by_its_names_and_the_orientation_of_its_patch_conv():
    theirs = aimv1()
    layout = detect_layout(infos(theirs))
    assert (layout.name, layout.kind, layout.family) == ("ml-aim-torch", "vision", "aimv1")
    ours = {name: ("F32", values) for name, values in in_ours(layout, theirs).items()}
    turned = detect_layout(infos(ours))
    assert (turned.name, turned.family) == ("ml-aim-mlx", "aimv1")
    same_bits(in_ours(turned, ours), {name: values for name, (_, values) in ours.items()})
    back: dict[str, np.ndarray] = {}
    for name, (_, values) in ours.items():
        back |= from_ours(layout, name, values)
    same_bits(back, {name: values for name, (_, values) in theirs.items()})


@pytest.mark.parametrize("key", ["trunk.blocks.0.mlp.fc3.weight", "preprocessor.pos_embed"])
def test_a_tensor_that_only_aimv2_has_is_refused_beside_aimv1(key: str):
    tensors = aimv1() | {key: ("F32", np.zeros((1, 16, 64), np.float32))}
    with pytest.raises(CheckpointError, match=r"two layouts.*\(AIMv1, vision\).*mlx \(vision\)"):
        detect_layout(infos(tensors))


@pytest.mark.parametrize("key", ["head.cls_token", "trunk.blocks.0.attn.qkv.bias"])
def test_a_tensor_that_no_encoder_has_is_refused_in_aimv1_too(key: str):
    tensors = aimv1() | {key: ("F32", np.zeros(1, np.float32))}
    with pytest.raises(CheckpointError, match=f"unexpected tensor '{key}'"):
        detect_layout(infos(tensors))


# Tensors beside those of an encoder or in their place, and the words that say what the file is.
RELATIVES = [
    ("transformers", ["head.cls_token", "head.k_proj.weight", "head.output_proj.weight"], [],
     ["Aimv2VisionModel", "use_head=False"]),
    ("transformers", ["embeddings.token_embedding.weight"], ["patch_embed", "embeddings.rms_norm"],
     ["Aimv2TextModel", "both of its towers"]),
    ("timm", ["head.weight", "head.bias"], [], ["timm's", "classifier", "reset_classifier(0)"]),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "more", "less", "words"), RELATIVES)
def test_a_relative_of_a_published_model_is_named_with_what_to_do(folder, more, less, words):
    tensors = infos(published("vision_absolute", folder))
    tensors = {k: v for k, v in tensors.items() if not any(part in k for part in less)}
    tensors |= {key: TensorInfo("F32", (1,), 0, 4) for key in more}
    with pytest.raises(CheckpointError, match="unexpected tensor") as error:
        detect_layout(tensors)
    assert all(word in str(error.value) for word in words)


def test_the_gate_is_fc1_and_the_up_projection_fc3():
    layout = layout_named("transformers")
    assert layout.source_names("trunk.blocks.11.mlp.fc1.weight") == (
        "encoder.layers.11.ffn.gate_proj.weight",
    )
    assert layout_named("timm").source_names("trunk.blocks.3.mlp.fc3.weight") == (
        "blocks.3.mlp.fc1_x.weight",
    )


def test_query_key_and_value_are_joined_in_this_order():
    names = layout_named("transformers").source_names("trunk.blocks.0.attn.qkv.weight")
    assert [name.split(".")[4] for name in names] == ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize(
    "key",
    [
        "head.cls_token",
        "trunk.blocks.0.attn.qkv.bias",
        "trunk.blocks.00.norm_1.weight",
        "trunk.blocks.-1.norm_1.weight",
        "trunk.blocks.12345.norm_1.weight",
        "trunk.blocks.{i}.norm_1.weight",
        "trunk.blocks.\u0661.norm_1.weight",
        "model.trunk.blocks.0.norm_1.weight",
        "trunk.blocks.0.norm_1.weight\n",
        "trunk.blocks.0.norm_1.weight.0",
    ],
)
def test_a_key_that_no_rule_knows_stops_loading_and_is_named(key: str):
    tensors = published("vision_absolute", "ml_aim_torch")
    tensors[key] = ("F32", np.zeros(1, np.float32))
    with pytest.raises(CheckpointError, match="unexpected tensor") as error:
        detect_layout(infos(tensors))
    assert ascii(key) in str(error.value)


@pytest.mark.parametrize("other", ["transformers", "timm"])
def test_tensors_of_two_layouts_are_refused_naming_both(other: str):
    tensors = published("vision_absolute", "ml_aim_mlx")
    name, tensor = next(iter(published("vision_absolute", other).items()))
    with pytest.raises(CheckpointError, match=f"two layouts.*ml-aim-mlx.*{other}"):
        detect_layout(infos(tensors | {name: tensor}))


def test_tensors_of_a_vision_encoder_and_a_lit_model_are_refused():
    tensors = published("lit", "transformers")
    tensors["rms_norm.weight"] = ("F32", np.zeros(64, np.float32))
    with pytest.raises(CheckpointError, match="two layouts"):
        detect_layout(infos(tensors))


@pytest.mark.parametrize("keys", [[], ["weight"], ["model.layers.0.self_attn.q_proj.weight"]])
def test_weights_of_another_model_are_refused(keys: list[str]):
    with pytest.raises(CheckpointError):
        detect_layout({key: TensorInfo("F32", (1,), 0, 4) for key in keys})


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_a_joined_tensor_that_lacks_a_part_is_refused_naming_the_part(part: str):
    tensors = published("vision_absolute", "transformers")
    del tensors[f"encoder.layers.1.attention.{part}.weight"]
    with pytest.raises(CheckpointError, match=f"missing tensor .*layers.1.attention.{part}"):
        plan(layout_named("transformers"), tensors)


def test_parts_of_unequal_shapes_are_not_joined_though_their_sum_fits():
    tensors = published("vision_absolute", "transformers")
    step = next(s for s in plan(layout_named("transformers"), tensors) if s.operation == "join")
    with pytest.raises(CheckpointError, match="wrong shape"):
        shape_in_ours(step, [(65, 64), (63, 64), (64, 64)])


def test_a_patch_conv_that_can_be_read_in_two_ways_is_refused():
    tensors = infos(published("vision_native_5x3", "ml_aim_mlx"))
    key = "preprocessor.patchifier.proj.weight"
    tensors[key] = TensorInfo("F32", (64, 3, 3, 3), 0, 4 * 64 * 27)
    with pytest.raises(CheckpointError, match="two ways"):
        detect_layout(tensors)


@pytest.mark.parametrize("shape", [(64, 14, 14), (64, 14, 3, 14), (64, 4, 14, 14), (64, 588)])
def test_a_patch_conv_of_no_known_orientation_is_refused(shape: tuple[int, ...]):
    tensors = infos(published("vision_native_5x3", "ml_aim_mlx"))
    tensors["preprocessor.patchifier.proj.weight"] = TensorInfo("F32", shape, 0, 4)
    with pytest.raises(CheckpointError, match="wrong shape"):
        detect_layout(tensors)


def test_a_tensor_that_is_not_ours_has_no_other_name():
    layout = layout_named("timm")
    assert layout.source_names("something.else") == ()
    with pytest.raises(CheckpointError):
        from_ours(layout, "something.else", np.zeros(1))
    with pytest.raises(CheckpointError, match="layout must be one of"):
        layout_named("timm", "lit")
