"""Heads of probes in PyTorch files: converted bit for bit, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from aim_mlx.backend import mx
from aim_mlx.errors import CheckpointError
from aim_mlx.probe.head_files import load_head
from aim_mlx.probe.heads import flat
from convert.__main__ import run
from tests.probes import noisy_head, noisy_tokens
from tests.weights_files import DATA, read_tensors

pytestmark = pytest.mark.parity

GOLDEN = DATA / "aimv1_probe"


def published() -> dict[str, Any]:
    """A head's state dict as PyTorch saves it, the counter of its batch norm included."""
    import torch
    from safetensors.torch import load_file

    return load_file(GOLDEN / "head.safetensors") | {"head.bn.num_batches_tracked": torch.tensor(7)}


def convert(tmp_path: Path, content: Any, *options: str) -> tuple[int, Path]:
    import torch

    torch.save(content, tmp_path / "head.pth")
    target = tmp_path / "head.safetensors"
    return run([str(tmp_path / "head.pth"), str(target), *options]), target


def wrapped(kind: str) -> Any:
    """The same head in the ways that scripts save it."""
    state = published()
    return {
        "as published": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": {f"module.{name}": value for name, value in state.items()}},
        "alone": {name.removeprefix("head."): value for name, value in state.items()},
    }[kind]


@pytest.mark.parametrize("kind", ["as published", "state_dict", "model", "alone"])
def test_a_head_becomes_a_file_that_gives_the_reference_logits(kind, tmp_path, capsys):
    code, target = convert(tmp_path, wrapped(kind))
    assert code == 0
    said = capsys.readouterr()
    assert said.out == "" and "64 channels after batch norm to 7 classes" in said.err
    case = safetensors.numpy.load_file(GOLDEN / "io.safetensors")
    tokens = mx.array((case["block_1"] + case["block_2"]) / 2)
    logits = np.array(load_head(target, heads=2)(tokens))
    np.testing.assert_allclose(logits, case["logits"], atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.pth", "head.safetensors"]


@pytest.mark.parametrize("prefix", ["", "head."])
def test_a_head_of_efficient_probing_is_known_by_its_numbered_layers(prefix, tmp_path, capsys):
    import torch

    ours = noisy_head(kind="ep", queries=4, batch_norm=True)
    ours.eval()
    numbers = {"bn": "1", "linear": "2"}
    state = {"1.num_batches_tracked": torch.tensor(7)}
    for name, value in flat(ours.parameters()).items():
        owner, _, rest = name.rpartition(".")
        number = f"{numbers[owner]}.{rest}" if owner in numbers else f"0.{name}"
        state[number] = torch.from_numpy(np.array(value))
    state = {f"{prefix}{name}": value for name, value in state.items()}
    code, target = convert(tmp_path, {"state_dict": state, "meta": {"arch": "L", "epoch": 89}})
    assert code == 0 and "the ep head of a probe, 32 channels" in capsys.readouterr().err
    tokens = mx.array(noisy_tokens())
    np.testing.assert_array_equal(np.array(load_head(target)(tokens)), np.array(ours(tokens)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_tensor_keeps_its_bits_and_the_file_says_where_it_came_from(dtype, tmp_path):
    import torch

    state = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in published().items()
    }
    code, target = convert(tmp_path, state)
    assert code == 0
    found = read_tensors(target)
    assert found.keys() == state.keys()
    for name, value in state.items():
        bits = value.reshape(-1).view(torch.uint8).numpy()
        assert found[name][1].tobytes() == bits.tobytes(), name
    with safetensors.safe_open(target, "numpy") as file:
        facts = file.metadata()
    assert facts["source"] == "head.pth" and len(facts["source_sha256"]) == 64
    assert facts["torch"] == str(torch.__version__)


def changes() -> dict[str, tuple[Any, str]]:
    """Files that are no head, and what is said of each."""
    import torch

    state = published()
    without = {name: value for name, value in state.items() if name != "head.v.weight"}
    nan = state["head.k.weight"] * torch.nan
    small = state["head.k.weight"][:3].clone()
    return {
        "missing": (without, "head.pth: missing tensor head.v.weight"),
        "bias": (state | {"head.k.bias": torch.zeros(64)}, "unexpected tensor 'head.k.bias'"),
        "encoder": ({"trunk.x": torch.zeros(2)}, "holds 'trunk.x'.* name a folder as DST"),
        "both": (state | {"trunk.x": torch.zeros(2)}, "holds 'trunk.x'"),
        "nan": (state | {"head.k.weight": nan}, "head.pth: head.k.weight holds NaN"),
        "shape": (state | {"head.k.weight": small}, "head.k.weight: expected floats of shape"),
        "int64": (state | {"head.k.weight": state["head.k.weight"].long()}, "got int64"),
        "list": ([1, 2], "holds a list of 2"),
    }


KINDS = ["missing", "bias", "encoder", "both", "nan", "shape", "int64", "list"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_exactly_a_head_is_refused_and_nothing_is_written(kind, tmp_path, capsys):
    content, message = changes()[kind]
    code, _ = convert(tmp_path, content)
    said = capsys.readouterr().err
    assert code == 4 and said.count("\n") == 1
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(said)
    assert [p.name for p in tmp_path.iterdir()] == ["head.pth"]


def test_a_head_is_replaced_only_where_that_is_said(tmp_path):
    assert convert(tmp_path, published())[0] == 0
    state = published()
    state["head.linear.weight"] = state["head.linear.weight"] * 2
    assert convert(tmp_path, state)[0] == 5
    code, target = convert(tmp_path, state, "--overwrite")
    found = read_tensors(target)["head.linear.weight"][1]
    assert code == 0 and found.tobytes() == state["head.linear.weight"].numpy().tobytes()


def test_a_folder_as_destination_is_answered_with_a_file_name(tmp_path, capsys):
    convert(tmp_path, published())
    assert run([str(tmp_path / "head.pth"), str(tmp_path / "out")]) == 4
    assert "such as head.safetensors, in place of the folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_counter_of_a_batch_norm_is_a_heads_and_no_encoders(tmp_path, capsys):
    import torch
    from safetensors.torch import load_file

    folder = DATA / "vision_absolute" / "ml_aim_torch"
    state = load_file(next(folder.glob("*.safetensors")))
    torch.save(state | {"bn.num_batches_tracked": torch.tensor(7)}, tmp_path / "model.pth")
    assert run([str(tmp_path / "model.pth"), str(tmp_path / "out")]) == 4
    assert "'bn.num_batches_tracked'" in capsys.readouterr().err
