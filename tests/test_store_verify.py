"""Checking a store: every kind of damage is a fault that names the file and what repairs it."""

import os
from dataclasses import replace

import numpy as np
import pytest

from aim_mlx.errors import OutputError
from aim_mlx.store import journal, lists, manifest
from aim_mlx.store.folder import matrix_name
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.verify import verify
from aim_mlx.store.writer import StoreWriter, writing
from tests import stores

PATHS = ["a.jpg", "b.jpg", "ä/ü.png", "new\nline", os.fsdecode(b"\xff.jpg"), "f.jpg", "g.jpg"]


def unit(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    return stores.make_store(tmp_path / "store", PATHS, unit(len(PATHS)))


def faults(store: EmbeddingStore) -> list[str]:
    return list(map(str, verify(EmbeddingStore(store.folder)).faults))


def write_rows(folder, rows, vectors):
    """A finished store of one shard with just these rows, whatever they hold."""
    with writing(folder) as writer:
        writer.begin(stores.manifest(vectors.shape[1]))
        listed = [row.path for row in rows]
        header = {"folder": "", "listed": len(rows), "ignored": 0}
        writer.start_run(header, listed, [])
        for row, vector in zip(rows, vectors, strict=True):
            writer.add(row, vector)
        writer.end_block()
        writer.commit()
        counts = {"listed": len(rows), "embedded": len(rows), "skipped": 0, "ignored": 0}
        writer.finish(counts, [])
    return EmbeddingStore(folder)


def test_a_finished_store_is_sound_and_complete(store):
    findings = verify(store)
    assert findings.sound and findings.complete and findings.rows == len(PATHS)
    assert findings.account is not None and vars(findings.account) == {
        "listed": 9, "embedded": 7, "skipped": 1, "ignored": 1, "missing": 0,
    }  # fmt: skip


def test_nothing_is_written(store):
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    verify(store, sample=3)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


@pytest.mark.parametrize("where", [0, 100, -1])
def test_a_changed_byte_names_its_shard(store, where):
    path = store.folder / "rows-000001.parquet"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    (fault,) = faults(store)
    assert fault.startswith("rows-000001.parquet: its bytes are not") and "embed again" in fault


def test_a_missing_and_a_shortened_shard_are_told_apart(store):
    (store.folder / "rows-000000.parquet").unlink()
    os.truncate(store.folder / "rows-000002.parquet", 50)
    missing, short = faults(store)
    assert missing.startswith("rows-000000.parquet: it is missing")
    assert short.startswith("rows-000002.parquet: it has 50 bytes")


def test_rows_that_are_not_those_of_the_journal_are_a_fault(store):
    written = journal.Journal(store.folder)
    written.state.shards[0] = replace(written.state.shards[0], rows=4)
    written.rewrite()
    store = EmbeddingStore(store.folder)
    (fault,) = faults(store)
    assert fault.startswith("rows-000000.parquet: ") and "4 were written" in fault


BAD_ROWS = {
    "have no SHA-256 as digest": {"digest": "AB" * 32},
    "have a size below 1": {"size": 0},
    "have a width below 1": {"width": 0},
    "have a height below 1": {"height": -5},
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_row_with_facts_that_cannot_be_is_a_fault(tmp_path, what):
    rows = [stores.row("a"), replace(stores.row("b"), **BAD_ROWS[what]), stores.row("c")]
    (fault,) = faults(write_rows(tmp_path / "s", rows, unit(3)))
    assert f"1 rows, first 'b', {what}" in fault and "--overwrite" in fault


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_a_fault(tmp_path, bad):
    vectors = unit(3)
    vectors[1, 5] = bad
    (fault,) = faults(write_rows(tmp_path / "s", list(map(stores.row, "abc")), vectors))
    assert "1 rows, first 'b', have numbers that are not finite" in fault


def test_a_vector_that_is_not_of_length_one_is_a_fault_where_all_should_be(tmp_path):
    vectors = unit(3)
    vectors[2] *= 1.001
    made = write_rows(tmp_path / "s", list(map(stores.row, "abc")), vectors)
    (fault,) = faults(made)
    assert "1 rows, first 'c', are not of length 1" in fault
    manifest.write(made.folder, {**made.manifest, "normalized": False})
    assert faults(made) == []


def test_a_path_with_two_rows_is_a_fault(tmp_path):
    rows = [stores.row("a"), stores.row("b"), stores.row("a")]
    found = faults(write_rows(tmp_path / "s", rows, unit(3)))
    assert "1 paths have a row already" in found[0]


def test_a_listed_file_without_a_row_or_a_reason_is_a_fault(tmp_path):
    made = write_rows(tmp_path / "s", list(map(stores.row, "abc")), unit(3))
    path = made.folder / lists.FILES
    path.write_bytes(path.read_bytes().replace(b'"listed": 3', b'"listed": 4') + b'"d"\n')
    written = journal.Journal(made.folder)
    written.append(finished={**(made._state.finished or {}), "files": lists.digest(made.folder)})
    found = faults(made)
    assert "journal.jsonl: 1 listed files have neither a row nor a reason" in found[0]


@pytest.mark.parametrize("listed", [2, 4])
def test_counts_that_do_not_add_up_are_a_fault_though_the_run_wrote_the_same(tmp_path, listed):
    """embedded + skipped + ignored = listed, whatever the lists and the journal agree on."""
    made = write_rows(tmp_path / "s", list(map(stores.row, "abc")), unit(3))
    path = made.folder / lists.FILES
    path.write_bytes(path.read_bytes().replace(b'"listed": 3', b'"listed": %d' % listed))
    written = journal.Journal(made.folder)
    counts = {**(written.state.finished or {}), "listed": listed}
    written.append(finished={**counts, "files": lists.digest(made.folder)})
    (fault,) = faults(made)
    assert fault.startswith(f"files.jsonl: it lists {listed} files, but 3 are accounted for")


def test_a_lost_skip_is_a_fault(store):
    (store.folder / lists.SKIPPED).write_bytes(b"")
    found = faults(store)
    assert any("neither a row nor a reason" in fault for fault in found)


@pytest.mark.parametrize("name", [lists.FILES, lists.SKIPPED])
@pytest.mark.parametrize("content", [None, b"{", b"[]\n", b"7\n"])
def test_a_missing_or_damaged_list_is_a_fault(store, name, content):
    (store.folder / name).unlink()
    if content is not None:
        (store.folder / name).write_bytes(content)
    found = faults(store)
    assert found and all("embed again" in fault for fault in found)


@pytest.mark.parametrize("name", [manifest.NAME, journal.NAME])
def test_a_damaged_manifest_or_journal_is_refused(store, name):
    (store.folder / name).write_text("{nonsense\n")
    with pytest.raises(OutputError, match="damaged"):
        EmbeddingStore(store.folder)


def test_the_file_with_all_vectors_is_compared_too(store):
    store.vectors[0]
    path = store.folder / matrix_name(store._state)
    assert faults(store) == []
    data = bytearray(path.read_bytes())
    data[5 * 4 * store.dim] ^= 1
    path.write_bytes(data)
    (fault,) = faults(store)
    assert "row 5 is not that of the shards: delete this file" in fault


def test_the_same_seed_takes_the_same_rows_with_their_vectors(store):
    first, again = verify(store, 4, seed=3).sample, verify(store, 4, seed=3).sample
    assert [row for row, _ in first] == [row for row, _ in again] and len(first) == 4
    assert [row for row, _ in verify(store, 4, seed=4).sample] != [row for row, _ in first]
    assert len(verify(store, 100).sample) == len(PATHS)
    for row, vector in first:
        np.testing.assert_array_equal(vector, unit(len(PATHS))[PATHS.index(row.path)])
        assert row == stores.row(row.path)


def unfinished(folder, done: int, listed: int, replaced: str | None = None) -> EmbeddingStore:
    """A store whose run stopped after so many rows; of `replaced` there is an older row too."""
    names = [f"{i}.jpg" for i in range(listed)]
    vectors = unit(listed + 1)
    if replaced:
        write_rows(folder, [stores.row(replaced)], vectors[-1:])
    with writing(folder) as writer:
        writer.begin(stores.manifest(8))
        writer.start_run({"folder": "", "listed": listed, "ignored": 0}, names, [])
        for name, vector in list(zip(names, vectors, strict=False))[:done]:
            writer.add(stores.row(name), vector)
            writer.end_block()
            writer.commit()
    return EmbeddingStore(folder)


@pytest.mark.parametrize("replaced", [None, "2.jpg"])
def test_a_store_whose_run_stopped_is_sound_but_not_complete(tmp_path, replaced):
    findings = verify(unfinished(tmp_path / "s", done=3, listed=5, replaced=replaced))
    assert findings.sound and not findings.complete and findings.rows == 3
    assert findings.account is not None and findings.account.missing == 2


def test_a_run_that_stopped_before_its_first_row_leaves_a_store_that_is_not_complete(tmp_path):
    made = write_rows(tmp_path / "s", list(map(stores.row, "abc")), unit(3))
    with writing(made.folder) as writer:
        writer.begin(stores.manifest(8))
        writer.start_run({"folder": "", "listed": 4, "ignored": 0}, [*"abcd"], [])
    findings = verify(EmbeddingStore(made.folder))
    assert findings.sound and not findings.complete
    assert findings.account is not None and findings.account.missing == 1


def test_a_run_that_stopped_before_its_list_leaves_a_store_that_is_not_complete(tmp_path):
    with writing(tmp_path / "s") as writer:
        writer.begin(stores.manifest(8))
    findings = verify(EmbeddingStore(tmp_path / "s"))
    assert findings.sound and not findings.complete and findings.rows == 0


def test_a_store_that_changes_while_it_is_read_is_judged_by_its_new_journal(store, monkeypatch):
    def compact_first(folder, found, dim):
        if not compacted:
            compacted.append(True)
            with writing(folder) as writer:
                writer.begin(stores.manifest(8))
                StoreWriter.compact(writer, {0})
        return damages(folder, found, dim)

    from aim_mlx.store import verify as module

    damages, compacted = module.damages, []
    monkeypatch.setattr(module, "damages", compact_first)
    findings = verify(store)
    assert findings.sound and findings.rows == len(PATHS) - 1


def test_a_list_that_is_not_the_one_written_is_a_fault(store):
    path = store.folder / lists.FILES
    path.write_bytes(path.read_bytes().replace(b'"b.jpg"', b'"c.jpg"'))
    (fault,) = faults(store)
    assert fault.startswith("files.jsonl: it is not the list that was written")


@pytest.mark.parametrize("reason, sound", [("not_image", False), ("vanished", True)])
def test_a_skipped_file_has_a_row_only_if_it_vanished(tmp_path, reason, sound):
    skip = {"path": "b", "reason": reason, "detail": "", "size": 1, "mtime_ns": 1}
    made = write_rows(tmp_path / "s", list(map(stores.row, "abc")), unit(3))
    assert made._state.finished
    lists.write_skips(made.folder, [skip])
    counts = {**made._state.finished, "embedded": 2, "skipped": 1}
    journal.Journal(made.folder).append(finished=counts)
    found = faults(made)
    assert (found == []) == sound
    assert sound or "skipped.jsonl: 1 files, first 'b'" in found[0]
