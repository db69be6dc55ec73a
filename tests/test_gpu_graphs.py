"""What can be said of a GPU without one: that it can compute what it is asked, and how often."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aim_mlx
from aim_mlx import self_test
from aim_mlx.backend import mx
from aim_mlx.config import LiTConfig
from aim_mlx.lit_training.config import TEXT_SIZES, TextSize
from aim_mlx.models import layers
from aim_mlx.models.text import TextEncoder
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.probe import chunks
from aim_mlx.probe.config import protocol
from aim_mlx.probe.heads import KINDS
from aim_mlx.probe.training import GridTrainer
from aim_mlx.registry import MODELS
from aim_mlx.weights.quantize import Quantization
from tests.evaluations import watched
from tests.finetuning import digits_in
from tests.finetuning import trainer_of as finetuning
from tests.pretraining import pairs_in
from tests.pretraining import trainer_of as pretraining
from tests.probes import labelled
from tests.small import NATIVE, encoder, photo, save_lit
from tests.test_lit_training import small_trainer
from tests.test_weights_quantize import save as save_quantized

# The graph names of what MLX 0.32 computes on Metal: of the primitives whose eval_gpu, in
# mlx/backend/metal/*.cpp or mlx/backend/gpu/primitives.cpp, does not raise, those to be expected
# here. Reductions are named after what they do.
ON_METAL = set(
    """
    Abs Add AddMM And Arange ArgPartition ArgReduce ArgSort AsStrided AsType BitwiseAnd
    BitwiseInvert BitwiseOr BitwiseXor Broadcast BroadcastAxes Ceil Concatenate Contiguous
    Convolution Copy Cos CustomTransforms Depends Divide DivMod DynamicSlice DynamicSliceUpdate
    Equal Erf ErfInv Exp ExpandDims Expm1 Flatten Floor Full Gather GatherAxis GatherMM GatherQMM
    Greater GreaterEqual LayerNorm LayerNormVJP LeftShift Less LessEqual Log Log1p LogAddExp
    LogicalAnd LogicalNot LogicalOr LogSumExp Matmul Max Maximum Min Minimum Multiply Negative
    NotEqual NumberOfElements Or Pad Partition Power Prod Quantize QuantizedMatmul RandomBits
    Remainder Reshape RightShift RMSNorm RMSNormVJP RoPE Round Rsqrt ScaledDotProductAttention Scan
    Scatter ScatterAxis Select Sigmoid Sign Sin Slice SliceUpdate Softmax Sort Split Sqrt Square
    Squeeze StopGradient Subtract Sum Tan Tanh Transpose Unflatten View
    """.split()
)

# Channels of a head for which mlx/backend/metal/scaled_dot_product_attention.cpp has a fused kernel
# for more than eight queries, and takes it: of 192 and 256 it has one that is slower than none.
FUSED_HEADS = {64, 72, 80, 96, 128}


def embed(folder: Path) -> None:
    images = [photo(seed) for seed in range(3)]
    for pooling in ("mean", "max", "gem"):
        encoder().embed(images, pooling=pooling)
    encoder().embed(images, layers=[0, -1])
    encoder(NATIVE).embed(images)


def embed_packed(folder: Path) -> None:
    aim_mlx.load(save_quantized(folder / "packed", Quantization())).embed([photo(0)])


def words(folder: Path) -> None:
    lit = aim_mlx.load_lit(save_lit(folder / "lit"))
    lit.classify([photo(0)], ["cat", "dog"])
    lit.similarity_map(photo(0), "a cat")
    lit.encode_text([f"a photo of a cat {i}" for i in range(80)])


def probe_of(kind: str) -> Callable[[Path], None]:
    def probe(folder: Path) -> None:
        trainer = probing("fast", head=kind, batch_norm=(False, True))
        while not trainer.history:
            trainer.run_step()
        trainer.best_head()

    return probe


def probing(name: str, **options: Any) -> GridTrainer:
    config = protocol(name, epochs=1, batch_size=16, patience=None, **options)
    return GridTrainer(config, 4, labelled(60, 0), labelled(30, 1), heads=4)


def train_lit(folder: Path) -> None:
    small_trainer().update()


def finetune_of(**options: Any) -> Callable[[Path], None]:
    def finetune(folder: Path) -> None:
        trainer = finetuning(digits_in(folder / "digits", 4), **options)
        trainer.run_step()
        trainer.close()

    return finetune


def pretrain(folder: Path) -> None:
    trainer = pretraining(pairs_in(folder / "pictures"))
    trainer.run_step()
    trainer.close()


WORK = {
    "embed": embed,
    "embed packed": embed_packed,
    "words": words,
    **{f"probe, {kind}": probe_of(kind) for kind in KINDS},
    "lit": train_lit,
    "adapters": finetune_of(),
    "the whole encoder": finetune_of(full=True),
    "pretrain": pretrain,
}


@pytest.fixture(autouse=True)
def small_text(monkeypatch):
    monkeypatch.setitem(TEXT_SIZES, "tiny", TextSize(32, 88, 2, 2, 8_192, 24))


@pytest.mark.parametrize("work", WORK)
def test_metal_has_every_primitive(work, tmp_path):
    with watched() as graphs:
        WORK[work](tmp_path)
    used = set().union(*graphs)
    assert len(used) > 5 and used <= ON_METAL, sorted(used - ON_METAL)


def test_a_primitive_that_metal_lacks_is_seen():
    with watched() as graphs:
        mx.eval(mx.linalg.qr(mx.ones((2, 2)), stream=mx.cpu))
    assert set().union(*graphs) - ON_METAL == {"QRF"}


def dtypes(function: Callable[..., Any], *inputs: mx.array) -> set[mx.Dtype]:
    """Those of every array in the graph of a function."""
    found: set[mx.Dtype] = set()

    def visit(part: dict[str, Any]) -> None:
        arrays = [*part.get("inputs", ()), *part.get("outputs", ())]
        found.update(dtype for _, _, dtype in arrays)

    mx.export_function(visit, function, *inputs)
    return found


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_no_number_is_of_64_bits(dtype, monkeypatch):
    """Metal has none, and an operation on them raises."""
    monkeypatch.setattr(layers, "on_gpu", lambda: True)  # the CPU's own gradients export no graph
    native, text = VisionEncoder(self_test.NATIVE), TextEncoder(self_test.LIT.text)
    for each in (native, text):
        each.set_dtype(dtype)
    ids = self_test.text_ids()

    def of_text(positions: mx.array) -> mx.array:
        text.preprocessor.positional_embedding = positions
        return text(ids).sum()

    pixels = mx.array(self_test.native_image()).astype(dtype)
    found = dtypes(mx.value_and_grad(lambda x: native(x).tokens.sum()), pixels)
    found |= dtypes(mx.value_and_grad(of_text), text.preprocessor.positional_embedding)
    assert dtype in found and mx.float64 not in found


def test_a_number_of_64_bits_is_seen():
    assert mx.float64 in dtypes(lambda x: x.astype(mx.float64) + 1, mx.array([1.0]))


def test_nothing_in_the_package_asks_mlx_for_64_bits():
    sources = list(Path(aim_mlx.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert mx.array(np.zeros(1)).dtype == mx.float32  # whatever NumPy gives
    assert not [path.name for path in sources if re.search(r"mx\.float64", path.read_text())]


@pytest.mark.parametrize("name", MODELS)
def test_attention_of_every_published_model_is_fused(name):
    config = MODELS[name].config
    trunks = [config.vision, config.text] if isinstance(config, LiTConfig) else [config]
    assert {trunk.embed_dim // trunk.num_heads for trunk in trunks} <= FUSED_HEADS


def test_a_batch_is_one_evaluation():
    images = [photo(seed) for seed in range(8)]
    with watched() as graphs:
        encoder().embed(images, batch_size=2)
    assert len(graphs) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["fast", "paper"])
def test_a_step_of_a_probe_waits_at_most_three_times_for_all_heads(name, kind):
    with watched() as graphs:
        trainer, counts = probing(name, head=kind), [len(graphs)]
        for _ in range(2):
            trainer.run_step()
            counts.append(len(graphs))
    waits = np.diff(counts)
    assert 0 < waits.min() and waits.max() <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_on_a_gpu_ends_as_on_a_cpu(kind, monkeypatch):
    """Also where a batch is more than one part, and a head's numbers are not finite."""
    monkeypatch.setattr(chunks, "_GPU_CHUNK", 5 * 9 * 32 * 4)
    states, records = [], []
    for device in (nullcontext, watched):
        with device():
            trainer = probing("fast", head=kind)
            trainer._heads[1].linear.weight *= math.nan
            while not trainer.done:
                trainer.run_step()
            states.append({name: np.array(value) for name, value in trainer.state().items()})
            records.append(trainer.history[0])
    for name in ("train_loss", "val_loss"):
        assert records[1][name] == pytest.approx(records[0][name], abs=1e-4)
    cpu, gpu = states
    assert list(gpu["alive"]) == [1, 0, 1, 1] and cpu.keys() == gpu.keys()
    for name, value in cpu.items():
        if ".1." not in name:
            np.testing.assert_allclose(gpu[name], value, atol=1e-4, err_msg=name)


def test_a_step_of_lit_training_waits_twice():
    trainer = small_trainer()
    with watched() as graphs:
        trainer.update()
    assert len(graphs) == 2


def test_a_step_of_finetuning_waits_at_most_four_times(tmp_path):
    with watched() as graphs:
        trainer = finetuning(digits_in(tmp_path, 4))
        before = len(graphs)
        trainer.run_step()
        taken = len(graphs) - before
        trainer.close()
    assert 0 < taken <= 4


def test_a_step_of_pretraining_waits_at_most_three_times(tmp_path):
    with watched() as graphs:
        trainer = pretraining(pairs_in(tmp_path))
        before = len(graphs)
        trainer.run_step()
        taken = len(graphs) - before
        trainer.close()
    assert 0 < taken <= 3
