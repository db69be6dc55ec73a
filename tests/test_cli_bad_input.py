"""What a hostile folder, checkpoint or terminal gets from the real command.

One run over a folder of everything that goes wrong: each file has its reason, the rows of the
others are as without it, the inputs are untouched and the numbers add up.
"""

import hashlib
import io
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aim_mlx.cli import main as cli
from tests.small import SMALL, photo, save
from tests.weights_files import PEAK, read_tensors, weight_file, write_tensors

COMMAND = "from aim_mlx.cli.main import main; main()"
# The last argument is taken away before the command sees it: where its peak of memory goes.
MEASURED = (
    PEAK
    + """
import atexit
place = sys.argv.pop()
atexit.register(lambda: open(place, "w").write(str(peak())))
"""
)
PHOTO = Image.fromarray(photo(0))


def encoded(image: Image.Image = PHOTO, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, extra: bytes = b"", data: bytes = bytes(14), depth: int = 8
) -> bytes:
    """A PNG of colour type RGB with any header and further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data, 9))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def turned(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PHOTO, format, exif=exif)


JPEG, PNG, TIFF = encoded(format="JPEG"), encoded(), encoded(format="TIFF")
BOMB = zlib.compress(bytes(80_000_000), 9)
ODD_EXIF = b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(4)
SIZE_AT = JPEG.index(b"\xff\xc0") + 5

# name -> content and the reason of its skip
BAD: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"<!DOCTYPE html><html></html>", "not_image"),
    "crc.png": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "not_image"),
    "xl.jxl": (b"\xff\x0a" + bytes(50), "not_image"),
    "cut.jpg": (JPEG[:-2], "truncated"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut.png": (PNG[:-3], "truncated"),
    "1200 megapixels.png": (png(40_000, 30_000), "too_large"),
    "4225 megapixels.jpg": (
        JPEG[:SIZE_AT] + struct.pack(">HH", 65_000, 65_000) + JPEG[SIZE_AT + 4 :],
        "too_large",
    ),
    "text bomb.png": (png(2, 2, png_chunk(b"zTXt", b"k\0\0" + BOMB)), "not_image"),
    "profile bomb.png": (png(2, 2, png_chunk(b"iCCP", b"k\0\0" + BOMB)), "not_image"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n", "not_image"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n", "not_image"),
    "paper.jpg": (b"%PDF-1.4\n", "not_image"),
    "drawing.svg": (b"<svg/>", "not_image"),
    "float.tif": (encoded(Image.new("F", (8, 8)), "TIFF"), "unsupported_mode"),
    "32 bits.tif": (encoded(Image.new("I", (8, 8)), "TIFF"), "unsupported_mode"),
    "samples.tif": (
        TIFF.replace(struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 60)),
        "not_image",
    ),
    "line\nfeed.jpg": (b"", "empty"),
    "\x1b]0;title\x07.jpg": (b"", "empty"),
    "right to left \u202e.jpg": (b"", "empty"),
}
GOOD: dict[str, bytes] = {
    "plain.png": PNG,
    "jpeg.png": encoded(format="JPEG", quality=95),
    "png.jpg": PNG,
    "upright.png": turned(1, "PNG"),
    "odd orientation.png": turned(99, "PNG"),
    "damaged exif.jpg": JPEG[:2] + ODD_EXIF + JPEG[2:],
    "deep.png": encoded(Image.fromarray((np.arange(4800).reshape(60, 80) * 13).astype(np.uint16))),
    "deep colour.png": png(8, 8, data=bytes(8 * 49), depth=16),
    "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "palette.png": encoded(PHOTO.convert("P"), transparency=bytes(range(256))),
    "bilevel.png": encoded(PHOTO.convert("1")),
    "film.gif": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]),
    "pages.tif": encoded(PHOTO, "TIFF", save_all=True, append_images=[PHOTO.rotate(90)]),
    "dot.png": encoded(Image.new("RGB", (1, 1))),
    "line.png": encoded(Image.new("RGB", (20_000, 2))),
    "swollen.png": png(2, 2, data=bytes(80_000_000)),
    "caf\u00e9.png": PNG,
    "good\nline.png": PNG,
    "-rf.png": PNG,
    "$(touch x);'\".png": PNG,
    "x" * 200 + ".png": PNG,
} | {f"{o} {f}.{f.lower()}": turned(o, f) for o in (3, 6, 8) for f in ("JPEG", "PNG", "WEBP")}
IRREGULAR = ("pipe.jpg", "socket.jpg", "nothing.jpg", "itself.jpg", "device.jpg")
IGNORED = ("._plain.jpg", ".DS_Store", "Thumbs.db", "notes.txt")


def make_zoo(folder: Path) -> None:
    folder.mkdir()
    for name, content in [*GOOD.items(), *((name, bad[0]) for name, bad in BAD.items())]:
        (folder / name).write_bytes(content)
    for name in IGNORED:
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe.jpg")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket.jpg")
    os.chdir(here)
    (folder / "nothing.jpg").symlink_to("absent")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(".")
    os.link(folder / "plain.png", folder / "again.png")


def state(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Kind, size, time and digest of all that is in a folder."""
    found = {}
    for path in folder.iterdir():
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""
        found[path.name] = status.st_mode, status.st_size, status.st_mtime_ns, digest
    return found


