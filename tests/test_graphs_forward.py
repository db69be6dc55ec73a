"""The forward pass that is written down for apps, against the encoders themselves."""

import numpy as np
import pytest

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.graphs.graph import Graph
from aim_mlx.graphs.ops import MlxOps
from aim_mlx.loading import load_lit
from aim_mlx.probe.heads import Head, HeadConfig
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.tokens.source import token_identity
from aim_mlx.weights.quantize import Quantization, quantize_modules, quantized_names
from aim_mlx.words.zeroshot import ZeroShotHead
from tests.small import AIMV1, NATIVE, SMALL, encoder, save_lit

# float32 rounding over three blocks and a norm is 2e-6 with any of OpenBLAS's kernels.
CLOSE = 2e-5


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    return load_lit(save_lit(tmp_path_factory.mktemp("lit") / "lit"))


def computed(graph: Graph, batch: int, x: np.ndarray | None = None) -> np.ndarray:
    x = graph.sample(batch) if x is None else x
    return np.array(graph.build(MlxOps(), mx.array(x), batch))


def assert_as_expected(graph: Graph, batch: int, close: float = CLOSE) -> None:
    apart = abs(computed(graph, batch) - graph.expected(graph.sample(batch)))
    assert apart.max() < close, f"{apart.max():.1e}, mean {apart.mean():.1e}"


def probe(encoder, layers=(), multi_label=False, **options) -> AttentiveProbe:
    """A head full of noise on an encoder's tokens."""
    head = Head(HeadConfig(encoder.model.config.embed_dim, 5, **options))
    rng = np.random.default_rng(3)
    for module in head.modules():
        for name, value in module.items():
            if isinstance(value, mx.array):
                noise = rng.normal(0, 0.2, value.shape)
                module[name] = mx.array(abs(noise) + 0.5 if name == "running_var" else noise)
    head.eval()
    identity = token_identity(encoder, layers)
    return AttentiveProbe(head, tuple("abcde"), identity, {}, layers, multi_label)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_embedding_is_the_encoders(batch):
    graph = Graph(encoder(), dtype="float32", batches=(batch,))
    pictures = list(graph.sample(batch))
    apart = abs(computed(graph, batch) - graph.encoder.embed(pictures))
    assert apart.max() < CLOSE


def test_the_tokens_are_the_encoders():
    for config in (SMALL, AIMV1):
        assert_as_expected(Graph(encoder(config), "tokens", "float32"), 1)


@pytest.mark.parametrize("size", [(56, 56), (42, 98)])
def test_a_native_model_is_written_at_the_size_that_is_asked_for(size):
    assert_as_expected(Graph(encoder(NATIVE), "tokens", "float32", size=size), 2)


def test_float16_keeps_the_direction():
    graph = Graph(encoder())
    cosine = (computed(graph, 1) * graph.expected(graph.sample(1))).sum()
    assert 0.9999 < cosine < 1 - 1e-9  # not equal, or nothing ran in float16


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 2, "batch_norm": True},
        {"heads": 2, "queries": 3, "bias": False},
        {"heads": 2, "queries": 3, "kind": "coca", "batch_norm": True},
        {"queries": 4, "kind": "ep", "batch_norm": True},
        {"kind": "mean", "batch_norm": True},
        {"kind": "max"},
    ],
)
def test_every_kind_of_probe_gives_its_probabilities(options):
    network = encoder()
    assert_as_expected(Graph(network, probe(network, **options), "float32"), 2)


def test_a_probe_of_other_blocks_with_several_labels_gives_its_probabilities():
    network = encoder()
    head = probe(network, (0, -2), multi_label=True, heads=2)
    graph = Graph(network, head, "float32")
    assert_as_expected(graph, 2)
    assert graph.labels == tuple("abcde") and graph.output_name == "probabilities"


def test_images_and_texts_of_a_lit_model_have_its_vectors(lit):
    assert_as_expected(Graph(lit, dtype="float32"), 2)
    assert_as_expected(Graph(lit, "text", "float32"), 3)


def test_a_text_counts_up_to_its_first_end_token(lit):
    graph = Graph(lit, "text", "float32")
    ids = graph.sample(1)
    end = int((ids[0] == lit.lit.config.text.eos_token_id).argmax())
    other = ids.copy()
    other[0, end + 1 :] = 7
    np.testing.assert_allclose(computed(graph, 1, other), computed(graph, 1, ids), atol=CLOSE)


def test_saved_labels_give_their_scores(lit):
    head = ZeroShotHead.build(lit, ["a cat", "a dog", "the sea"])
    graph = Graph(lit, head, "float32")
    assert_as_expected(graph, 2)
    assert graph.metadata["labels"] == ["a cat", "a dog", "the sea"]


def test_quantised_weights_are_unpacked():
    network, how = encoder(), Quantization(8, 32)
    parameters = dict(tree_flatten(network.model.parameters()))
    shapes = {name: tuple(each.shape) for name, each in parameters.items()}
    packed = encoder()
    packed.identity["quantization"] = vars(how)
    names = quantized_names(shapes, how)
    assert names
    quantize_modules(packed.model, names, how)
    cosine = (computed(Graph(packed, dtype="float32"), 1) * computed(Graph(network), 1)).sum()
    assert 0.999 < cosine
    assert_as_expected(Graph(packed, dtype="float32"), 1)


def test_what_the_model_cannot_do_is_refused(lit):
    network = encoder()
    with pytest.raises(UsageError, match="no text tower"):
        Graph(network, "text")
    with pytest.raises(UsageError, match="one of embedding, tokens, text"):
        Graph(network, "cls")
    with pytest.raises(UsageError, match="leave out the size"):
        Graph(network, size=(28, 28))
    with pytest.raises(UsageError, match="give the size"):
        Graph(encoder(NATIVE))
    with pytest.raises(UsageError, match="multiples of 14"):
        Graph(encoder(NATIVE), size=(28, 30))
    with pytest.raises(UsageError, match="float16 or float32"):
        Graph(network, dtype="bfloat16")
    one = ZeroShotHead.build(lit, ["a cat"], single=True)
    with pytest.raises(UsageError, match="one label"):
        Graph(lit, one)
    for batches in [(), (1, 1), (0,), (2000,)]:
        with pytest.raises(UsageError, match="batch size"):
            Graph(network, batches=batches)


def test_a_head_of_another_model_is_refused(lit):
    with pytest.raises(CheckpointError, match="was trained on"):
        Graph(encoder(SMALL, seed=1), probe(encoder()))
