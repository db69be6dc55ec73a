"""A store that came from elsewhere: nothing outside it changes, and what is wrong is named."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aim_mlx.errors import OutputError
from aim_mlx.files import LOCK
from aim_mlx.store import journal, lists, manifest
from aim_mlx.store.folder import matrix_name
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.verify import verify
from tests import store_attacks
from tests.store_attacks import Deep, Scene, attack, embed, outcomes

SEEDS = 16  # some seconds; fuzz/fuzz_store.py tries as many as are asked for


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    return Scene.make(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def store(scene) -> Path:
    return scene.fresh()


def change_record(store: Path, field: str, value: Any) -> None:
    """Changes a field of the last line of the journal, `added[0].name` say; all checksums fit."""
    path = store / journal.NAME
    records = [json.loads(line)["record"] for line in path.read_bytes().splitlines()]
    change(records[-1], field, value)
    records[0] = {"base": sum(len(store_attacks._sealed(record)) for record in records[1:])}
    store_attacks._write_journal(path, records)


def change(record: Any, field: str, value: Any) -> None:
    *way, last = [int(key) if key.isdigit() else key for key in re.findall(r"\w+", field)]
    for key in way:
        record = record[key]
    record[last] = value


# Names


@pytest.mark.parametrize(
    "name",
    ["../others/letter.txt", "/dev/zero", "{others}/letter.txt", "letter.txt", "rows-1.parquet",
     "rows-000000.parquet/../../../others/letter.txt", f"rows-{'9' * 5000}.parquet"],
)  # fmt: skip
def test_a_journal_with_a_name_that_is_no_shard_s_is_refused_and_nothing_is_touched(
    scene, store, name
):
    change_record(store, "added[0].name", name.format(others=scene.others))
    before = scene.untouched()
    for use in (EmbeddingStore, lambda path: embed(scene.photos, path)):
        with pytest.raises(OutputError, match=r"added\[0\].name must be the name of a shard"):
            use(store)
    assert scene.untouched() == before


# Links, pipes and devices


NAMES = [manifest.NAME, journal.NAME, lists.FILES, lists.SKIPPED, LOCK, "shard", "matrix"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["link_to_own_kind", "link_to_zeros", "pipe", "folder"])
def test_what_is_no_file_in_a_store_is_never_opened_nor_followed(scene, store, name, kind):
    state = EmbeddingStore(store)._state
    path = store / {"matrix": matrix_name(state), "shard": state.shards[0].name}.get(name, name)
    path.unlink()
    getattr(store_attacks, kind)(scene, path, scene.others)
    assert outcomes(scene, ("verify", "search", "embed")) == []


@pytest.mark.parametrize("name", [manifest.NAME, journal.NAME])
def test_a_link_in_a_store_is_named_for_what_it_is(scene, store, name):
    (store / name).unlink()
    (store / name).symlink_to(scene.others / name)
    with pytest.raises(OutputError, match=f"{name}': it is a link, which is not followed here"):
        EmbeddingStore(store)


def test_a_shard_that_is_a_link_is_set_aside_as_the_link_that_it_is(scene, store):
    name = EmbeddingStore(store)._state.shards[0].name
    (store / name).unlink()
    (store / name).symlink_to(scene.others / name)
    (fault,) = verify(EmbeddingStore(store)).faults
    assert "it is a link" in fault.what
    embed(scene.photos, store)
    assert (store / f"{name}.damaged").is_symlink()
    assert verify(EmbeddingStore(store)).sound


def test_vectors_are_not_read_through_a_link(scene, store):
    opened = EmbeddingStore(store)
    path = store / matrix_name(opened._state)
    (scene.home / "false.f32").write_bytes(bytes(path.stat().st_size))
    path.unlink()
    path.symlink_to(scene.home / "false.f32")
    assert np.array(opened.vectors).any()


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_file_behind_the_lock_is_not_written_to(scene, store, link):
    (store / LOCK).unlink()
    link(scene.others / "letter.txt", store / LOCK)
    try:
        embed(scene.photos, store)
    except OutputError as error:
        assert "it is a link" in str(error) and link is os.symlink
    assert (scene.others / "letter.txt").read_bytes() == b"precious"


def test_a_backup_made_of_hard_links_stays_as_it_is(scene, store):
    backup = store.with_name("backup")
    shutil.copytree(store, backup, copy_function=os.link)
    before = {path.name: path.read_bytes() for path in backup.iterdir() if path.name != LOCK}
    embed(scene.photos, store, retry_skipped=True)
    after = {path.name: path.read_bytes() for path in backup.iterdir() if path.name != LOCK}
    assert after == before and verify(EmbeddingStore(store)).sound


def test_the_folder_of_a_store_may_be_a_link_that_its_user_made(scene, store):
    (store.parent / "link").symlink_to(store)
    embed(scene.photos, store.parent / "link", retry_skipped=True)
    assert verify(EmbeddingStore(store.parent / "link")).complete


def test_a_link_in_the_place_of_the_hidden_folder_beside_a_file_is_refused(scene, store):
    """The store that it leads to would be emptied, and deleted at the end."""
    (store.parent / ".x.npz.aim-mlx").symlink_to(store)
    before = sorted(os.listdir(store))
    with pytest.raises(OutputError, match="is a link in the place of a folder of ours"):
        embed(scene.photos, store.parent / "x.npz")
    assert sorted(os.listdir(store)) == before


# Fields


DEEP = json.loads(Deep("[", "]", 100).text)
MANIFEST = [
    ("schema", "1"), ("schema", True), ("model", "aimv2"), ("model.path", 7), ("model.model", None),
    ("weights", 1), ("encoder", []), ("preprocessing", "hub"), ("pooling", "cls"), ("pooling", []),
    ("layers", 1), ("layers", ["0"]), ("normalized", "yes"), ("dtype", "float64"), ("dim", 0),
    ("dim", 2**40), ("dim", 1.0), ("block", -1), ("block", True),
]  # fmt: skip
JOURNAL = [
    ("added", {}), ("added[0]", "x"), ("added[0].rows", 0), ("added[0].rows", "5"),
    ("added[0].bytes", 1.5), ("added[0].sha256", "ab"), ("added[0].sha256", 7), ("skipped", "x"),
    ("skipped[0].path", "\0"), ("skipped[0].path", "\ud800"), ("skipped[0].reason", None),
    ("skipped[0].size", "1"), ("first_frames", [7]), ("finished", []), ("finished.listed", "11"),
    ("finished.embedded", -1), ("finished.files", None), ("removed", ["../x"]), ("base", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), MANIFEST, ids=str)
def test_a_field_of_the_manifest_that_cannot_be_is_damage_and_named(store, field, value):
    path = store / manifest.NAME
    facts = json.loads(path.read_bytes())
    change(facts, field, value)
    path.write_text(json.dumps(facts))
    check_named(store, f"manifest.json' is damaged (its {field}", "must be")


@pytest.mark.parametrize(("field", "value"), JOURNAL, ids=str)
def test_a_field_of_the_journal_that_cannot_be_is_damage_and_named(store, field, value):
    change_record(store, field, value)
    check_named(
        store, "journal.jsonl' is damaged (its", "must be", field.split("[")[0].split(".")[0]
    )


@pytest.mark.parametrize("value", [10**400, DEEP], ids=["a number of 400 digits", "deep nesting"])
@pytest.mark.parametrize("field", ["dim", "encoder", "unknown"])
def test_numbers_and_nesting_beyond_all_use_are_damage(store, field, value):
    path = store / manifest.NAME
    facts = json.loads(path.read_bytes())
    change(facts, field, value)
    path.write_text(json.dumps(facts))
    check_named(store, "manifest.json' is damaged")


def check_named(store: Path, *words: str) -> None:
    with pytest.raises(OutputError) as caught:
        EmbeddingStore(store)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "line", "value", "words"),
    [
        (lists.FILES, 0, {"folder": 7, "listed": 1, "ignored": 0}, "its folder must be"),
        (lists.FILES, 0, {"folder": "", "listed": "1", "ignored": 0}, "its listed must be"),
        (lists.FILES, 0, {"folder": "", "listed": 1, "ignored": 0, "share": [3, 2]}, "its share"),
        (lists.FILES, 0, {"folder": ""}, "it lacks listed"),
        (lists.FILES, 1, ["a.jpg"], r"its paths\[0\] must be the path of a file, not a list"),
        (lists.SKIPPED, 0, {"path": "a", "reason": 7, "detail": ""}, "its reason must be a text"),
        (lists.SKIPPED, 0, DEEP, "it is not a plain JSON object"),
    ],
)
def test_a_field_of_a_list_that_cannot_be_is_damage_and_named(store, name, line, value, words):
    path = store / name
    text = path.read_text().splitlines()
    text[line] = json.dumps(value)
    path.write_text("\n".join(text) + "\n")
    read = lists.read_files if name == lists.FILES else lists.read_skips
    with pytest.raises(OutputError, match=words):
        read(store)


# Rows


@pytest.mark.parametrize("packed", ["in a dictionary", "by zstd"])
def test_a_small_shard_that_would_unpack_to_gigabytes_is_not_unpacked(store, packed):
    """A long path in every row: 4 GB of text in some kilobytes, under a digest that fits."""
    written = journal.Journal(store)
    (shard, *_) = written.state.shards
    table = pq.read_table(store / shard.name)
    rows = 2000 if packed == "in a dictionary" else 40
    long = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * (2 << 20)])
    table = table.take(pa.array(np.zeros(rows, np.int64))).set_column(0, "path", long)
    if packed == "by zstd":
        table = table.set_column(0, "path", table["path"].combine_chunks().dictionary_decode())
    options = {"use_dictionary": packed == "in a dictionary", "compression": "zstd"}
    pq.write_table(table, store / shard.name, **options)
    data = (store / shard.name).read_bytes()
    assert len(data) < 1 << 20
    digest = hashlib.sha256(data).hexdigest()
    written.state.shards[0] = replace(shard, rows=rows, bytes=len(data), sha256=digest)
    written.rewrite()
    before = pa.total_allocated_bytes()
    for use in (lambda opened: opened.paths, lambda opened: opened.vectors):
        with pytest.raises(OutputError, match="is damaged"):
            use(EmbeddingStore(store))
    assert any(fault.where == shard.name for fault in verify(EmbeddingStore(store)).faults)
    assert pa.total_allocated_bytes() - before < 1 << 22


# All of it at random


def test_stores_damaged_at_random_do_no_harm_and_end_with_a_line(scene):
    wrong = []
    for seed in range(SEEDS):
        done = attack(scene, seed)
        wrong += [f"{done}\n    {each}" for each in outcomes(scene)]
    assert not wrong, "\n".join(wrong)


def test_the_attacks_would_see_harm_that_is_done(scene, monkeypatch):
    """A command that writes outside, fails in an unknown way or ends with no line is reported."""
    scene.fresh()

    def write() -> tuple[int, str]:
        (scene.others / "new").write_bytes(b"")
        return 0, ""

    def fail() -> tuple[int, str]:
        raise ZeroDivisionError

    harm = {"verify": fail, "search": lambda: (7, ""), "embed": write}
    monkeypatch.setattr(store_attacks, "steps", lambda _: harm)
    found = outcomes(scene)
    (scene.others / "new").unlink()
    assert [each.split(":")[0] for each in found] == ["verify", "search", "search", "embed"]
