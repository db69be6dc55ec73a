"""Outputs that are no store, and damaged stores: refused, or repaired, and nothing is lost."""

import os
import shutil
from pathlib import Path

import pytest

from aim_mlx.errors import AimError, OutputError
from aim_mlx.store import journal, lists, manifest
from aim_mlx.store.reader import EmbeddingStore
from tests import stores
from tests.bad_images import PNG
from tests.embed_runs import embed, make
from tests.small import save
from tests.store_crashes import Notes, facts, run

FILES = {f"{name}.jpg": f"good {name}".encode() for name in "abcdefghijk"}


@pytest.fixture
def photos(tmp_path) -> Path:
    return make(tmp_path / "photos", FILES)


@pytest.fixture
def store(photos) -> Path:
    run(photos, photos.parent / "out")
    return photos.parent / "out"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


# Outputs that are no store


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=str)
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("other", "holds other files ('letter.txt')"),
        ("file", "is a file: choose another output"),
        ("missing/out", "missing' does not exist: create it first"),
        ("missing/out.npz", "missing' does not exist: create it first"),
        ("lost", "has lost its manifest.json"),
    ],
)
def test_what_is_no_store_is_refused_and_left_as_it_is(model, tmp_path, output, words, more):
    make(tmp_path / "in", {"a.png": PNG})
    make(tmp_path, {"other/letter.txt": b"precious", "file": b"precious"})
    make(tmp_path, {"lost/rows-000000.parquet": b"rows"})
    before = tree(tmp_path)
    done = embed(tmp_path / "in", "-o", tmp_path / output, "--model", model, *more)
    if output == "lost" and more:
        assert done.code == 0 and done.summary["embedded"] == 1
        return
    assert done.code == 5 and words in done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["weights", "encoder", "preprocessing", "pooling", "layers", "normalized", "dtype", "dim"],
)
def test_whatever_decides_the_vectors_keeps_two_kinds_apart(store, name):
    there = manifest.read(store)
    manifest.check_same(store, there, dict(there))
    with pytest.raises(OutputError, match="choose another output"):
        manifest.check_same(store, there, there | {name: "other"})


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("small", 'made with the model "large", this run has the model "small"'),
        ("large", 'made with other weights of "large", this run has new ones'),
    ],
)
def test_models_are_told_apart_by_their_names_and_not_by_digests(tmp_path, now, words):
    before, after = (
        stores.manifest(8, weights=digest * 64, model={"model": name, "path": name})
        for digest, name in (("0", "large"), ("1", now))
    )
    with pytest.raises(OutputError, match=words):
        manifest.check_same(tmp_path, before, after)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_of_others_in_a_store_stay_whatever_is_done(photos, store):
    (store / "letter.txt").write_bytes(b"precious")
    for rules in ({}, {"prune": True}, {"overwrite": True}):
        run(photos, store, **rules)
        assert (store / "letter.txt").read_bytes() == b"precious"


def test_a_store_of_a_newer_schema_is_refused(model, tmp_path):
    make(tmp_path / "in", {"a.png": PNG})
    arguments = (tmp_path / "in", "-o", tmp_path / "out", "--model", model)
    embed(*arguments)
    manifest.write(tmp_path / "out", manifest.read(tmp_path / "out") | {"schema": 2})
    before = tree(tmp_path / "out")
    done = embed(*arguments)
    assert done.code == 5 and "has schema 2, this aim-mlx knows 1: update" in done.stderr
    assert tree(tmp_path / "out") == before


# Damage


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


def check_recomputed(photos: Path, store: Path, name: str, rows: int) -> None:
    """A run computes the rows of one shard again, says so, and has all rows after it."""
    notes = Notes()
    again = run(photos, store, notes)
    (note,) = notes.notes
    assert note.startswith(f"shard {name} is damaged (it") and f"its {rows} rows are" in note
    assert (again.computed, again.unchanged) == (rows, len(FILES) - rows)
    assert sorted(Path(path).name for path in EmbeddingStore(store).paths) == sorted(FILES)


def test_one_bit_of_damage_anywhere_in_a_shard_costs_that_shard_only(photos, store, tmp_path):
    shard = EmbeddingStore(store)._state.shards[1]
    data = (store / shard.name).read_bytes()
    for place in range(0, len(data), len(data) // 12):
        copy = shutil.copytree(store, tmp_path / "copies" / str(place))
        (copy / shard.name).write_bytes(flipped(data, place))
        check_recomputed(photos, copy, shard.name, shard.rows)
        set_aside = copy / f"{shard.name}.damaged"
        assert set_aside.read_bytes() == flipped(data, place)


@pytest.mark.parametrize("length", [None, 0, 10, 1000])
def test_a_shard_that_was_cut_or_is_gone_costs_that_shard_only(photos, store, length):
    shard = EmbeddingStore(store)._state.shards[0]
    if length is None:
        (store / shard.name).unlink()
    else:
        os.truncate(store / shard.name, length)
    check_recomputed(photos, store, shard.name, shard.rows)


def test_damage_anywhere_in_the_journal_of_a_finished_store_is_refused_and_costs_nothing(
    photos, store
):
    path = store / journal.NAME
    data = path.read_bytes()
    # Every ninth is enough: all bytes are under the same checksums. The last two are its end.
    places = [*range(0, len(data), 9), len(data) - 2, len(data) - 1]
    damaged = [flipped(data, place) for place in places] + [data[:length] for length in places]
    before = tree(store)
    for n, content in enumerate(damaged):
        path.write_bytes(content)
        with pytest.raises(OutputError, match="journal.jsonl"):
            EmbeddingStore(store)
        if n % 50 == 0:
            with pytest.raises(OutputError, match="with --overwrite"):
                run(photos, store)
    path.unlink()
    with pytest.raises(OutputError, match="journal.jsonl"):
        run(photos, store)
    path.write_bytes(data)
    assert tree(store) == before


def test_damage_anywhere_in_the_manifest_is_refused_or_does_not_matter(photos, store):
    path = store / manifest.NAME
    data = path.read_bytes()
    rows = facts(store)["rows"]
    for place in range(0, len(data), 29):
        path.write_bytes(flipped(data, place))
        try:
            run(photos, store)
        except AimError as error:
            assert isinstance(error, OutputError)
    for length in (0, 1, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:length])
        with pytest.raises(OutputError, match=r"is damaged \(.*\): restore it, or embed again"):
            run(photos, store)
    path.write_bytes(data)
    assert facts(store)["rows"] == rows


@pytest.mark.parametrize("name", [lists.FILES, lists.SKIPPED])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\n"])
def test_a_damaged_list_is_written_anew(photos, store, name, content):
    before = facts(store)
    (store / name).unlink()
    if content is not None:
        (store / name).write_bytes(content)
    assert run(photos, store).unchanged == len(FILES)
    assert facts(store) == before
