"""HEIF by macOS's decoder: its functions are those of a library that decodes a toy format.

That library declares them as Apple's headers do, and counts what is not released, or wrongly so.
"""

import ctypes
import io
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aim_mlx.errors import ImageError
from aim_mlx.images import decode, encoded, system_heif
from aim_mlx.images.system_heif import SystemHeif

SOURCE = Path(__file__).parent / "system_heif" / "macos.c"
HEIGHT, WIDTH = 5, 7
RGBA = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 4), np.uint8)
RGBA[1, 0, 0, 3], RGBA[1, 0, 1, 3] = 0, 255


def heif(pixels=RGBA[:1], primary=0, orientation=0, kind="o", wrong="-", size=(WIDTH, HEIGHT)):
    """A file of the toy format: pixels (N,H,W,4); macos.c says what the rest means."""
    letters = (kind + wrong).encode()
    body = struct.pack(">BBB2sHH", len(pixels), primary, orientation, letters, *size)
    body += pixels.tobytes()
    start = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic")
    return start + struct.pack(">I4s", 8 + len(body), b"mdat") + body


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    """The library, built."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs gcc, and not the functions themselves")
    built = tmp_path_factory.mktemp("macos") / "macos.so"
    strict = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *strict, "-o", built, SOURCE], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def macos(library, monkeypatch):
    """Has the library in the place of macOS's; at the end everything is released, and rightly."""
    without_pillow_heif(monkeypatch)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: library)
    system_heif._macos.cache_clear()
    before = count(library, "decoded")
    yield lambda: count(library, "decoded") - before
    system_heif._macos.cache_clear()
    assert (count(library, "alive"), count(library, "mistakes")) == (0, 0)


def without_pillow_heif(patch: pytest.MonkeyPatch) -> None:
    opener = encoded._opener
    patch.setattr(encoded, "_opener", lambda name: SystemHeif if name == "HEIF" else opener(name))


def count(library, what: str) -> int:
    return ctypes.c_long.in_dll(library, f"macos_{what}").value


def failure(data: bytes, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return caught.value


def png(pixels, orientation=1) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(9))
def test_the_numbers_are_those_stored_and_the_image_is_upright(macos, orientation):
    image = decode(heif(orientation=orientation))
    expected = decode(png(RGBA[0, ..., :3], orientation))
    assert image.mode == "RGB" and not image.info["multi_frame"]
    assert (np.asarray(image) == np.asarray(expected)).all()
    assert macos() == 1


def test_transparency_is_laid_on_white(macos):
    found, expected = (
        np.asarray(decode(data), np.int16) for data in (heif(RGBA[1:], kind="a"), png(RGBA[1]))
    )
    assert np.abs(found - expected).max() <= 1  # what was multiplied by the alpha was rounded
    assert (found[0, 0] == 255).all() and (found[0, 1] == RGBA[1, 0, 1, :3]).all()


@pytest.mark.parametrize("kind", ["g", "n"])
def test_what_is_not_rgb_is_converted_by_macos(macos, kind):
    assert (np.asarray(decode(heif(kind=kind))) == 255 - RGBA[0, ..., :3]).all()


def test_the_primary_image_is_taken_and_others_are_noted(macos):
    image = decode(heif(RGBA, primary=1))
    assert (np.asarray(image) == RGBA[1, ..., :3]).all() and image.info["multi_frame"]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(macos):
    assert failure(heif(), max_pixels=WIDTH * HEIGHT - 1).reason == "too_large"
    assert failure(heif(size=(65_535, 65_535))).reason == "too_large"
    assert macos() == 0
    assert decode(heif(), max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)


DAMAGED = {
    "no image": heif(RGBA[:0]),
    "no such image": heif(primary=1),
    "no CGImage": heif(wrong="i"),
    "another size": heif(wrong="s"),
    "nothing drawn": heif(wrong="d"),
    "no context": heif(RGBA[:1].repeat(200, axis=2), size=(200 * WIDTH, HEIGHT)),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_what_macos_cannot_decode_is_no_image_and_pillow_heif_is_named(macos, data):
    found = failure(data)
    assert found.reason == "not_image" and "pip install 'aim-mlx[heif]'" in found.detail


def test_a_file_that_was_cut_is_truncated_unless_what_is_there_will_do(macos):
    data = heif()
    assert {failure(data[:n]).reason for n in range(32, len(data))} == {"truncated"}
    assert macos() == 0
    half = np.asarray(decode(data[: -2 * 4 * WIDTH], allow_truncated=True))
    assert (half[:3] == RGBA[0, :3, :, :3]).all() and (half[3:] == 255).all()
    assert failure(data[:40], allow_truncated=True).reason == "truncated"


def test_threads_decode_side_by_side(macos):
    data = [heif(RGBA, primary=number % 2, orientation=number % 9) for number in range(18)]
    alone = [np.asarray(decode(each)) for each in data]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, data * 20))
    assert all((np.asarray(image) == alone[i % 18]).all() for i, image in enumerate(together))


def test_macos_decodes_where_pillow_heif_is_missing_and_only_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for platform, opener in {"darwin": SystemHeif, "linux": None}.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert encoded._opener.__wrapped__("HEIF") is opener


@pytest.mark.skipif(sys.platform != "darwin", reason="asks macOS")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_macos_wrote_is_read_as_it_was(tmp_path, monkeypatch, orientation):
    y, x = np.mgrid[0:240, 0:320]
    photo = Image.fromarray(np.stack([x // 2, y, (x + y) // 3], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    command = ["sips", "-s", "format", "heic", "photo.jpg", "--out", "photo.heic"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    without_pillow_heif(monkeypatch)
    data = (tmp_path / "photo.heic").read_bytes()
    found, expected = (np.asarray(decode(x), np.int16) for x in (data, tmp_path / "photo.jpg"))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 5  # a flip differs by more than 40
    assert {failure(data[:n]).reason for n in range(40, len(data), 400)} == {"truncated"}
