"""`aim-mlx export-model` to a Core ML package: whole, or not there, and said to be not run."""

import json
import os

import pytest

from aim_mlx.cli import main as cli
from aim_mlx.errors import OutputError
from aim_mlx.graphs import coreml, coreml_ops, export
from aim_mlx.graphs.export import export_model
from tests.coreml_imports import coremltools  # noqa: F401 - without PyTorch
from tests.full_disk import full_from
from tests.mil import Package
from tests.small import photo, save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def without_core_ml(monkeypatch):
    """So that these tests are the same on a Mac."""
    monkeypatch.setattr(coreml, "_runs_here", lambda graph: False)


def exported(model, target, *options: str) -> int:
    return cli._run(["export-model", str(model), str(target), *options])


def test_the_command_says_that_the_package_was_not_run(model, tmp_path, capsys):
    assert exported(model, tmp_path / "a.mlpackage", "--json") == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["ran"] is False and record["difference"] is record["cosine"] is None
    (line,) = err.splitlines()
    assert "not run, as there is no Core ML here" in line and "for iOS 16 and macOS 13" in line
    assert os.listdir(tmp_path) == ["a.mlpackage"]
    assert set(os.listdir(tmp_path / "a.mlpackage")) == {"Manifest.json", "Data"}


def test_with_8_bit_weights_it_says_how_far_these_lead(model, tmp_path, capsys):
    assert exported(model, tmp_path / "a.mlpackage", "--bits", "8") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "8-bit weights" in line and "MLX with its weights differs from MLX by" in line
    assert "lowest cosine 0.999" in line


def test_other_results_than_mlxs_are_an_error_and_no_package(model, tmp_path, monkeypatch):
    packed = coreml_ops.packed
    monkeypatch.setattr(
        coreml_ops, "packed", lambda weight: (packed(weight)[0] // 16, packed(weight)[1])
    )
    with pytest.raises(OutputError, match="0.999 with 8-bit weights; nothing is kept"):
        export_model(model, tmp_path / "a.mlpackage", bits=8)
    assert os.listdir(tmp_path) == []


def test_a_photo_can_be_the_input(model, tmp_path):
    export_model(model, tmp_path / "a.mlpackage", image_input=True)
    assert Package(tmp_path / "a.mlpackage").run(image=photo(1, 56, 56))["embedding"].shape == (
        1,
        64,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.mlpackage", "--bits", "4"], 2, "8 or 16 bits, got 4"),
        (["a.mlpackage", "--bits", "8", "--dtype", "float32"], 2, "go with float16"),
        (["a.mlpackage", "--image-input", "--batch", "8"], 2, "one picture at a time"),
        (["a.mlxfn", "--bits", "8"], 2, "are for .mlpackage"),
        (["a.mlxfn", "--image-input"], 2, "are for .mlpackage"),
    ],
)
def test_what_a_package_cannot_be_is_one_line(
    model, tmp_path, capsys, monkeypatch, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    assert exported(model, *arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", [1000, 200_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(model, tmp_path, capsys, room):
    with full_from(room):
        code = exported(model, tmp_path / "a.mlpackage")
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 5 and "make room or choose another place" in line
    assert os.listdir(tmp_path) == []


def test_a_package_is_replaced_only_on_request_and_nothing_else_ever(model, tmp_path):
    target = tmp_path / "a.mlpackage"
    export_model(model, target)
    with pytest.raises(OutputError, match="exists: choose another name, or --overwrite"):
        export_model(model, target)
    done = export_model(model, target, dtype="float32", overwrite=True)
    assert done.bytes > 700_000 and os.listdir(tmp_path) == [target.name]
    (target / "Manifest.json").unlink()
    with pytest.raises(OutputError, match="choose another name"):
        export_model(model, target, overwrite=True)


def test_a_missing_extra_is_named(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert exported(model, tmp_path / "a.mlpackage") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'aim-mlx[coreml]'" in line
