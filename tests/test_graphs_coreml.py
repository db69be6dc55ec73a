"""Core ML packages: the files, evaluated in numpy operation by operation, against MLX."""

import importlib
import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from aim_mlx.errors import UsageError
from aim_mlx.graphs.coreml import check, run, run_packed, write
from aim_mlx.graphs.coreml_ops import packed
from aim_mlx.graphs.graph import Graph
from aim_mlx.loading import load_lit
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.words.zeroshot import ZeroShotHead
from tests.coreml_imports import coremltools
from tests.mil import Package
from tests.small import AIMV1, NATIVE, encoder, save_lit
from tests.test_graphs_forward import probe

# Ten times what was seen of all kinds with four of OpenBLAS's kernels, over three blocks.
CLOSE = 2e-5  # float32
COSINE = 1 - 3e-5  # float16, its sums rounded once and after every 16 summands
COSINE_OF_8_BITS = 0.998

LABELS = ["a cat", "a dog", "the sea"]


def calm_probe(**options) -> AttentiveProbe:
    """A probe with logits as small as trained ones: a softmax of fifties magnifies errors."""
    made = probe(encoder(), **options)
    made.head.linear.weight *= 0.05
    return made


KINDS = {
    "embedding": lambda lit: (encoder(), {}),
    "tokens": lambda lit: (encoder(), {"head": "tokens"}),
    "AIMv1": lambda lit: (encoder(AIMV1), {"head": "tokens"}),
    "native, one size": lambda lit: (encoder(NATIVE), {"size": (56, 56)}),
    "native, another": lambda lit: (encoder(NATIVE), {"head": "tokens", "size": (42, 98)}),
    "LiT image": lambda lit: (lit, {}),
    "LiT text": lambda lit: (lit, {"head": "text"}),
    "LiT labels": lambda lit: (lit, {"head": ZeroShotHead.build(lit, LABELS)}),
    "probe": lambda lit: (
        encoder(),
        {"head": calm_probe(heads=2, queries=3, kind="coca", batch_norm=True)},
    ),
    "probe of blocks": lambda lit: (
        encoder(),
        {"head": calm_probe(layers=(0, -2), multi_label=True, heads=2)},
    ),
    "probe of maxima": lambda lit: (encoder(), {"head": calm_probe(kind="max")}),
}


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    return load_lit(save_lit(tmp_path_factory.mktemp("lit") / "lit"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.mlpackage"


def given(x: np.ndarray) -> np.ndarray:
    """An input as Core ML takes it."""
    return x if x.dtype == np.int32 else x.astype(np.float32)


def computed(graph: Graph, package: Package, function: str = "main") -> np.ndarray:
    x = given(graph.sample(graph.functions[function]))
    return package.run(function, **{graph.input_name: x})[graph.output_name]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest of all rows."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return ((a * b).sum(axis=-1) / lengths).min()


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_on_disk_gives_mlxs_numbers(kind, lit, path):
    network, options = KINDS[kind](lit)
    graph = Graph(network, dtype="float32", batches=(2,), **options)
    write(graph, path)
    apart = abs(computed(graph, Package(path)) - graph.expected(graph.sample(2)))
    assert apart.max() < CLOSE, f"{apart.max():.1e}, mean {apart.mean():.1e}"


@pytest.mark.parametrize("kind", KINDS)
def test_in_float16_it_gives_mlxs_directions_however_sums_are_rounded(kind, lit, path):
    network, options = KINDS[kind](lit)
    graph = Graph(network, batches=(2,), **options)
    write(graph, path)
    expected = graph.expected(graph.sample(2))
    wide, narrow = (computed(graph, Package(path, narrow)) for narrow in (False, True))
    assert min(cosine(wide, expected), cosine(narrow, expected)) > COSINE
    assert (wide != narrow).any() and (wide != expected).any()  # or nothing ran in float16


def test_several_functions_share_their_weights_and_need_ios_18(tmp_path):
    network = encoder()
    one, several = Graph(network), Graph(network, batches=(1, 3))
    paths = tmp_path / "one.mlpackage", tmp_path / "several.mlpackage"
    for graph, path in zip((one, several), paths, strict=True):
        write(graph, path)
    packages = [Package(path) for path in paths]
    assert [each.spec.specificationVersion for each in packages] == [7, 9]
    assert set(packages[1].functions) == {"batch_1", "batch_3"}
    assert packages[1].spec.description.defaultFunctionName == "batch_1"
    sizes = [(path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for path in paths]
    assert sizes[0] == sizes[1]
    for name, batch in several.functions.items():
        expected = several.expected(several.sample(batch))
        assert cosine(computed(several, packages[1], name), expected) > COSINE


@pytest.mark.parametrize("batches", [(1,), (1, 2)])
def test_8_bit_weights_keep_the_direction_in_half_the_bytes(batches, tmp_path):
    graph = Graph(encoder(), batches=batches)
    whole, small = tmp_path / "16.mlpackage", tmp_path / "8.mlpackage"
    write(graph, whole)
    write(graph, small, bits=8)
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (small / weights).stat().st_size < 0.65 * (whole / weights).stat().st_size
    inputs = {name: graph.sample(batch) for name, batch in graph.functions.items()}
    for name, mlx in run_packed(graph, inputs).items():
        there = computed(graph, Package(small), name)
        expected = graph.expected(inputs[name])
        assert COSINE_OF_8_BITS < cosine(there, expected) < 1 - 1e-5
        # The one is in float16, the other in float32, on the same weights.
        assert cosine(mlx, there) > COSINE


def test_the_text_towers_table_is_packed_too(lit, path):
    graph = Graph(lit, "text")
    write(graph, path, bits=8)
    gathered = [each for each in Package(path).block().operations if each.type == "gather"]
    sources = {each.outputs[0].name: each.type for each in Package(path).block().operations}
    assert [sources[each.inputs["x"].arguments[0].name] for each in gathered] == [
        "constexpr_affine_dequantize"
    ]
    assert cosine(computed(graph, Package(path)), graph.expected(graph.sample(1))) > (
        COSINE_OF_8_BITS
    )


def test_packed_weights_are_within_half_a_level_and_never_of_tiny_scales():
    weight = np.random.default_rng(0).normal(0, 0.1, (6, 40)).astype(np.float16)
    weight[1], weight[2] = 0, weight[2] * np.float16(1e-4)
    data, scale = packed(weight)
    apart = abs(data * scale.astype(np.float32)[:, None] - weight)
    # The scale is rounded to 11 bits, so that the largest level is off by 127 / 2048 at most.
    assert (apart <= scale.astype(np.float32)[:, None] * 0.57).all()
    assert scale.min() >= np.finfo(np.float16).smallest_normal


def test_a_picture_is_an_input_of_its_own_kind(path):
    graph = Graph(encoder(), dtype="float32")
    write(graph, path, image_input=True)
    x = graph.sample(1)
    got = Package(path).run(image=x[0])["embedding"]
    assert abs(got - graph.expected(x)).max() < CLOSE


def test_with_labels_a_picture_is_classified(lit, path):
    graph = Graph(lit, ZeroShotHead.build(lit, LABELS), "float32")
    write(graph, path, image_input=True)
    x = graph.sample(1)
    got, (expected,) = Package(path).run(image=x[0]), graph.expected(x)
    assert got["label"] == LABELS[expected.argmax()]
    assert list(got["label_probs"]) == LABELS
    np.testing.assert_allclose(list(got["label_probs"].values()), expected, atol=CLOSE)


def test_where_several_labels_may_hold_there_is_no_one_answer(path):
    network = encoder()
    graph = Graph(network, probe(network, multi_label=True, heads=2), "float32")
    write(graph, path, image_input=True)
    assert set(Package(path).run(image=graph.sample(1)[0])) == {"probabilities"}


def test_the_package_says_what_it_is(path):
    network = encoder()
    network.identity["model"] = "aimv2-large-patch14-224"
    graph = Graph(network, probe(network, heads=2))
    write(graph, path)
    about = Package(path).spec.description.metadata
    assert about.shortDescription == "aimv2-large-patch14-224: probabilities"
    assert about.author == "Apple" and about.license
    assert about.versionString.startswith("aim-mlx ")
    assert json.loads(about.userDefined["labels"]) == list("abcde")
    assert about.userDefined["weights"] == network.weights_digest


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    graph = Graph(encoder(), batches=(1, 2))
    contents = []
    for i in range(2):
        path = tmp_path / f"{i}.mlpackage"
        write(graph, path, bits=8)
        files = [each for each in path.rglob("*") if each.is_file()]
        contents.append({each.relative_to(path): each.read_bytes() for each in files})
        write(Graph(encoder(), "tokens"), tmp_path / f"other{i}.mlpackage")
    assert len(contents[0]) == 3 and contents[0] == contents[1]


def test_coremltools_reads_it_and_infers_the_types_that_it_states(lit, path):
    milproto = importlib.import_module("coremltools.converters.mil.frontend.milproto.load")
    write(Graph(lit, "text"), path, bits=8)
    spec = Package(path).spec
    weights = str(path / "Data/com.apple.CoreML/weights")
    program = milproto.load(spec, spec.specificationVersion, weights)
    stated = {
        output.name: [each.constant.size for each in output.type.tensorType.dimensions]
        for op in Package(path).block().operations
        for output in op.outputs
    }
    inferred = {
        output.name: list(output.shape)
        for op in program.functions["main"].operations
        for output in op.outputs
        if output.name in stated  # not the parts of packed weights, which it makes constants of
    }
    assert inferred == stated


def test_a_mac_runs_what_was_written(lit, tmp_path, monkeypatch):
    """With the evaluator in the place of Core ML."""

    class Model:
        def __init__(self, path, function_name=None):
            self._package, self._function = Package(tmp_path / path), function_name or "main"

        def get_spec(self):
            return self._package.spec

        def predict(self, inputs):
            return self._package.run(
                self._function, **{name: np.asarray(x) for name, x in inputs.items()}
            )

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    labels = ZeroShotHead.build(lit, LABELS)
    for graph, options in [
        (Graph(lit, "text", batches=(1, 2)), {}),
        (Graph(lit, labels, "float32"), {"image_input": True}),
    ]:
        path = tmp_path / f"{graph.input_name}.mlpackage"
        write(graph, path, **options)
        inputs = {name: graph.sample(batch) for name, batch in graph.functions.items()}
        outputs = run(graph, path, inputs)
        assert set(outputs) == set(inputs)
        for name, x in inputs.items():
            assert cosine(outputs[name], graph.expected(x)) > COSINE
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.7", ("", "", ""), "arm64"))
    assert run(Graph(lit, "text", batches=(1, 2)), path, {}) == {}


def test_what_core_ml_refuses_is_said_in_its_words(tmp_path, monkeypatch):
    class Model:
        def __init__(self, path, function_name=None):
            raise Exception("the model cannot be compiled")

    monkeypatch.setattr("aim_mlx.graphs.coreml._runs_here", lambda graph: True)
    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    graph = Graph(encoder())
    with pytest.raises(RuntimeError, match="Core ML: the model cannot be compiled"):
        run(graph, tmp_path, {"main": graph.sample(1)})


def test_what_a_package_cannot_be_is_refused(lit):
    graph = Graph(encoder())
    with pytest.raises(UsageError, match="8 or 16 bits, got 4"):
        check(graph, bits=4)
    with pytest.raises(UsageError, match="go with float16"):
        check(Graph(encoder(), dtype="float32"), bits=8)
    with pytest.raises(UsageError, match="takes ids"):
        check(Graph(lit, "text"), image_input=True)
    with pytest.raises(UsageError, match="one picture at a time"):
        check(Graph(encoder(), batches=(2,)), image_input=True)


def test_coremltools_says_nothing_and_is_left_as_it_was(path):
    counts = coremltools.converters.mil.Builder.name_count
    counts["const"] = 3
    before = dict(counts)
    write(Graph(encoder()), path)
    assert dict(counts) == before
    code = (
        "import logging, sys\n"
        "sys.modules |= dict.fromkeys(['sklearn', 'torch', 'transformers'])  # seconds each\n"
        "from aim_mlx.graphs.coreml import _coremltools\n"
        "with _coremltools() as ct: assert ct.__version__\n"
        "assert logging.root.manager.disable == logging.NOTSET"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
