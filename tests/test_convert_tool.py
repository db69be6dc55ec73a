"""The conversion tool without torch: arguments, safetensors sources, the form of the report."""

import ast
import fnmatch
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.checkpoint import open_checkpoint
from convert.__main__ import run
from convert.archive import LARGEST_PICKLE, check_archive
from convert.report import (
    BAR,
    Comparison,
    Report,
    as_json,
    difference,
    markdown,
    report_paths,
    write_report,
)
from tests.weights_files import copy_case

ROOT = Path(__file__).parent.parent


@pytest.fixture
def no_torch(monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)


def refused(capsys, arguments, code: int) -> str:
    """Runs the command, which must end with that code and one line on stderr; returns the line."""
    assert run([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1 and output.err.startswith("convert: error: ")
    return output.err


def archive(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in records.items():
            file.writestr(name, data)
    return path


# The command


def test_help_names_what_is_read_and_says_that_nothing_runs(capsys):
    assert run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert ".pth, .pt, .bin or .safetensors" in text and "nothing in them is run" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "missing"),
        (["SRC", "DST", "--quick"], "--quick"),
        (["SRC", "DST", "--dtype", "int8"], "dtype must be one of float32, float16, bfloat16"),
        (["SRC", "DST", "--report", "x.md"], "--report is for --verify"),
        (["nothing.pth", "DST"], "nothing.pth does not exist"),
    ],
)
def test_arguments_that_cannot_be_served_end_with_2(arguments, said, capsys):
    assert said.lower() in refused(capsys, arguments, 2).lower()


def test_a_file_of_another_suffix_is_refused_by_name(tmp_path, capsys):
    (tmp_path / "weights.ckpt").write_bytes(b"x")
    said = refused(capsys, [tmp_path / "weights.ckpt", tmp_path / "out"], 2)
    assert ".bin, .pt, .pth or .safetensors" in said


def test_a_folder_without_weights_under_a_known_name_points_to_the_file(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "aimv2.pth").write_bytes(b"x")
    said = refused(capsys, [tmp_path / "in", tmp_path / "out"], 2)
    assert "'aimv2.pth', give the file itself" in said


def test_the_source_is_never_the_destination(tmp_path, capsys):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    before = (folder / "model.safetensors").read_bytes()
    assert "choose another folder" in refused(capsys, [folder, folder, "--overwrite"], 2)
    assert "choose another folder" in refused(
        capsys, [folder / "model.safetensors", folder, "--overwrite"], 2
    )
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_destination_in_use_is_refused_before_any_work(tmp_path, capsys):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "not empty" in refused(capsys, [folder, tmp_path / "out"], 5)
    said = refused(capsys, [folder, tmp_path / "out", "--overwrite"], 5)
    assert "something else than an aim-mlx model" in said
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert "make it first" in refused(capsys, [folder, tmp_path / "no" / "out"], 5)


@pytest.mark.parametrize("arguments", [["model.pth"], ["model.safetensors", "--verify"]])
def test_without_torch_the_refusal_names_the_extra(arguments, tmp_path, capsys, no_torch):
    folder = copy_case(tmp_path, "vision_absolute", "timm")
    archive(folder / "model.pth", {"a/data.pkl": b"N."})
    source, *options = arguments
    said = refused(capsys, [folder / source, tmp_path / "out", *options], 1)
    assert "PyTorch is not installed" in said and "pip install -e '.[parity]'" in said
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(tmp_path):
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(CheckpointError):
        run([str(tmp_path / "empty.safetensors"), str(tmp_path / "out"), "--debug"])


def test_safetensors_sources_need_no_torch_and_leave_a_record(tmp_path, capsys, no_torch):
    folder = copy_case(tmp_path, "vision_absolute", "transformers")
    assert run([str(folder), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert "transformers layout" in capsys.readouterr().err
    written = open_checkpoint(tmp_path / "out")
    assert written.dtype == "bfloat16" and written.layout == "ml-aim-mlx"
    history = written.provenance
    assert history["source"] == folder.name and history["layout"] == "transformers"
    assert [f["name"] for f in history["files"]] == ["model.safetensors"]
    assert re.fullmatch("[0-9a-f]{64}", history["files"][0]["sha256"])
    assert str(tmp_path) not in json.dumps(history)


# Heads of probes, as far as that needs no torch


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["head.pth", "out.safetensors", "--dtype", "float16"], 2, "--dtype and --verify are for"),
        (["head.pth", "out.safetensors", "--verify"], 2, "--dtype and --verify are for"),
        (["nothing.pth", "out.safetensors"], 2, "does not exist"),
        (["head.safetensors", "out.safetensors"], 2, "is not a PyTorch file"),
        ([".", "out.safetensors"], 2, "is not a PyTorch file"),
        (["head.pth", "head.safetensors"], 5, "exists: choose another name"),
        (["head.pth", "folder.safetensors", "--overwrite"], 5, "exists: choose another name"),
        (["head.pth", "no/out.safetensors"], 5, "make it first"),
        (["head.pth", "out.safetensors"], 1, "PyTorch is not installed"),
    ],
)
def test_a_head_that_cannot_be_converted_is_told_before_any_work(
    arguments, code, said, tmp_path, capsys, no_torch
):
    archive(tmp_path / "head.pth", {"a/data.pkl": b"N."})
    (tmp_path / "head.safetensors").write_bytes(b"mine")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    paths = [tmp_path / argument for argument in arguments[:2]]
    assert said in refused(capsys, [*paths, *arguments[2:]], code)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "head.safetensors").read_bytes() == b"mine"


# What stays out of the wheel


