"""What every bad image and odd name gets from `aim-mlx embed`, kinds 1 to 15, and 18 to 23.

One run goes over a folder of everything that goes wrong: each file has its reason, the rows of the
others are as without it, the inputs are untouched and the numbers add up. What needs a run of its
own follows.
"""

import builtins
import hashlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aim_mlx.backend import mx
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import DarkImageWarning
from aim_mlx.wording import escaped
from tests.bad_images import BAD, FILMS, GOOD, JPEG, PHOTO, PNG, encoded
from tests.embed_runs import OUTPUTS, SAME, Run, embed, make, vectors_of
from tests.small import NATIVE, save
from tests.weights_files import PEAK

ODD_NAMES = [  # 23
    "caf\u00e9.png",
    "nai\u0308ve.png",
    "good\nline.png",
    "\x1b]0;title\x07.png",
    "right to left \u202e.png",
    "-rf.png",
    "$(touch x);'\".png",
    "x" * 251 + ".png",
] + ([] if sys.platform == "darwin" else ["\udcff\udcfe.png"])
IRREGULAR = ("pipe.jpg", "socket.jpg", "nothing.jpg", "itself.jpg", "device.jpg")  # 20
IGNORED = ("._plain.jpg", ".DS_Store", "Thumbs.db", "notes.txt", "__MACOSX/plain.jpg")  # 22
IGNORED += ("@eaDir/plain.jpg", "My.photoslibrary/originals/plain.jpg")


