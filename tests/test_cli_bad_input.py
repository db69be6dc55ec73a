"""What a poor terminal or a hostile checkpoint gets from the real command."""

import ast
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import aim_mlx
from aim_mlx.cli import main as cli
from aim_mlx.errors import AimError
from tests.bad_images import PNG
from tests.commands import start
from tests.small import SMALL, many_photos, save, wait_for
from tests.weights_files import read_tensors, weight_file, write_tensors

# What runs in a decoder's thread before each image.
DECODING = """
import os, sys, time
import aim_mlx.images
stream = sys.modules["aim_mlx.images.stream"]
decode = stream._Work.sample
def decode_with_hook(*arguments):
    {hook}
    return decode(*arguments)
stream._Work.sample = decode_with_hook
"""

# There it waits for a file, so that an interrupt comes while an image is decoded, however long the
# machine takes over it.
GATE = """open('decoding', 'w').close()
    for _ in range(6000):
        if os.path.exists('go'): break
        time.sleep(0.01)"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


# The terminal and the place


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


@pytest.mark.parametrize("descriptors", [(2,), (1, 2)], ids=str)
def test_what_is_written_to_a_closed_stream_goes_into_no_file(one, model, descriptors):
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    out = one.parent / "store"
    noise = DECODING.format(hook="os.write(2, b'NOISE')")  # as libtiff does
    process = start("embed", one, "-o", out, "--model", model, before=noise, preexec_fn=close)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (out / ".lock").exists()
    assert not [path.name for path in out.iterdir() if b"NOISE" in path.read_bytes()]


def test_an_error_stays_off_stdout_where_stderr_is_closed():
    process = start("inspect", "missing", preexec_fn=lambda: os.close(2))
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 4


@pytest.mark.parametrize(
    "encoding, command",
    [("ascii", ["duplicates", "o"]), ("latin-1", ["search", "o", "--image", "in/sushi.png"])],
    ids=["ascii", "latin-1"],
)
def test_what_the_terminal_cannot_show_is_escaped(model, tmp_path, encoding, command):
    (tmp_path / "in").mkdir()
    for name in ("\u5bff\u53f8.png", "sushi.png"):  # the same photo twice
        (tmp_path / "in" / name).write_bytes(PNG)
    cli._run(["embed", str(tmp_path / "in"), "-o", str(tmp_path / "o"), "--model", str(model)])
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    process = start(*command, env=environment, cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "\\u5bff\\u53f8.png" in stdout, stderr


def test_control_characters_in_an_error_line_are_escaped(capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise AimError("a\x1b[31m\x07\n\u202eb")

    monkeypatch.setattr("aim_mlx.weights.inspect.describe", fail)
    assert cli._run(["inspect", "m"]) == 1
    assert capsys.readouterr().err == "aim-mlx: error: a\\x1b[31m\\x07 \\u202eb\n"


def test_control_characters_in_a_warning_are_escaped(capsys):
    cli._show_warning("a\x1b[31m\nb")
    assert capsys.readouterr().err == "aim-mlx: warning: a\\x1b[31m\\nb\n"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS knows no such limit")
@pytest.mark.parametrize("megabytes", [600, 1330, 1900, 2600])
def test_a_limit_on_the_address_space_gives_one_line_and_no_hang(one, model, megabytes):
    """Without room OpenBLAS asks for its buffers for ever, and Python waits so for new threads."""
    limit = megabytes * 1000 * 1024
    process = start(
        *("embed", one, "-o", one.parent / "o.npz", "--model", model),
        env=os.environ | {"OPENBLAS_NUM_THREADS": "2"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    _, stderr = process.communicate(timeout=60)
    if megabytes < 2600:
        assert process.returncode == 1 and len(stderr.splitlines()) == 1, stderr
        assert "raise the limit" in stderr, stderr
    else:  # enough, however much OpenBLAS's own thread has taken before the room is asked for
        assert process.returncode == 0, stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc")
@pytest.mark.parametrize("name", ["x", "x.npz"])
def test_a_folder_that_takes_no_new_files_is_not_said_to_be_missing(capsys, one, model, name):
    code = cli._run(["embed", str(one), "-o", f"/proc/{name}", "--model", str(model)])
    line = capsys.readouterr().err
    assert code == 5 and "'/proc' takes no new files" in line and "not exist" not in line


def test_an_older_python_is_told_which_one_is_needed():
    code = "import sys; sys.version_info = (3, 10, 13); import aim_mlx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: aim-mlx needs Python 3.11 or newer, this is 3.10"
    # It must get so far: the file, and what is imported before it, is Python that 3.10 can read.
    ast.parse(Path(aim_mlx.__file__).read_text(), feature_version=(3, 10))


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


def test_a_second_interrupt_ends_at_once_without_a_traceback(one, model):
    many_photos(one, 500)
    out = one.parent / "o.npz"
    process = start("embed", one, "-o", out, "--model", model, "--batch-size", 2)
    wait_for(one.parent / ".o.npz.aim-mlx" / "files.jsonl")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert not out.exists()


def interrupt(process: subprocess.Popen) -> None:
    """Ctrl-C, and on once the command has said that it finishes what is under way."""
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "Ctrl-C again stops now" not in (line := process.stderr.readline()):
        assert line, "it ended"


def test_a_second_interrupt_ends_a_run_that_waits_for_a_decoder(one, model):
    slow = DECODING.format(hook="open('decoding', 'w').close(); time.sleep(100)")
    process = start("embed", one, "-o", "o", "--model", model, before=slow, cwd=one.parent)
    wait_for(one.parent / "decoding")
    interrupt(process)
    with pytest.raises(subprocess.TimeoutExpired):  # what is under way is finished
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_an_interrupt_while_the_model_loads_ends_at_once(one, model):
    before = "import time, aim_mlx.loading\n"
    before += "aim_mlx.loading.load = lambda *_, **__: [open('loads', 'w').close(), time.sleep(99)]"
    process = start("embed", one, "-o", "o", "--model", model, before=before, cwd=one.parent)
    wait_for(one.parent / "loads")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "aim-mlx: error: interrupted\n")
    assert not (one.parent / "o").exists()


def test_an_interrupt_in_a_finalizer_is_not_lost(model, tmp_path):
    before = """