def test_the_wheel_leaves_the_tool_out():
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"\[tool\.setuptools\.packages\.find\]\s+include = (\[.*\])", text)
    assert found is not None
    patterns = ast.literal_eval(found[1])
    assert patterns and not any(fnmatch.fnmatch("convert", pattern) for pattern in patterns)


def test_the_package_imports_neither_the_tool_nor_torch():
    for path in (ROOT / "aim_mlx").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"convert", "torch", "transformers"}, path


# Archives, looked at before torch opens them


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x80\x02}q\x00.", "bare pickle, or older than PyTorch 1.6"),
        (b"cposix\nsystem\n(S'true'\ntR.", "not a PyTorch archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"PK\x03\x04 and then nothing", "damaged or incomplete"),
    ],
)
def test_what_is_no_archive_is_refused_in_one_sentence(content, said, tmp_path):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        check_archive(tmp_path / "model.pth")


def test_compressed_records_are_refused_before_they_unfold(tmp_path):
    data = {"a/data.pkl": bytes(10 * 2**20)}
    path = archive(tmp_path / "bomb.pth", data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    with pytest.raises(CheckpointError, match="'a/data.pkl' .* is compressed"):
        check_archive(path)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ({"a/data.pkl": bytes(LARGEST_PICKLE + 1)}, "expected at most"),
        ({"a/data.pkl": b"N.", "a/constants.pkl": b"N."}, "TorchScript program"),
        ({"a/photo.png": b"x"}, "without a data.pkl"),
    ],
)
def test_archives_of_another_kind_are_refused(records, said, tmp_path):
    with pytest.raises(CheckpointError, match=said):
        check_archive(archive(tmp_path / "model.pth", records))


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    path = archive(tmp_path / "model.pth", {"a/data.pkl": b"N.", "a/data/0": b"weights" * 9})
    content = bytearray(path.read_bytes())
    content[content.index(b"weights") + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="'a/data/0' .* does not match its checksum"):
        check_archive(path)


# The report


def report(off: float = 0.0, changed: tuple[str, ...] = ()) -> Report:
    expected = np.array([[3.0, -4.0], [0.0, 0.5]], np.float32)
    rows = tuple(difference(f"block {i}", expected + off * i, expected) for i in (0, 1))
    exact = Comparison("float32", rows, (1.0,))
    rough = Comparison("bfloat16", (difference("block 0", expected + 0.25, expected),), (0.999,))
    return Report({"source": "a.pth"}, 26, changed, (exact, rough))


def test_a_difference_is_measured_against_the_size_of_the_output_or_the_value_itself():
    expected = np.array([1.0, 1.0, 1.0, 1000.0])
    found = difference("x", expected + [0, 0, 0, 0.05], expected)
    assert found.largest == pytest.approx(0.05) and found.mean == pytest.approx(0.0125)
    assert found.size == pytest.approx(500.0, rel=1e-3)
    assert found.of_bar == pytest.approx(0.05 / 1000 / BAR)
    assert difference("x", expected + [0.06, 0, 0, 0], expected).of_bar > 1


def test_a_value_that_is_not_finite_never_passes():
    assert difference("x", np.array([np.nan]), np.array([1.0])).of_bar == np.inf
    rough = Comparison("float16", (difference("x", np.array([np.inf]), np.ones(1)),), (1.0,))
    found = Report({}, 1, (), (report().comparisons[0], rough))
    assert not found.passed and found.verdict == "FAIL: outputs in float16 are not finite"
    assert json.loads(as_json(found))["comparisons"][1]["outputs"][0]["largest"] is None


def test_float32_decides_and_a_narrow_dtype_only_informs():
    assert report().passed and report().verdict.startswith("PASS: float32 differs from PyTorch by")
    failed = report(off=1e-3)
    assert not failed.passed
    assert failed.verdict.startswith("FAIL") and "at block 1 (over the bar" in failed.verdict


def test_a_tensor_that_is_not_the_sources_fails_by_name():
    found = report(changed=("trunk.blocks.0.mlp.fc1.weight", "trunk.blocks.0.mlp.fc3.weight"))
    assert not found.passed
    assert "trunk.blocks.0.mlp.fc1.weight and 1 more" in found.verdict


def test_the_page_has_the_verdict_the_circumstances_and_a_row_for_each_output():
    page = markdown(report(off=1e-5))
    assert f"**{report(off=1e-5).verdict}**" in page
    assert "- source: a.pth" in page and "all equal bit for bit" in page
    assert "## float32 against PyTorch" in page and "## bfloat16 against PyTorch" in page
    assert re.search(r"^\| block 1 \| 2\.51 \| 1\.0e-05 \| 1\.0e-05 \| 0\.\d{3} \|$", page, re.M)
    assert "0.0001 x scale" in page


def test_the_json_holds_the_same_numbers(tmp_path):
    paths = report_paths(tmp_path / "out", None)
    assert [p.name for p in paths] == ["out.parity.md", "out.parity.json"]
    write_report(report(off=1e-5), paths)
    values = json.loads(paths[1].read_text())
    assert values["passed"] is True and values["bar"] == BAR and values["tensors"] == 26
    assert [c["dtype"] for c in values["comparisons"]] == ["float32", "bfloat16"]
    assert values["comparisons"][0]["outputs"][1]["largest"] == pytest.approx(1e-5, rel=0.1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parity.json", "out.parity.md"]


@pytest.mark.parametrize("stated", ["r.md", "r.json", "r"])
def test_a_stated_report_sets_both_suffixes(stated, tmp_path):
    paths = report_paths(tmp_path / "out", tmp_path / stated)
    assert paths == (tmp_path / "r.md", tmp_path / "r.json")