def state(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Kind, size, time and digest of all that is in a folder."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""
        found[str(path)] = status.st_mode, status.st_size, status.st_mtime_ns, digest
    return found


def make_zoo(folder: Path) -> None:
    make(folder, {name: content for name, (content, _) in GOOD.items()})
    make(folder, {name: bad.content for name, bad in BAD.items()})
    make(folder, dict.fromkeys(ODD_NAMES, PNG) | dict.fromkeys(IGNORED, b"x"))
    make(folder, {"folder.jpg/in a folder.png": PNG, "closed/unseen.png": PNG})  # 21, 18
    os.mkfifo(folder / "pipe.jpg")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket.jpg")
    os.chdir(here)
    (folder / "nothing.jpg").symlink_to("absent")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(".")  # 19
    (folder / "outside").symlink_to("/")
    (folder / "linked.png").symlink_to("plain.png")
    os.link(folder / "plain.png", folder / "again.png")  # 25


def refuse_closed(patch: pytest.MonkeyPatch) -> None:
    """Folders named `closed` cannot be read: the tests may run as root, whom no mode bit stops."""
    scandir = os.scandir

    def refuse(path: Any = "."):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    patch.setattr(os, "scandir", refuse)


def without_heif(patch: pytest.MonkeyPatch) -> None:
    from aim_mlx.images import encoded as files

    opener = files._opener
    patch.setattr(files, "_opener", lambda format: None if format == "HEIF" else opener(format))


def watch_opening(patch: pytest.MonkeyPatch, opened: set[str]) -> None:
    def watched(function: Callable) -> Callable:
        def call(path: Any, *arguments: Any, **options: Any):
            if isinstance(path, (str, os.PathLike)):
                opened.add(os.path.basename(path))
            return function(path, *arguments, **options)

        return call

    patch.setattr(os, "open", watched(os.open))
    patch.setattr(builtins, "open", watched(open))


@dataclass
class Zoo(Run):
    """The run over everything."""

    vectors: dict[str, np.ndarray]
    untouched: bool
    opened: set[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module", params=OUTPUTS)
def output(request) -> str:
    """The name of the output."""
    return request.param


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, model, output) -> Zoo:
    folder = tmp_path_factory.mktemp("zoo")
    make_zoo(folder / "in")
    before, opened = state(folder / "in"), set()
    with pytest.MonkeyPatch.context() as patch:
        refuse_closed(patch)
        without_heif(patch)
        watch_opening(patch, opened)
        run = embed(folder / "in", "-o", folder / output, "--model", model)
    untouched = state(folder / "in") == before
    vectors = vectors_of(folder / output)
    return Zoo(run.code, run.stderr, run.records, vectors, untouched, opened)


LINKED = ("again.png", "in a folder.png")  # not linked.png, which leads to a file that is listed


@pytest.mark.parametrize("name", BAD, ids=lambda name: f"{BAD[name].row}: {ascii(name)}")
def test_a_bad_image_is_skipped_with_its_reason_and_a_hint(zoo: Zoo, name: str):
    record = zoo.skipped[name]
    assert record["reason"] == BAD[name].reason and BAD[name].hint in record["detail"]
    assert record["detail"].isprintable()
    assert f"{escaped(name)}: {record['reason']}: {record['detail']}\n" in zoo.stderr


@pytest.mark.parametrize("name", IRREGULAR)
def test_what_is_no_file_is_skipped_and_never_opened(zoo: Zoo, name: str):
    assert zoo.reasons[name] == "not_regular"
    assert name not in zoo.opened and "plain.png" in zoo.opened


def test_an_unreadable_folder_is_a_record_and_the_rest_goes_on(zoo: Zoo):
    assert zoo.skipped["closed"]["reason"] == "unreadable"
    assert "Permission denied" in zoo.skipped["closed"]["detail"]
    assert "unseen.png" not in zoo.vectors


def test_every_good_image_has_a_row_and_nothing_else_has(zoo: Zoo):
    assert set(zoo.vectors) == {*GOOD, *ODD_NAMES, *LINKED}
    assert all(np.isfinite(vector).all() for vector in zoo.vectors.values())


def test_embedded_skipped_and_ignored_add_up_to_what_was_listed(zoo: Zoo):
    # Of the ignored, folders count as one; two links to folders and one to a file come to them.
    embedded, skipped = len(zoo.vectors), len(BAD) + len(IRREGULAR) + len(["closed"])
    zoo.check_account(embedded, skipped, len(IGNORED) + 3)


def test_the_images_are_left_as_they_were(zoo: Zoo):
    assert zoo.untouched


def test_bad_images_change_no_row_of_the_others(zoo: Zoo, model, output, tmp_path):
    folder = make(tmp_path / "in", {name: content for name, (content, _) in GOOD.items()})
    run = embed(folder, "-o", tmp_path / output, "--model", model)
    run.check_account(len(GOOD), 0, 0)
    for name, vector in vectors_of(tmp_path / output).items():
        np.testing.assert_allclose(vector, zoo.vectors[name], atol=SAME, err_msg=name)


@pytest.mark.parametrize("name", [name for name, (_, same) in GOOD.items() if same])
def test_the_same_pixels_give_the_same_vector(zoo: Zoo, name: str):
    same = zoo.vectors[GOOD[name][1]]
    np.testing.assert_allclose(zoo.vectors[name], same, atol=SAME)
    differing = ("plain.png", "grey.png", "noise.png", "bilevel.png")  # so that not all are alike
    assert sum(np.abs(zoo.vectors[other] - same).max() < 100 * SAME for other in differing) <= 1


@pytest.mark.parametrize("name", [f"{n} JPEG.jpg" for n in range(1, 9)])
def test_a_jpeg_of_any_orientation_is_embedded_upright(zoo: Zoo, name: str):
    def off(other: str) -> float:
        return np.abs(zoo.vectors[name] - zoo.vectors[other]).max()

    # Its pixels differ by up to 3 of 255 from those before compression.
    assert off("plain.png") < 0.01 < 0.1 < min(off("mirrored.png"), off("upside down.png"))


@pytest.mark.parametrize("name", [*ODD_NAMES, *LINKED], ids=ascii)
def test_names_and_links_are_kept_exactly_and_change_no_vector(zoo: Zoo, name: str):
    np.testing.assert_allclose(zoo.vectors[name], zoo.vectors["plain.png"], atol=SAME)


def test_of_films_the_first_frame_is_embedded_and_noted(zoo: Zoo):
    assert f"the first frame was embedded of {len(FILMS)} images with several" in zoo.stderr


def test_what_was_ignored_is_counted_and_a_photo_library_named(zoo: Zoo):
    assert "note: ignored 1 link to a listed photo\n" in zoo.stderr
    files = ("1 file that is no image", "5 system files")
    for note in ("2 links to folders", "1 photo library", *files):
        assert f"note: ignored {note}\n" in zoo.stderr
    assert "My.photoslibrary' (export its photos to a folder)" in zoo.stderr


def test_stderr_has_a_line_for_each_skip_notes_and_the_summary(zoo: Zoo):
    lines = zoo.stderr.splitlines()
    assert all(line.isprintable() for line in lines)
    expected = [
        f"skipped {escaped(record['path'])}: {record['reason']}: {escaped(record['detail'])}"
        for record in zoo.skipped.values()
    ]
    assert sorted(expected) == sorted(line for line in lines if line.startswith("skipped "))
    rest = [line for line in lines if not line.startswith(("skipped ", "note: "))]
    assert len(rest) == 1 and f"{len(zoo.vectors)} embedded, {len(zoo.skipped)} skipped" in rest[0]


def test_libtiff_says_nothing_of_its_own(model, tmp_path):
    damaged = bytearray(encoded(format="TIFF", compression="tiff_lzw"))
    for i in range(100, 400):
        damaged[i] ^= 0x5A
    make(tmp_path / "in", {"a.png": PNG, "damaged.tif": bytes(damaged)})
    start = "from aim_mlx.cli.main import main; main()"
    call = [sys.executable, "-c", start, "embed", "in", "-o", "o.npz", "--model", model]
    done = subprocess.run(call, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    skipped, summary = done.stderr.splitlines()
    assert skipped.startswith("skipped in/damaged.tif: not_image: ") and summary[0] == "1"


def test_bombs_cost_no_memory_and_pillow_says_nothing_of_its_own(model, tmp_path):
    make(tmp_path / "in", {name: bad.content for name, bad in BAD.items()} | {"a.png": PNG})
    # The last argument is taken away before the command sees it: where its peak of memory goes.
    code = "import atexit\nplace = sys.argv.pop()\n"
    code += "atexit.register(lambda: open(place, 'w').write(str(peak())))\n"
    code += "from aim_mlx.cli.main import main; main()"
    call = ["embed", tmp_path / "in", "-o", tmp_path / "o.npz", "--model", model, tmp_path / "peak"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK + "\n" + code, *map(str, call)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 3 and done.stdout == ""
    kinds = [line.split(" ")[0] for line in done.stderr.splitlines()]
    assert kinds == ["skipped"] * len(BAD) + ["1"], done.stderr
    assert int((tmp_path / "peak").read_text()) < 700e6


# Images that need options, or another model


def test_a_cut_image_is_embedded_if_that_is_allowed(model, tmp_path, output):  # 3
    make(tmp_path / "in", {"cut.jpg": JPEG[:-2], "plain.jpg": JPEG})
    run = embed(tmp_path / "in", "-o", tmp_path / output, "--model", model, "--allow-truncated")
    run.check_account(2, 0, 0)
    vectors = vectors_of(tmp_path / output)
    np.testing.assert_allclose(vectors["cut.jpg"], vectors["plain.jpg"], atol=SAME)


def test_the_limit_of_megapixels_is_the_users_to_set(model, tmp_path, output):  # 4
    small = encoded(PHOTO.crop((0, 0, 60, 60)))
    make(tmp_path / "in", {"a.png": PNG, "b.png": small})
    out = tmp_path / output
    run = embed(tmp_path / "in", "-o", out, "--model", model, "--max-megapixels", "0.004")
    run.check_account(1, 1, 0)
    assert run.reasons == {"a.png": "too_large"}
    assert "80 x 60 is 0.0 megapixels, the limit is 0.0" in run.skipped["a.png"]["detail"]


def test_a_native_model_takes_the_smallest_and_the_longest_image(tmp_path, output):  # 13
    native = save(tmp_path / "native", NATIVE)
    make(tmp_path / "in", {name: GOOD[name][0] for name in ("dot.png", "line.png", "plain.png")})
    embed(tmp_path / "in", "-o", tmp_path / output, "--model", native).check_account(3, 0, 0)


def test_a_vector_that_is_not_finite_is_skipped(model, tmp_path, output, monkeypatch):  # 15
    compute = Encoder._vectors

    def overflow_on_black(self, pixels, options):
        black = pixels.max(axis=(1, 2, 3)) < 0
        return mx.where(black[:, None], mx.array(float("inf")), compute(self, pixels, options))

    monkeypatch.setattr(Encoder, "_vectors", overflow_on_black)
    black = encoded(Image.new("RGB", (80, 60)))
    make(tmp_path / "in", {"a.png": PNG, "black.png": black, "c.png": PNG})
    run = embed(tmp_path / "in", "-o", tmp_path / output, "--model", model)
    run.check_account(2, 1, 0)
    assert run.reasons == {"black.png": "non_finite"}
    assert set(vectors_of(tmp_path / output)) == {"a.png", "c.png"}


def test_a_set_of_dark_16_bit_images_is_warned_of_once_and_its_rows_are_kept(model, tmp_path):  # 9
    for name in "ab":
        values = np.full((60, 80), 4000 + ord(name), np.uint16)
        make(tmp_path / "in", {f"{name}.png": encoded(Image.fromarray(values))})
    make(tmp_path / "in", {"c.png": PNG})
    with pytest.warns(DarkImageWarning, match="multiply the values by 16") as caught:
        run = embed(tmp_path / "in", "-o", tmp_path / "o.npz", "--model", model)
    assert len(caught) == 1
    run.check_account(3, 0, 0)
