"""What a poor terminal or a hostile checkpoint gets from the real command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.cli import main as cli
from tests.bad_images import PNG
from tests.small import SMALL, many_photos, save, wait_for
from tests.weights_files import read_tensors, weight_file, write_tensors

COMMAND = "from aim_mlx.cli.main import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


# The terminal and the place


def start(*arguments: object, **options: Any) -> subprocess.Popen:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", COMMAND, *map(os.fspath, map(str, arguments))]
    return subprocess.Popen(command, **(pipes | options))


@pytest.fixture
def one(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PNG)
    return tmp_path / "in"


@pytest.mark.parametrize(
    "changes",
    [
        {"HOME": None, "TERM": None, "LANG": "C", "LC_ALL": "C"},
        {"HOME": "/nonexistent", "TERM": "dumb", "COLUMNS": "1"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_a_poor_environment_does_not_matter(one, model, changes):
    (one / "caf\u00e9\n.jpg").write_bytes(b"")
    environment = {k: v for k, v in (os.environ | changes).items() if v is not None}
    out = one.parent / "o\u00e9.npz"
    process = start("embed", one, "-o", out, "--model", model, "--json", env=environment)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 3 and "Traceback" not in stderr and out.exists(), stderr
    assert len(stdout.splitlines()) == 2 and stdout.isascii()


@pytest.mark.parametrize("descriptors", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_streams_do_not_cost_the_result(one, model, descriptors):
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    out = one.parent / "o.npz"
    process = start("embed", one, "-o", out, "--model", model, "--json", preexec_fn=close)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and out.exists(), stderr
    with np.load(out) as archive:
        assert list(archive["paths"]) == [str(one / "a.png")]


def test_a_working_folder_that_cannot_be_written_or_is_gone_does_not_matter(one, model, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()

    def leave() -> None:
        os.chdir(gone)
        os.rmdir(gone)

    out = tmp_path / "o.npz"
    process = start("embed", one, "-o", out, "--model", model, preexec_fn=leave)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and out.exists(), stderr


def test_a_second_interrupt_ends_soon_without_a_traceback(one, model):
    many_photos(one, 500)
    out = one.parent / "o.npz"
    process = start("embed", one, "-o", out, "--model", model, "--batch-size", 2)
    wait_for(one.parent / ".o.npz.aim-mlx" / "files.jsonl")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=20)
    # The second may come when Python is already leaving: the signal then ends it, 130 in a shell.
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert not out.exists()


def test_an_interrupt_that_a_compiled_module_turned_into_another_error_is_one(capsys, monkeypatch):
    def load(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("initialization failed") from interrupt

    monkeypatch.setattr("aim_mlx.weights.inspect.describe", load)
    assert cli._run(["inspect", "m"]) == 130
    assert capsys.readouterr().err == "aim-mlx: error: interrupted\n"


# The checkpoint


def refused(capsys, one: Path, model: Path) -> str:
    """The one line that `embed` gives for a checkpoint that it rejects before any work."""
    out = one.parent / "o.npz"
    code = cli._run(["embed", str(one), "-o", str(out), "--model", str(model)])
    captured = capsys.readouterr()
    assert code == 4 and captured.out == "", captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < 2100, captured.err
    assert not list(one.parent.glob("*o.npz*"))
    return lines[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"<html></html>", "web page"),
        ((2**62).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    ],
)
def test_weights_that_are_none_end_with_4(capsys, one, tmp_path, content, words):
    folder = save(tmp_path / "m")
    weight_file(folder).write_bytes(content)
    assert words in refused(capsys, one, folder)


def test_a_tensor_that_is_missing_or_not_finite_ends_with_4_and_its_name(capsys, one, tmp_path):
    folder = save(tmp_path / "m")
    tensors = read_tensors(weight_file(folder))
    name = "trunk.post_trunk_norm.weight"
    write_tensors(weight_file(folder), {k: v for k, v in tensors.items() if k != name})
    assert f"missing tensor '{name}'" in refused(capsys, one, folder)
    nan = ("F32", np.full(SMALL.embed_dim, np.nan, np.float32))
    write_tensors(weight_file(folder), tensors | {name: nan})
    line = refused(capsys, one, folder)
    assert name in line and "NaN" in line


def test_weights_that_give_no_finite_vector_end_with_4(capsys, one, tmp_path):
    folder = save(tmp_path / "m")
    tensors = read_tensors(weight_file(folder))
    name = "preprocessor.patchifier.proj.weight"
    huge = ("F32", np.full_like(tensors[name][1], 3e38))
    write_tensors(weight_file(folder), tensors | {name: huge})
    assert "finite" in refused(capsys, one, folder)


def test_a_long_or_foul_text_of_a_config_is_cut_and_escaped(capsys, one, tmp_path):
    folder = save(tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    values["encoder"]["embed_dim"] = "\x1b[31m\u202e" + "x" * 100_000
    (folder / "config.json").write_text(json.dumps(values))
    refused(capsys, one, folder)


def test_inspect_escapes_what_a_checkpoint_says_of_itself(capsys, tmp_path):
    folder = save(tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    values["provenance"] = {"source": "a\x1b[31m\nb", "note": "\ud800"}
    (folder / "config.json").write_text(json.dumps(values))
    for options in ([], ["--json"]):
        code = cli._run(["inspect", str(folder), *options])
        captured = capsys.readouterr()
        assert code == 0 and all(line.isprintable() for line in captured.out.splitlines())
