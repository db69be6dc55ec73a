"""Files read for their digest before they are decoded: what is decoded is what was digested."""

import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from aim_mlx.cli import main as cli
from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import ImageError
from aim_mlx.images import Contents, changed, decode, is_beyond_times, size_and_time
from aim_mlx.images import contents as contents_module
from aim_mlx.images.contents import read_content
from aim_mlx.tokens.cache import TokenCache
from tests.bad_images import JPEG, PNG, encoded
from tests.embed_runs import OUTPUTS, embed, make, vectors_of
from tests.small import encoder, photo, save

stream = sys.modules["aim_mlx.images.stream"]
B = encoded(Image.fromarray(photo(1)), "BMP")
OTHER = encoded(Image.fromarray(photo(2)), "BMP")  # of the same size


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


def rewrite(path: Path, content: bytes) -> None:
    """Other bytes in the same file, with its time of change set back."""
    found = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def replace(path: Path, content: bytes) -> None:
    """Another file moved into its place, with its time of change."""
    found, new = path.stat(), path.with_suffix(".new")
    new.write_bytes(content)
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
    new.replace(path)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("change", [replace, rewrite])
def test_a_copy_of_a_file_that_is_exchanged_before_it_is_decoded_has_its_own_vector(
    model, tmp_path, monkeypatch, output, change
):
    folder = make(tmp_path / "in", {"a.png": PNG, "b.bmp": B, "c.bmp": B})
    decode = stream._Work._decode

    def exchange(self, source, sample):  # b.bmp has been digested
        if sample.path.endswith("b.bmp"):
            change(folder / "b.bmp", OTHER)
        decode(self, source, sample)

    monkeypatch.setattr(stream._Work, "_decode", exchange)
    run = embed(folder, "-o", tmp_path / output, "--model", model)
    assert run.reasons == {"b.bmp": "changed"}
    make(tmp_path / "alone", {"c.bmp": B})
    embed(tmp_path / "alone", "-o", tmp_path / ("alone-" + output), "--model", model)
    (alone,) = vectors_of(tmp_path / ("alone-" + output)).values()
    # One image in another batch; the vector of the other file is 0.5 away.
    np.testing.assert_allclose(vectors_of(tmp_path / output)["c.bmp"], alone, atol=1e-5)


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_file_is_opened_once(model, tmp_path, monkeypatch, output):
    folder = make(tmp_path / "in", {"a.png": PNG, "b.bmp": B, "c.bmp": B, "d.png": b"<html>"})
    opener, opened = contents_module.regular_file, []

    def counted(path):
        opened.append(Path(path).name)
        return opener(path)

    monkeypatch.setattr(contents_module, "regular_file", counted)
    embed(folder, "-o", tmp_path / output, "--model", model).check_account(3, 1, 0)
    assert sorted(opened) == ["a.png", "b.bmp", "c.bmp", "d.png"]


def test_the_first_of_several_copies_is_decoded_whichever_is_read_first(tmp_path, monkeypatch):
    folder = make(tmp_path, {"a.bmp": B, "b.bmp": B, "c.bmp": OTHER})
    read, copy_is_decoded = stream.reading, threading.Event()

    @contextmanager
    def late(path, *rest):
        assert not path.endswith("a.bmp") or copy_is_decoded.wait(20)
        with read(path, *rest) as found:
            yield found
        if path.endswith("b.bmp"):
            copy_is_decoded.set()

    monkeypatch.setattr(stream, "reading", late)
    paths = [str(folder / name) for name in ("a.bmp", "b.bmp", "c.bmp")]
    contents = Contents(lambda digest: False)
    rows = list(stream.stream(paths, PreprocessConfig.hub(28), threads=2, contents=contents))
    assert [row.repeats for row in rows] == [False, True, False]
    assert [row.pixels is None for row in rows] == [False, True, False]


@pytest.mark.parametrize("change", [replace, rewrite])
def test_bytes_other_than_those_that_were_digested_are_not_decoded(tmp_path, change, monkeypatch):
    path = tmp_path / "b.bmp"
    path.write_bytes(B)
    known = read_content(str(path)).at(str(path))
    assert np.array_equal(np.asarray(decode(known)), photo(1))
    change(path, OTHER)
    for whole in (len(B), 1):  # read at once, and decoded from the open file
        monkeypatch.setattr("aim_mlx.images.contents.READ_WHOLE", whole)
        with pytest.raises(ImageError, match="other content") as caught:
            decode(known)
        assert caught.value.reason == "changed"


@pytest.mark.parametrize("change", [replace, rewrite])
def test_a_file_is_seen_to_change_when_its_size_and_time_stay_the_same(tmp_path, change):
    path = tmp_path / "b.bmp"
    path.write_bytes(B)
    content = read_content(str(path))
    assert changed(str(path), content) is None
    change(path, OTHER)
    failure = changed(str(path), content)
    assert failure is not None and failure.reason == "changed"


def test_a_file_that_is_only_linked_touched_or_copied_over_has_not_changed(tmp_path):
    path = tmp_path / "b.bmp"
    path.write_bytes(B)
    content = read_content(str(path))
    os.link(path, tmp_path / "link.bmp")
    assert changed(str(path), content) is None
    replace(path, B)
    assert changed(str(path), content) is None
    os.utime(path, ns=(1, 1))
    assert changed(str(path), content) is None


