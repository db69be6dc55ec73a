"""`aim-mlx export-model`: what it writes is compared with MLX, whole, or not there."""

import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.cli import main as cli
from aim_mlx.errors import OutputError
from aim_mlx.graphs import export, mlxfn
from aim_mlx.graphs.export import export_model
from aim_mlx.loading import load, load_lit
from aim_mlx.weights.convert import convert_checkpoint
from aim_mlx.weights.quantize import Quantization
from aim_mlx.words.zeroshot import ZeroShotHead
from tests.full_disk import full_from
from tests.small import NATIVE, SMALL, photo, save, save_lit
from tests.test_graphs_forward import probe
from tests.weights_files import read_tensors, write_tensors

SMALLER = replace(SMALL, num_blocks=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def lit_model(tmp_path_factory):
    return save_lit(tmp_path_factory.mktemp("lit") / "lit")


@pytest.fixture(params=[".mlxfn", ".aimodel"])
def suffix(request):
    """Every format that can be written and run here."""
    if request.param == ".aimodel":
        pytest.importorskip("coreai", reason="extra 'coreai' is not installed")
    return request.param


def embedded(path: Path, x: np.ndarray) -> np.ndarray:
    read: Any = mx.import_function(str(path))
    return np.array(read(mx.array(x))[0])


def test_the_file_has_the_encoders_embedding_for_each_batch_size(model, tmp_path, suffix):
    done = export_model(model, tmp_path / f"a{suffix}", dtype="float32", batches=(1, 3))
    assert done.functions == {"batch_1": 1, "batch_3": 3}
    # Ten times the largest difference seen with any of OpenBLAS's kernels.
    assert done.difference is not None and done.difference < 5e-6
    weights = (model / "model.safetensors").stat().st_size
    assert done.bytes < 1.2 * weights  # once for both functions


def test_float16_is_the_default_and_takes_half_the_bytes(model, tmp_path, suffix):
    done = export_model(model, tmp_path / f"a{suffix}")
    assert done.dtype == "float16" and done.cosine is not None and done.cosine > 0.9999
    assert done.bytes < 0.7 * (model / "model.safetensors").stat().st_size


def test_a_native_model_is_written_at_two_sizes(tmp_path, suffix):
    model = save(tmp_path / "native", NATIVE)
    for size in [(56, 56), (42, 98)]:
        path = tmp_path / f"{size[0]}{suffix}"
        done = export_model(model, path, head="tokens", dtype="float32", size=size)
        # Tokens are of size one to three, three times the numbers of an embedding.
        assert done.difference is not None and done.difference < 2e-5


def test_both_towers_of_a_lit_model_and_its_labels_are_written(lit_model, tmp_path, suffix):
    labels = ZeroShotHead.build(load_lit(lit_model), ["a cat", "a dog"]).save(tmp_path / "labels")
    for head in ("embedding", "text", str(labels)):
        path = tmp_path / f"{Path(head).name}{suffix}"
        done = export_model(lit_model, path, head=head, dtype="float32")
        assert done.difference is not None and done.difference < 1e-5


def test_a_probe_on_top_is_written_with_its_classes(model, tmp_path, suffix):
    folder = probe(load(model), heads=2, batch_norm=True).save(tmp_path / "probe")
    done = export_model(model, tmp_path / f"a{suffix}", head=str(folder), dtype="float32")
    assert done.difference is not None and done.difference < 1e-5
    done = export_model(model, tmp_path / f"half{suffix}", head=str(folder))
    assert done.dtype == "float16" and done.cosine is not None and done.cosine > 0.9999


def test_a_quantised_model_is_written_unpacked(model, tmp_path):
    convert_checkpoint(model, tmp_path / "q", quantization=Quantization(8, 32), compare=False)
    done = export_model(tmp_path / "q", tmp_path / "a.mlxfn", dtype="float32")
    assert done.difference is not None and done.difference < 5e-6
    x = photo(1, 56, 56)[None]
    apart = abs(embedded(tmp_path / "a.mlxfn", x) - load(model).embed([x[0]])).max()
    assert 1e-4 < apart < 0.05  # of the quantised weights


def test_the_command_says_how_it_differs_and_who_reads_it(model, tmp_path, capsys):
    assert cli._run(["export-model", str(model), str(tmp_path / "a.mlxfn"), "--json"]) == 0
    out, err = capsys.readouterr()
    (record,) = map(json.loads, out.splitlines())
    assert record["event"] == "summary" and record["cosine"] > 0.9999
    assert "lowest cosine 1.0000" in err and "mlx-swift 0.31.6" in err
    assert os.listdir(tmp_path) == ["a.mlxfn"]


def test_memory_holds_the_network_but_once(tmp_path, monkeypatch):
    """While the file is written the encoder's weights are gone, but for the tensor at hand."""
    model, held = save(tmp_path / "model"), []
    write = mlxfn.write

    def watched(graph, path):
        parameters = dict(tree_flatten(graph.encoder.model.parameters()))
        held.append(sum(each.nbytes for each in parameters.values()))
        write(graph, path)

    monkeypatch.setattr(mlxfn, "write", watched)
    export_model(model, tmp_path / "a.mlxfn")
    assert held == [0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.onnx"], 2, "a name with .aimodel, .mlpackage, .mlxfn, got 'a.onnx'"),
        (["no/a.mlxfn"], 5, "is not a folder: make it"),
        (["a.mlxfn", "--head", "cls"], 2, "the folder of a probe or of saved labels"),
        (["a.mlxfn", "--head", "text"], 2, "no text tower"),
        (["a.mlxfn", "--dtype", "int8"], 2, "float16 or float32"),
        (["a.mlxfn", "--batch", "1,x"], 2, "whole numbers such as 1,2"),
        (["a.mlxfn", "--size", "56"], 2, "such as 336x448"),
        (["a.mlxfn", "--size", "28x28"], 2, "leave out the size"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    model, tmp_path, capsys, monkeypatch, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    assert cli._run(["export-model", str(model), *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and os.listdir(tmp_path) == []


def test_a_probe_of_another_encoder_is_refused(model, tmp_path, capsys):
    other = save(tmp_path / "other", SMALLER)
    folder = str(probe(load(model), heads=2).save(tmp_path / "probe"))
    target = tmp_path / "a.mlxfn"
    assert cli._run(["export-model", str(other), str(target), "--head", folder]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained on" in line and not target.exists()


def test_a_missing_extra_is_named(model, tmp_path, capsys, monkeypatch):
    found = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == "coreai" else found(name)
    )
    assert cli._run(["export-model", str(model), str(tmp_path / "a.aimodel")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'aim-mlx[coreai]'" in line


def test_what_is_there_is_replaced_only_on_request(model, tmp_path, suffix):
    target = tmp_path / f"a{suffix}"
    export_model(model, target)
    with pytest.raises(OutputError, match="exists: choose another name, or --overwrite"):
        export_model(model, target)
    done = export_model(model, target, dtype="float32", overwrite=True)
    assert done.bytes > 700_000 and os.listdir(tmp_path) == [target.name]


def test_what_a_killed_run_left_is_removed(model, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / f".a.mlxfn.{ended.pid}.aim-mlx.tmp"
    left.mkdir()
    (left / "a.mlxfn").write_bytes(b"half")
    export_model(model, tmp_path / "a.mlxfn")
    assert os.listdir(tmp_path) == ["a.mlxfn"]


def test_what_is_there_stays_where_it_cannot_be_replaced(model, tmp_path, monkeypatch):
    target = tmp_path / "a.mlxfn"
    export_model(model, target)
    before, replace_it = target.read_bytes(), os.replace

    def failing(source, goal):
        if Path(source).name == Path(goal).name:
            raise OSError(errno.EIO, "Input/output error")
        replace_it(source, goal)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        export_model(model, target, dtype="float32", overwrite=True)
    assert target.read_bytes() == before and os.listdir(tmp_path) == ["a.mlxfn"]


def test_something_else_is_never_replaced(model, tmp_path, suffix):
    target = tmp_path / f"a{suffix}"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="choose another name"):
        export_model(model, target, overwrite=True)
    assert (target / "mine.txt").read_text() == "mine"


def test_other_results_than_mlxs_are_an_error_and_no_file(model, tmp_path, monkeypatch):
    run = mlxfn.run

    def wrong(graph, path, inputs):
        return {name: values + 2e-4 for name, values in run(graph, path, inputs).items()}

    monkeypatch.setattr(mlxfn, "run", wrong)
    with pytest.raises(OutputError, match="differs from MLX by 2.0e-04"):
        export_model(model, tmp_path / "a.mlxfn", dtype="float32")
    monkeypatch.setattr(mlxfn, "run", lambda *_: {"main": np.full((1, 64), np.nan)})
    with pytest.raises(OutputError, match="not finite"):
        export_model(model, tmp_path / "a.mlxfn")
    assert os.listdir(tmp_path) == []


def test_without_the_comparison_nothing_is_run(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mlxfn, "run", None)
    arguments = ["export-model", str(model), str(tmp_path / "a.mlxfn"), "--no-compare"]
    assert cli._run(arguments) == 0
    assert "not run;" in capsys.readouterr().err and (tmp_path / "a.mlxfn").is_file()


@pytest.mark.parametrize("room", [1000, 200_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(model, tmp_path, capsys, suffix, room):
    with full_from(room):
        code = cli._run(["export-model", str(model), str(tmp_path / f"a{suffix}")])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 5 and "make room or choose another place" in line
    assert os.listdir(tmp_path) == []


def test_weights_that_float16_does_not_hold_are_refused(tmp_path, capsys):
    file = save(tmp_path / "model") / "model.safetensors"
    tensors = read_tensors(file)
    dtype, weight = tensors["trunk.blocks.1.mlp.fc1.weight"]
    tensors["trunk.blocks.1.mlp.fc1.weight"] = dtype, weight * 1e6
    write_tensors(file, tensors)
    assert cli._run(["export-model", str(file.parent), str(tmp_path / "a.mlxfn")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "overflow in float16: write it in float32" in line
    assert not (tmp_path / "a.mlxfn").exists()
