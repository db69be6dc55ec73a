"""The conversion tool with torch: what it reads and refuses, and that --verify finds faults."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.errors import CheckpointError
from aim_mlx.models import layers
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.rules import Rule
from convert.__main__ import run
from convert.conversion import convert
from convert.source import open_source
from convert.verify import verify
from tests.weights_files import DATA, read_tensors, weight_file, write_tensors

pytestmark = pytest.mark.parity

LAYOUTS = [
    f"{case}/{layout}"
    for case, layouts in {
        "vision_absolute": ("ml_aim_mlx", "ml_aim_torch", "timm", "transformers"),
        "vision_native_5x3": ("ml_aim_mlx", "ml_aim_torch", "transformers"),
        "lit": ("transformers",),
    }.items()
    for layout in layouts
]
CASE = "vision_absolute/transformers"


def state_dict(case: str = CASE) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(weight_file(DATA / case))


def source(tmp_path: Path, content: Any, name: str = "model.pth", case: str = CASE) -> Path:
    """A PyTorch file beside the JSON files of a reference case."""
    import torch

    folder = tmp_path / "in"
    folder.mkdir()
    for path in (DATA / case).glob("*.json"):
        shutil.copy(path, folder)
    torch.save(content, folder / name)
    return folder / name


def sharded(tmp_path: Path, case: str = CASE, **changes: str) -> Path:
    """A folder of two .bin shards with an index, `changes` of which are wrong."""
    import torch

    items = list(state_dict(case).items())
    shards = {f"pytorch_model-{i + 1:05}-of-00002.bin": dict(items[i::2]) for i in range(2)}
    folder = source(tmp_path, {}, "unused.pth", case).parent
    (folder / "unused.pth").unlink()
    weight_map = {}
    for name, part in shards.items():
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map | changes}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def refusal(path: Path, tmp_path: Path, capsys) -> str:
    """The one line that a source is refused with, at exit code 4, nothing being left behind."""
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert run([str(path), str(tmp_path / "out")]) == 4
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert "weights_only" not in output.err, (
        "torch's advice to read without protection is kept back"
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    return output.err


def assert_same_as_ours(folder: Path, case: str) -> None:
    """The folder holds, bit for bit, the tensors of the case's file in our own names."""
    expected = read_tensors(weight_file(DATA / case.split("/")[0] / "ml_aim_mlx"))
    found = read_tensors(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, (dtype, values) in expected.items():
        assert found[name][0] == dtype
        np.testing.assert_array_equal(found[name][1], values, err_msg=name)


# What is read


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_becomes_ours_bit_for_bit(case, name, tmp_path):
    path = source(tmp_path, state_dict(case), name, case)
    folder = convert(path, tmp_path / "out")
    assert_same_as_ours(folder, case)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    assert open_checkpoint(folder).preprocess == open_checkpoint(DATA / case).preprocess


def test_a_folder_with_pytorch_model_bin_is_a_source(tmp_path):
    path = source(tmp_path, state_dict(), "pytorch_model.bin")
    assert_same_as_ours(convert(path.parent, tmp_path / "out"), CASE)


@pytest.mark.parametrize("case", ["vision_absolute", "vision_native_5x3"])
def test_bfloat16_keeps_its_bits(case, tmp_path):
    path = source(tmp_path, state_dict(f"{case}/transformers_bf16"), case=f"{case}/transformers")
    folder = convert(path, tmp_path / "out")
    assert open_checkpoint(folder).dtype == "bfloat16"
    expected = convert(DATA / case / "transformers_bf16", tmp_path / "safe")
    for name, (dtype, bits) in read_tensors(expected / "model.safetensors").items():
        found = read_tensors(folder / "model.safetensors")[name]
        assert found[0] == dtype == "BF16"
        np.testing.assert_array_equal(found[1], bits)


def test_shards_become_one_file(tmp_path):
    assert_same_as_ours(convert(sharded(tmp_path), tmp_path / "out"), CASE)


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_state_dict_may_stand_beside_plain_values_and_behind_prefixes(wrapper, tmp_path):
    weights = {f"module._orig_mod.{name}": value for name, value in state_dict().items()}
    path = source(tmp_path, {wrapper: weights, "epoch": 3, "arch": "aimv2", "note": None})
    folder = convert(path, tmp_path / "out")
    assert_same_as_ours(folder, CASE)
    assert open_checkpoint(folder).provenance["prefix_removed"] == "module._orig_mod."


def test_parameters_and_views_of_one_storage_are_read(tmp_path):
    import torch

    weights: dict[str, Any] = {n: torch.nn.Parameter(v) for n, v in state_dict().items()}
    thirds = torch.cat([weights[f"encoder.layers.0.attention.{p}_proj.weight"] for p in "qkv"])
    for part, view in zip("qkv", thirds.detach().chunk(3), strict=True):
        weights[f"encoder.layers.0.attention.{part}_proj.weight"] = view
    gate = weights["encoder.layers.0.ffn.gate_proj.weight"].detach().T.contiguous().T
    weights["encoder.layers.0.ffn.gate_proj.weight"] = gate
    assert_same_as_ours(convert(source(tmp_path, weights), tmp_path / "out"), CASE)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count what is mapped")
def test_a_file_may_be_larger_than_the_memory(tmp_path):
    """A file of 64 MB where a process may have 32 MB more than it has."""
    import torch

    path = source(tmp_path, {"x": torch.ones(1 << 24)})
    lines = """if True:
        import re, resource, sys
        from pathlib import Path
        from convert.tensors import read_torch_file, require_torch

        require_torch()
        has = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        resource.setrlimit(resource.RLIMIT_DATA, ((has << 10) + (32 << 20),) * 2)
        print(read_torch_file(Path(sys.argv[1]))["x"][-1].item())
    """
    command = [sys.executable, "-c", lines, path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr


def test_the_record_names_file_digest_torch_and_layout_but_no_place(tmp_path):
    import torch

    folder = convert(source(tmp_path, state_dict("vision_absolute/timm")), tmp_path / "out")
    history = open_checkpoint(folder).provenance
    assert history["source"] == "model.pth" and history["layout"] == "timm"
    assert history["format"] == "pytorch" and history["torch"] == str(torch.__version__)
    assert len(history["files"][0]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(history)


# What is refused


class Payload:
    """Unpickled as a call of os.system."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", ["value", "inside", "alone"])
def test_code_in_a_pickle_never_runs_and_is_named(where, tmp_path, capsys):
    marker = tmp_path / "ran"
    payload: Any = Payload(marker)
    content = {"value": state_dict() | {"x": payload}, "inside": {"model": {"x": payload}}}
    path = source(tmp_path, content.get(where, payload))
    assert f"it needs '{os.system.__module__}.system'" in refusal(path, tmp_path, capsys)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_never_reaches_an_unpickler(protocol, tmp_path, capsys, monkeypatch):
    import torch

    marker = tmp_path / "ran"
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({"x": Payload(marker)}, protocol))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    refusal(path, tmp_path, capsys)
    assert not marker.exists()


def test_whole_models_and_old_archives_are_refused(tmp_path, capsys):
    import torch

    path = source(tmp_path, torch.nn.Linear(2, 2))
    assert "it needs 'torch.nn.modules.linear.Linear'" in refusal(path, tmp_path, capsys)
    torch.save(state_dict(), path, _use_new_zipfile_serialization=False)
    assert "older than PyTorch 1.6" in refusal(path, tmp_path, capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list of 2: expected a dict of tensors"),
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors"),
        ({"model": {"x": 1.5}}, "'x' in .* is a value of type float"),
        ({"net": {"x": 1.5}}, "'net' in .* is a dict with the keys 'x': expected a tensor"),
        ({"model": {"a": 1}, "optimizer": {"b": 2}}, "holds 'optimizer' .* beside 'model'"),
        ({"model": {"a": 1}, "state_dict": {"b": 2}}, "holds 'state_dict' .* beside 'model'"),
        ({7: 1.5}, "expected names as keys, got 7"),
    ],
)
def test_a_structure_that_is_not_documented_is_named(content, said, tmp_path, capsys):
    line = refusal(source(tmp_path, content), tmp_path, capsys)
    with pytest.raises(CheckpointError, match=said):
        raise CheckpointError(line)


def bad_tensors() -> dict[str, tuple[Any, str]]:
    """Tensors that no sound checkpoint holds, and what is said of each."""
    import torch

    shared = torch.zeros(8)
    return {
        "expanded": (
            torch.zeros(1).expand(2**20, 2**20),
            "expected 1099511627776 elements .* 1 th",
        ),
        "partly expanded": (torch.zeros(64, 1).expand(64, 64), "expected 4096 elements .* 64 that"),
        "shared": ((shared, shared), "share memory"),
        "overlapping": ((shared[:5], shared[4:]), "share memory"),
        "float64": (torch.zeros(4, dtype=torch.float64), "expected dtype float32, .* got float64"),
        "int64": (torch.zeros(4, dtype=torch.int64), "got int64"),
        "sparse": (torch.eye(4).to_sparse(), "expected dense weights, got torch.sparse_coo"),
        "meta": (torch.empty(4, device="meta"), "expected dense weights, got .* meta"),
    }


KINDS = ["expanded", "partly expanded", "shared", "overlapping", "float64", "int64", "sparse"]


@pytest.mark.parametrize("kind", [*KINDS, "meta"])
def test_a_tensor_that_is_not_its_own_dense_floats_is_refused_by_name(kind, tmp_path, capsys):
    values, said = bad_tensors()[kind]
    values = values if isinstance(values, tuple) else (values,)
    content = state_dict() | {f"odd.{i}": value for i, value in enumerate(values)}
    line = refusal(source(tmp_path, content), tmp_path, capsys)
    assert "'odd.0'" in line
    with pytest.raises(CheckpointError, match=said):
        raise CheckpointError(line)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name_and_file(value, tmp_path, capsys):
    weights = state_dict()
    weights["rms_norm.weight"][3] = value
    line = refusal(source(tmp_path, weights), tmp_path, capsys)
    assert "'rms_norm.weight'" in line and "in/model.pth holds NaN or infinity" in line


def test_a_size_in_the_pickle_cannot_reach_past_the_file(tmp_path, capsys):
    """The numbers of elements are edited in the pickle, checksums renewed."""
    import torch

    path = source(tmp_path, state_dict() | {"odd": torch.zeros(4, 5)})
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records.items():
            if name.endswith("data.pkl"):
                assert b"K\x04K\x05" in data
                data = data.replace(b"K\x04K\x05", b"K\xffK\xff")
            new.writestr(name, data)
    assert "cannot be read as weights only" in refusal(path, tmp_path, capsys)


def test_missing_and_foreign_tensors_are_refused_as_everywhere(tmp_path, capsys):
    weights = state_dict()
    del weights["rms_norm.weight"]
    path = source(tmp_path, weights)
    assert "missing tensor 'rms_norm.weight'" in refusal(path, tmp_path, capsys)
    import torch

    torch.save(state_dict() | {"classifier.weight": torch.zeros(2)}, path)
    assert "unexpected tensor 'classifier.weight'" in refusal(path, tmp_path, capsys)


def test_messages_name_the_config_beside_the_source(tmp_path, capsys):
    path = source(tmp_path, state_dict())
    config = path.parent / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 7}))
    assert f"{config} states num_blocks 7" in refusal(path, tmp_path, capsys)


@pytest.mark.parametrize("shard", ["../a.bin", "/tmp/a.bin", "sub/a.bin", ".a.bin", "a.pkl"])
def test_shards_outside_the_folder_are_refused(shard, tmp_path, capsys):
    folder = sharded(tmp_path, **{"rms_norm.weight": shard})
    assert "expected the name of a .bin file" in refusal(folder, tmp_path, capsys)


def test_shards_must_be_what_the_index_says(tmp_path, capsys):
    import torch

    folder = sharded(tmp_path, ghost="pytorch_model-00001-of-00002.bin")
    assert "puts tensor 'ghost'" in refusal(folder, tmp_path, capsys)
    second = folder / "pytorch_model-00002-of-00002.bin"
    torch.save(state_dict(), second)
    assert "is in two shards" in refusal(folder, tmp_path, capsys)
    second.unlink()
    assert "missing shard" in refusal(folder, tmp_path, capsys)
    (tmp_path / "elsewhere.bin").write_bytes(b"x")
    second.symlink_to(tmp_path / "elsewhere.bin")
    assert "is a link that leaves" in refusal(folder, tmp_path, capsys)


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    path = source(tmp_path, state_dict())
    with pytest.raises(CheckpointError, match="changed while it was converted"):
        with open_source(path, tmp_path):
            os.utime(path, (1, 1))


# What is verified


@pytest.mark.parametrize("case", LAYOUTS)
def test_verify_passes_within_the_bar_for_every_block(case, tmp_path, capsys):
    path = source(tmp_path, state_dict(case), case=case)
    assert run([str(path), str(tmp_path / "out"), "--verify"]) == 0
    assert capsys.readouterr().out.startswith("PASS: float32 differs from PyTorch by")
    values = json.loads((tmp_path / "out.parity.json").read_text())
    outputs = values["comparisons"][0]["outputs"]
    blocks = open_checkpoint(DATA / case).vision.num_blocks
    names = [*(f"block {i}" for i in range(blocks)), "final tokens"]
    assert [output["name"] for output in outputs] == names
    # 4e-6 when this was written; the cases' activations are near one.
    assert all(output["of_bar"] < 1 and output["largest"] < 1e-4 for output in outputs)
    assert min(values["comparisons"][0]["cosines"]) > 1 - 1e-9
    assert values["verdict"] in (tmp_path / "out.parity.md").read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_verify_measures_the_narrow_dtype_too(dtype, tmp_path):
    path = source(tmp_path, state_dict())
    report = tmp_path / "parity.md"
    arguments = [str(path), str(tmp_path / "out"), "--dtype", dtype, "--verify"]
    assert run([*arguments, "--report", str(report)]) == 0
    exact, rough = json.loads(report.with_suffix(".json").read_text())["comparisons"]
    assert (exact["dtype"], rough["dtype"]) == ("float32", dtype)
    # Eight or eleven bits of mantissa: a part in 256 or 2048 at each of some dozen roundings.
    assert 0.99 < min(rough["cosines"]) < min(exact["cosines"])
    assert (
        max(o["of_bar"] for o in exact["outputs"]) < 1 < max(o["of_bar"] for o in rough["outputs"])
    )


def swapped(name: str) -> str:
    """fc1 and fc3 have the same shape: only numbers show which is which."""
    return name.replace("fc1", "?").replace("fc3", "fc1").replace("?", "fc3")


def test_verify_finds_gate_and_up_swapped_in_the_layout_table(tmp_path, capsys, monkeypatch):
    steps = Checkpoint.steps

    def wrong(self: Checkpoint) -> list[Rule]:
        if self.layout != "transformers":
            return steps(self)
        return [Rule(swapped(s.ours), s.sources, s.operation) for s in steps(self)]

    monkeypatch.setattr(Checkpoint, "steps", wrong)
    path = source(tmp_path, state_dict())
    assert run([str(path), str(tmp_path / "out"), "--verify"]) == 4
    output = capsys.readouterr()
    assert output.out == "" and "error: FAIL: float32 differs" in output.err
    assert json.loads((tmp_path / "out.parity.json").read_text())["passed"] is False


def test_verify_finds_gate_and_up_swapped_in_the_network(tmp_path, capsys, monkeypatch):
    def wrong(self, x):
        return self.fc2(layers.gated(self.fc3(x), self.fc1(x)))

    monkeypatch.setattr(layers.SwiGLU, "__call__", wrong)
    path = source(tmp_path, state_dict("vision_absolute/timm"), case="vision_absolute/timm")
    assert run([str(path), str(tmp_path / "out"), "--verify"]) == 4
    assert "over the bar" in capsys.readouterr().err


def test_verify_finds_gate_and_up_swapped_in_the_written_file(tmp_path):
    path = source(tmp_path, state_dict())
    folder = convert(path, tmp_path / "out", "bfloat16")
    tensors = read_tensors(folder / "model.safetensors")
    renamed = {swapped(n) if ".0.mlp" in n else n: value for n, value in tensors.items()}
    write_tensors(folder / "model.safetensors", renamed)
    with open_source(path, tmp_path) as opened:
        found = verify(opened, folder)
    assert not found.passed
    assert sorted(found.changed) == [f"trunk.blocks.0.mlp.fc{i}.weight" for i in (1, 3)]


def test_a_report_is_never_replaced_unasked(tmp_path, capsys):
    path = source(tmp_path, state_dict())
    (tmp_path / "out.parity.md").write_text("mine")
    assert run([str(path), str(tmp_path / "out"), "--verify"]) == 5
    assert "exists: choose another --report" in capsys.readouterr().err
    assert (tmp_path / "out.parity.md").read_text() == "mine" and not (tmp_path / "out").exists()
