"""`aim-mlx export`: one file of a store's rows, with small pictures where they are asked for."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aim_mlx.cli import main as cli
from aim_mlx.images import decode
from aim_mlx.store import export as thumbnails
from aim_mlx.store import journal
from aim_mlx.store.export import SUFFIXES
from aim_mlx.store.reader import EmbeddingStore
from tests import small, stores

ODD = os.fsdecode(b"photos/\xff.png")


@pytest.fixture
def work(tmp_path, monkeypatch, capsys) -> Path:
    """The working folder, with large, turned and oddly named photos and a store of them."""
    (tmp_path / "photos").mkdir()
    Image.fromarray(small.photo(0, 600, 900)).save(tmp_path / "photos" / "0.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    exif[0x010E] = "secret"
    Image.fromarray(small.photo(1)).save(tmp_path / "photos" / "turned.jpg", exif=exif)
    for seed, name in enumerate(("a.png", "b.png", os.path.basename(ODD)), 2):
        Image.fromarray(small.photo(seed)).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", tmp_path / "photos" / name)  # Pillow takes no odd name
    small.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert cli._run(["embed", "photos", "-o", "store", "--model", "model"]) == 0
    capsys.readouterr()
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, list[str]]:
    code = cli._run(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err.splitlines()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_is_written_from_a_store(capsys, work, suffix):
    code, out, err = run(capsys, "store", f"out{suffix}")
    assert code == 0 and out == "" and err == [f"5 rows of 64 numbers: out{suffix}"]
    assert (work / f"out{suffix}").stat().st_size > 5 * 64 * 4
    assert run(capsys, "store", f"out{suffix}")[0] == 5
    assert run(capsys, "store", f"out{suffix}", "--overwrite")[0] == 0


def test_an_exported_file_holds_the_rows_of_the_store(capsys, work):
    store = EmbeddingStore("store")
    assert run(capsys, "store", "out.npz")[0] == 0
    with np.load("out.npz") as archive:
        np.testing.assert_array_equal(archive["embeddings"], store.vectors)
        assert list(archive["paths"]) == store.paths and ODD in store.paths


def test_thumbnails_are_upright_small_and_carry_no_metadata(capsys, work, monkeypatch):
    monkeypatch.setattr(thumbnails, "_AT_ONCE", 2)
    code, _, err = run(capsys, "store", "atlas of mine.parquet", "--thumbnails")
    assert code == 0 and err[-1].endswith(
        "embedding-atlas 'atlas of mine.parquet' --vector embedding --image image"
    )
    table = pq.read_table("atlas of mine.parquet")
    store = EmbeddingStore("store")
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), "f"), store.vectors)
    images = dict(zip(table["path"].to_pylist(), table["image"].to_pylist(), strict=True))
    assert images.keys() == {*table["path"].to_pylist()} and all(images.values())
    large = Image.open(io.BytesIO(images["photos/0.jpg"]["bytes"]))
    turned = Image.open(io.BytesIO(images["photos/turned.jpg"]["bytes"]))
    assert large.size == (256, 171) and turned.size == (60, 80) and not turned.getexif()
    # Compressed twice, so alike and not equal; unturned it would be another picture.
    upright = np.asarray(decode("photos/turned.jpg"), float)
    assert np.abs(np.asarray(turned, float) - upright).mean() < 10


def test_a_photo_that_is_gone_or_changed_has_no_thumbnail(capsys, work):
    (work / "photos" / "a.png").unlink()
    Image.fromarray(small.photo(50)).save(work / "photos" / "b.png")
    code, _, err = run(capsys, "store", "x.parquet", "--thumbnails")
    assert code == 0 and any("2 photos are gone or changed" in line for line in err)
    table = pq.read_table("x.parquet")
    missing = [row["path"] for row in table.to_pylist() if row["image"] is None]
    assert missing == ["photos/a.png", "photos/b.png"]


def test_a_store_of_many_shards_is_read_part_by_part(tmp_path, capsys):
    names = [f"{i}.jpg" for i in range(7)]
    vectors = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    stores.make_store(tmp_path / "s", names, vectors)
    assert run(capsys, tmp_path / "s", tmp_path / "x.parquet", "--thumbnails")[0] == 0
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["path"].to_pylist() == names and table["image"].null_count == 7


def test_a_store_that_is_not_finished_is_exported_with_a_note(capsys, work):
    journal.Journal(work / "store").append()  # as the next run does when it starts
    code, _, err = run(capsys, "store", "x.npy")
    assert code == 0 and err[0].startswith("note: the last run") and "not finished" in err[0]


def test_a_damaged_shard_ends_with_five_and_leaves_no_file(capsys, work):
    os.truncate(work / "store" / "rows-000000.parquet", 700)
    code, _, err = run(capsys, "store", "x.npz")
    assert code == 5 and len(err) == 1 and "rows-000000.parquet" in err[0]
    assert not [name for name in os.listdir(work) if "x.npz" in name]


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["nowhere", "x.npz"], 2),
        (["model", "x.npz"], 5),
        (["photos/0.jpg", "x.npz"], 2),
        (["store", "x.csv"], 2),
        (["store", "x"], 2),
        (["store", "x.npz", "--thumbnails"], 2),
        (["store", "nowhere/x.npz"], 5),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, work, arguments, code):
    got, out, err = run(capsys, *arguments)
    assert got == code and out == "" and len(err) == 1
