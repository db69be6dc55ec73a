"""Reading a store: lazily with EmbeddingStore, and as plain Parquet with what others use."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from aim_mlx import EmbeddingStore
from aim_mlx.cli import main as cli
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.store import journal, shards
from aim_mlx.store.reader import reading
from aim_mlx.store.writer import writing
from tests import stores

ODD = os.fsdecode(b"caf\xe9.jpg")
PATHS = ["a.jpg", "b.jpg", "ä/ü.png", "new\nline", ODD, "f.jpg", "g's.jpg"]
VECTORS = np.random.default_rng(0).normal(size=(len(PATHS), 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path) -> Path:
    return stores.make_store(tmp_path / "store", PATHS, VECTORS).folder


def test_nothing_but_manifest_and_journal_is_read_at_first(folder):
    for path in folder.glob("rows-*"):
        path.write_bytes(b"unreadable")
    store = EmbeddingStore(folder)
    assert store.dim == 8 and store.finished and store.manifest["pooling"] == "mean"
    with pytest.raises(OutputError, match="rows-000000.parquet"):
        len(store)


def test_row_i_of_everything_belongs_to_path_i(folder):
    store = EmbeddingStore(folder)
    assert store.paths == PATHS and len(store) == len(PATHS)
    np.testing.assert_array_equal(store.vectors, VECTORS)
    assert store.table(["digest"])["digest"].to_pylist() == [stores.row(p).digest for p in PATHS]
    parts = [*store.parts()]
    assert len(parts) == 3 and [path for paths, _ in parts for path in paths] == PATHS
    np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in parts]), VECTORS)


def test_the_vectors_are_mapped_from_one_file_and_cannot_be_written_to(folder):
    vectors = EmbeddingStore(folder).vectors
    assert isinstance(vectors, np.memmap) and not vectors.flags.writeable
    assert vectors.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        vectors[0] = 0


def test_the_vectors_are_written_down_once(folder, monkeypatch):
    assert len(EmbeddingStore(folder).vectors) == len(PATHS)
    monkeypatch.setattr(EmbeddingStore, "_write_matrix", lambda *_: pytest.fail("again"))
    np.testing.assert_array_equal(EmbeddingStore(folder).vectors, VECTORS)


def test_new_rows_are_in_the_vectors_of_a_store_opened_afterwards(folder):
    assert len(EmbeddingStore(folder).vectors) == len(PATHS)
    with writing(folder) as writer:
        writer.begin(stores.manifest(8))
        writer.add(stores.row("z.jpg"), VECTORS[0])
        writer.end_block()
        writer.commit()
    store = EmbeddingStore(folder)
    assert store.paths == [*PATHS, "z.jpg"]
    np.testing.assert_array_equal(store.vectors, VECTORS[[*range(len(PATHS)), 0]])


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(folder, monkeypatch):
    def refuse(files):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("aim_mlx.store.reader.publish", refuse)
    before = sorted(os.listdir(folder))
    vectors = EmbeddingStore(folder).vectors
    np.testing.assert_array_equal(vectors, VECTORS)
    assert isinstance(vectors, np.memmap) and not vectors.flags.writeable
    assert sorted(os.listdir(folder)) == before


def test_an_empty_store_has_no_rows(tmp_path):
    store = stores.make_store(tmp_path / "s", [], np.empty((0, 8), np.float32))
    assert len(store) == 0 and store.paths == [] and store.vectors.shape == (0, 8)
    assert store.table().num_rows == 0 and store.table().schema.names[0] == "path"


def test_of_a_growing_store_each_path_has_its_last_row(folder):
    with writing(folder) as writer:
        writer.begin(stores.manifest(8))
        writer.add(stores.row("b.jpg"), VECTORS[0])  # it changed
        writer.add(stores.row("z.jpg"), VECTORS[1])
        writer.end_block()
        writer.commit()
    store = EmbeddingStore(folder)
    assert not store.finished
    assert store.paths == [*(path for path in PATHS if path != "b.jpg"), "b.jpg", "z.jpg"]
    np.testing.assert_array_equal(store.vectors, VECTORS[[0, 2, 3, 4, 5, 6, 0, 1]])
    assert store.table().num_rows == len(store) == 8


def test_names_that_are_not_utf8_come_back_exactly_and_readable_in_the_column(folder):
    table = pq.read_table(folder / shards.name_of(1))
    at = PATHS.index(ODD) - 3
    assert EmbeddingStore(folder).paths[PATHS.index(ODD)] == ODD
    assert table["path"][at].as_py() == "caf\\udce9.jpg"
    assert table["raw_path"][at].as_py() == os.fsencode(ODD)
    assert table["raw_path"].null_count == len(table) - 1


def test_a_relative_photo_is_found_from_where_the_run_was_started(folder, tmp_path, monkeypatch):
    text = (folder / "files.jsonl").read_text().replace('"folder": ""', f'"folder": "{tmp_path}"')
    (folder / "files.jsonl").write_text(text)
    monkeypatch.chdir("/")
    assert EmbeddingStore(folder).locate(0) == tmp_path / "a.jpg"


@pytest.mark.parametrize("name", ["manifest.json", "journal.jsonl"])
def test_a_damaged_record_is_an_error_with_its_name(folder, name):
    (folder / name).write_text('{"cut\n')
    with pytest.raises(OutputError, match=name):
        EmbeddingStore(folder)


def test_what_is_no_store_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(OutputError, match="aim-mlx embed"):
        EmbeddingStore(tmp_path)
    with pytest.raises(UsageError, match="aim-mlx embed"):
        EmbeddingStore(tmp_path / "nowhere")


def test_a_store_is_opened_from_the_public_name_in_a_fresh_process(folder):
    code = "import sys; from aim_mlx import EmbeddingStore; print(len(EmbeddingStore(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.stdout.strip() == str(len(PATHS)), done.stderr


def test_arrow_reads_the_shards_as_one_dataset(folder):
    files = sorted(map(str, folder.glob("rows-*.parquet")))
    table = ds.dataset(files, format="parquet").to_table()
    assert table.num_rows == len(PATHS)
    assert table.schema.field("embedding").type == pa.list_(
        pa.field("element", pa.float32(), nullable=False), 8
    )
    found = np.stack([row.values.to_numpy() for row in table["embedding"]])
    np.testing.assert_array_equal(found, VECTORS)


def test_duckdb_finds_the_nearest_rows(folder):
    query = f"""
        SELECT path, list_cosine_similarity(embedding, ?::FLOAT[]) AS similarity
        FROM '{folder}/rows-*.parquet' ORDER BY similarity DESC LIMIT 3
    """
    with duckdb.connect() as connection:
        rows = connection.execute(query, [VECTORS[5].tolist()]).fetchall()
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[5]))[:3]
    shown = [p.encode("utf-8", "backslashreplace").decode() for p in np.array(PATHS)[order]]
    assert [path for path, _ in rows] == shown
    # Sums of eight float32 products in another order.
    np.testing.assert_allclose([s for _, s in rows], (unit @ unit[5])[order], atol=1e-6)


def test_duckdb_takes_the_vectors_as_arrays_of_fixed_length(folder):
    query = f"""
        SELECT max(array_cosine_similarity(embedding::FLOAT[8], embedding::FLOAT[8])),
               count(*), sum(size)
        FROM '{folder}/rows-*.parquet'
    """
    with duckdb.connect() as connection:
        found = connection.execute(query).fetchall()
    (similarity, count, size) = found[0]
    assert similarity == pytest.approx(1, abs=1e-6) and count == len(PATHS)
    assert size == sum(map(len, PATHS))


def test_the_journal_names_every_shard_that_others_read(folder):
    names = {shard.name for shard in journal.read(folder / journal.NAME)[0].shards}
    assert names == {path.name for path in folder.glob("rows-*.parquet")}


def compact_at_the_first_read(folder, monkeypatch) -> list[bool]:
    """A run joins the shards, and takes a row out, when a reader has read the journal only."""
    done = []

    def compacting(where, shard, columns):
        if not done:
            done.append(True)
            with writing(folder) as writer:
                writer.begin(stores.manifest(8))
                writer.compact({0})
        return read_table(where, shard, columns)

    read_table = shards.read_table
    monkeypatch.setattr("aim_mlx.store.reader.read_table", compacting)
    return done


def test_a_store_that_is_compacted_meanwhile_is_read_again_as_a_whole(folder, monkeypatch):
    assert compact_at_the_first_read(folder, monkeypatch) == []
    paths, vectors = reading(folder, lambda store: (store.paths, store.vectors))
    assert paths == PATHS[1:]
    np.testing.assert_array_equal(vectors, VECTORS[1:])


def test_a_reader_that_does_not_begin_again_is_told_that_the_store_changed(folder, monkeypatch):
    compact_at_the_first_read(folder, monkeypatch)
    with pytest.raises(OutputError, match="changed while it was read: run the same command again"):
        len(EmbeddingStore(folder))


@pytest.mark.parametrize(
    "arguments",
    [["duplicates"], ["search", "--text", "words"], ["export", "{}/x.npz"]],
    ids=lambda arguments: arguments[0],
)
def test_no_command_takes_a_store_that_is_compacted_meanwhile_for_damaged(
    folder, tmp_path, monkeypatch, capsys, arguments
):
    done = compact_at_the_first_read(folder, monkeypatch)
    command, *rest = (each.format(tmp_path) for each in arguments)
    code = cli._run([command, str(folder), *rest])
    said = capsys.readouterr().err
    assert done and "damaged" not in said and "changed" not in said
    # Words cannot be compared with the vectors of this store: that is found once rows are there.
    refused = command == "search"
    assert code == (2 if refused else 0) and ("words can be compared" in said) == refused