@pytest.mark.parametrize("change", [replace, rewrite])
def test_a_photo_embedded_again_is_compared_only_if_it_is_the_one_embedded(
    model, tmp_path, change, capsys
):
    folder, store = make(tmp_path / "in", {"a.png": PNG, "b.bmp": B}), tmp_path / "store"
    embed(folder, "-o", store, "--model", model)
    change(folder / "b.bmp", OTHER)
    cli._run(["verify", str(store), "--sample", "2", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    outcomes = {Path(row["path"]).name: row["outcome"] for row in rows if row["event"] == "row"}
    assert outcomes == {"a.png": "same", "b.bmp": "changed"}


@pytest.mark.parametrize("change", [replace, rewrite])
def test_tokens_are_cached_under_the_digest_of_the_bytes_that_were_decoded(tmp_path, change):
    path = tmp_path / "b.bmp"
    path.write_bytes(B)
    content = read_content(str(path))
    change(path, OTHER)
    cache = TokenCache(tmp_path / "cache", encoder())
    (skip,) = cache.fill({content.digest: (str(path), content)})
    assert skip.reason == "changed" and cache.missing([content.digest])


@pytest.mark.parametrize("change", [replace, rewrite])
def test_a_rewritten_file_is_embedded_again_when_its_time_tells_and_its_size_does_not(
    model, tmp_path, change
):
    folder, store = make(tmp_path / "in", {"a.png": PNG, "b.bmp": B}), tmp_path / "store"
    embed(folder, "-o", store, "--model", model)
    before = vectors_of(store)
    change(folder / "b.bmp", OTHER)
    os.utime(folder / "b.bmp", (1, 1))
    run = embed(folder, "-o", store, "--model", model)
    assert (run.summary["computed"], run.summary["unchanged"]) == (1, 1)
    after = vectors_of(store)
    assert (after["a.png"] == before["a.png"]).all()
    assert np.abs(after["b.bmp"] - before["b.bmp"]).max() > 0.01  # another photograph


def test_a_file_rewritten_while_it_is_decoded_is_changed_though_its_size_and_time_are_the_same(
    tmp_path, monkeypatch
):
    path = tmp_path / "b.bmp"
    path.write_bytes(B)
    load = ImageFile.ImageFile.load

    def meddle(self):
        rewrite(path, OTHER)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", meddle)
    with pytest.raises(ImageError, match="changed while it was read"):
        decode(path)


# Files far larger than what is in them


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("zeros.jpg", b"", "not_image"),
        ("tail.jpg", JPEG, "too_large"),
        ("tail.png", PNG, "too_large"),
        ("tail.webp", encoded(format="WEBP"), "too_large"),
        ("tail.bmp", B, "too_large"),
        ("tail.ppm", encoded(format="PPM"), "too_large"),
        ("tail.gif", encoded(format="GIF"), "too_large"),
        ("tail.tif", encoded(format="TIFF"), "too_large"),
        ("tail.avif", encoded(format="AVIF"), "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sparse_terabyte_is_refused_from_its_header(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    os.truncate(path, 1 << 40)
    started = time.monotonic()
    for read in (lambda: read_content(str(path)), lambda: decode(path)):
        with pytest.raises(ImageError) as caught:
            read()
        assert caught.value.reason == reason
        if reason == "too_large":
            assert "the file has 1,099,511,627,776 bytes" in caught.value.detail
            assert "at most" in caught.value.detail
    assert time.monotonic() - started < 60  # reading it takes an hour


def test_a_film_behind_a_photograph_costs_it_nothing(tmp_path):
    path = tmp_path / "motion.jpg"
    path.write_bytes(JPEG)
    os.truncate(path, 60 << 20)
    assert decode(read_content(str(path)).at(str(path))).size == decode(JPEG).size


# Times that 64 bits of nanoseconds cannot hold


@pytest.mark.parametrize("seconds", [10_413_792_000, -9_300_000_000, -1])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_time_of_any_year_stops_no_run_and_the_file_is_known_again(
    model, tmp_path, seconds, output
):
    folder = make(tmp_path / "in", {"a.png": PNG, "b.bmp": B, "c.png": b"<html>"})
    for name in ("b.bmp", "c.png"):
        os.utime(folder / name, (seconds, seconds))
    call = (folder, "-o", tmp_path / output, "--model", model)
    run = embed(*call)
    run.check_account(2, 1, 0)
    beyond = abs((folder / "b.bmp").stat().st_mtime_ns) >= 2**63  # as far as the disk holds it
    assert ("times of change outside the years" in run.stderr) == beyond
    if output == "store":
        again = embed(*call)
        assert again.summary["unchanged"] == 2 and again.summary["computed"] == 0


@pytest.mark.parametrize("seconds", [2**40, 2**62, -(2**40), 10_413_792_000])
def test_times_beyond_64_bits_of_nanoseconds_become_the_nearest_that_fits(seconds):
    found = os.stat_result((0, 0, 0, 0, 0, 0, 5, 0, seconds, 0), {"st_mtime_ns": seconds * 10**9})
    nearest = 2**63 - 1 if seconds > 0 else -(2**63)
    assert size_and_time(found) == (5, nearest)
    assert is_beyond_times(nearest) and not is_beyond_times(0)