@dataclass
class Run:
    """One run over the zoo: how it ended and what it wrote."""

    code: int
    stderr: str
    skipped: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    vectors: dict[str, np.ndarray]
    manifest: dict[str, Any]
    peak: int
    untouched: bool


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, model) -> Run:
    folder = tmp_path_factory.mktemp("zoo")
    make_zoo(folder / "in")
    before = state(folder / "in")
    call = ["embed", folder / "in", "-o", folder / "o.npz", "--model", model, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED + COMMAND, *map(str, call), str(folder / "peak")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout, done.stderr
    *skipped, summary = map(json.loads, done.stdout.splitlines())
    with np.load(folder / "o.npz") as archive:
        rows = zip(archive["paths"], archive["embeddings"], strict=True)
        vectors = {Path(path).name: vector for path, vector in rows}
        manifest = json.loads(str(archive["manifest"]))
    return Run(
        done.returncode,
        done.stderr,
        {Path(record["path"]).name: record for record in skipped},
        summary,
        vectors,
        manifest,
        int((folder / "peak").read_text()),
        state(folder / "in") == before,
    )


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_bad_image_is_skipped_with_its_reason(zoo: Run, name: str):
    assert zoo.skipped[name]["reason"] == BAD[name][1]
    assert zoo.skipped[name]["detail"].isprintable()


@pytest.mark.parametrize("name", IRREGULAR)
def test_what_is_no_file_is_skipped_unopened(zoo: Run, name: str):
    assert zoo.skipped[name]["reason"] == "not_regular"


def test_every_good_image_has_a_row_and_nothing_else_has(zoo: Run):
    assert set(zoo.vectors) == set(GOOD) | {"again.png"}
    assert all(np.isfinite(vector).all() for vector in zoo.vectors.values())


def test_one_photo_has_one_vector_whatever_its_name_and_tags(zoo: Run):
    same = ["png.jpg", "again.png", "upright.png", "odd orientation.png", "good\nline.png"]
    for name in [*same, "-rf.png", "caf\u00e9.png", "x" * 200 + ".png", "pages.tif"]:
        np.testing.assert_allclose(zoo.vectors[name], zoo.vectors["plain.png"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # the command itself ignores it
def test_bad_images_change_no_row_of_the_others(capsys, zoo: Run, model, tmp_path):
    (tmp_path / "in").mkdir()
    for name, content in GOOD.items():
        (tmp_path / "in" / name).write_bytes(content)
    out = tmp_path / "o.npz"
    arguments = ["embed", str(tmp_path / "in"), "-o", str(out), "--model", str(model)]
    assert cli._run(arguments) == 0
    with np.load(out) as archive:
        for path, vector in zip(archive["paths"], archive["embeddings"], strict=True):
            np.testing.assert_allclose(vector, zoo.vectors[Path(path).name], atol=1e-5)


def test_embedded_skipped_and_ignored_add_up_to_what_was_listed(zoo: Run):
    account = zoo.summary
    assert account["embedded"] == len(GOOD) + 1 == len(zoo.vectors)
    assert account["skipped"] == len(BAD) + len(IRREGULAR) == len(zoo.manifest["skipped"])
    assert account["ignored"] == len(IGNORED) + 1  # the link to a folder
    assert account["listed"] == account["embedded"] + account["skipped"] + account["ignored"]
    assert zoo.code == account["exit_code"] == 3


def test_the_images_are_left_as_they_were(zoo: Run):
    assert zoo.untouched


def test_stderr_has_a_line_for_each_skip_notes_and_the_summary_and_no_noise(zoo: Run):
    lines = zoo.stderr.splitlines()
    kinds = [line.split(" ")[0].rstrip(":") for line in lines]
    assert set(kinds[:-1]) == {"skipped", "note"} and "embedded" in lines[-1], zoo.stderr
    assert kinds.count("skipped") == len(BAD) + len(IRREGULAR)
    assert all(line.isprintable() for line in lines)


def test_bombs_cost_no_memory(zoo: Run):
    assert zoo.peak < 700e6


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


@pytest.mark.parametrize("signals", [1, 2])
def test_an_interrupt_once_or_twice_ends_soon_without_a_traceback(one, model, signals):
    Image.fromarray(photo(0, 900, 1200)).save(one / "a.png")
    for i in range(1000):
        os.link(one / "a.png", one / f"{i}.png")
    process = start("embed", one, "-o", one.parent / "o.npz", "--model", model)
    for _ in range(600):
        if list(one.parent.glob(".o.npz.rows.*")):
            break
        time.sleep(0.05)
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=20)
    # The second may come when Python is already leaving: the signal then ends it, 130 in a shell.
    assert process.returncode in (130, -signal.SIGINT)[:signals], stderr
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert not (one.parent / "o.npz").exists()


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