import time
from aim_mlx.cli import main as cli
class Slow:
    def __del__(self):
        open('dying', 'w').close()
        time.sleep(100)
cli.main = lambda: [Slow() and None, None]
"""
    process = start("inspect", model, before=before, cwd=tmp_path)
    wait_for(tmp_path / "dying")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "aim-mlx: error: interrupted\n")


def test_an_interrupt_counts_where_a_shell_in_the_background_had_it_ignored(one, model):
    process = start(
        "embed",
        one,
        "-o",
        "o",
        "--model",
        model,
        before=DECODING.format(hook=GATE),
        cwd=one.parent,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    wait_for(one.parent / "decoding")
    interrupt(process)
    (one.parent / "go").touch()
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_an_interrupted_command_does_not_wait_for_what_python_does_as_it_ends(one, model):
    """OpenBLAS waits there for its threads, which may never come."""
    before = DECODING.format(hook=GATE) + "import atexit; atexit.register(time.sleep, 100)"
    process = start("embed", one, "-o", "o", "--model", model, before=before, cwd=one.parent)
    wait_for(one.parent / "decoding")
    interrupt(process)
    (one.parent / "go").touch()
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2, 0.3])
def test_interrupts_at_any_time_give_one_line_and_130(model, tmp_path, delay):
    before = "import aim_mlx.cli.start; open('started', 'w').close()"
    process = start("inspect", model, before=before, cwd=tmp_path)
    wait_for(tmp_path / "started")
    time.sleep(delay)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (0, 130) and "Traceback" not in stderr, stderr


def test_an_interrupt_that_an_import_of_the_commands_turned_into_another_error_is_one(one):
    """Python 3.11 does so in `__set_name__`."""
    before = """
import sys
class Typer:
    def find_spec(self, name, *_):
        if name == "typer":
            raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()
sys.meta_path.insert(0, Typer())
"""
    process = start("inspect", "m", before=before, cwd=one)
    assert process.communicate(timeout=60) == ("", "aim-mlx: error: interrupted\n")
    assert process.returncode == 130


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


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["embed", "{}/in", "-o", "out", "--model", "{}/m"], 2, "was started in is gone"),
        (["embed", ".", "-o", "{}/out", "--model", "{}/m"], 1, "0 images"),
        (["embed", "{}/in", "-o", "{}/out", "--model", "{}/m"], 0, "1 embedded"),
        (["verify", "{}/store"], 0, "sound and complete"),
        (["verify", "store"], 2, "is not a folder"),
        (["duplicates", "{}/store", "--html", "page.html"], 5, "cannot write 'page.html'"),
        (["export", "{}/store", "x.npz"], 5, "cannot write 'x.npz'"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_in_a_folder_that_was_deleted_commands_work_or_say_what_is_missing(
    model, one, tmp_path, monkeypatch, capsys, arguments, code, words
):
    (tmp_path / "m").symlink_to(model)
    assert cli._run(["embed", str(one), "-o", f"{tmp_path}/store", "--model", str(model)]) == 0
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    capsys.readouterr()
    assert cli._run([each.format(tmp_path) for each in arguments]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "note:" not in line]
    assert words in line and "--debug" not in line
