"""One-file outputs: complete or untouched, readable by the usual libraries."""

import hashlib
import json
import os
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from aim_mlx import files as durable
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.store import export as onefile
from aim_mlx.store.export import Rows, is_file_target, sidecar, write_file
from tests.full_disk import full_from
from tests.store_crashes import Disk
from tests.stores import make_store

VECTORS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
PATHS = ["a.jpg", "ä/ü.png", "new\nline", os.fsdecode(b"\xff.jpg"), "x" * 300]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "store", PATHS, VECTORS)


def read(target):
    """(embeddings, paths, manifest) as a user would get them."""
    if target.suffix == ".npz":
        with np.load(target) as archive:
            return (
                archive["embeddings"],
                list(archive["paths"]),
                json.loads(str(archive["manifest"])),
            )
    if target.suffix == ".npy":
        record = json.loads(sidecar(target).read_text())
        return np.load(target), record["paths"], record["manifest"]
    if target.suffix == ".parquet":
        table = pq.read_table(target)
        paths = [
            os.fsdecode(raw) if raw else path
            for path, raw in zip(
                table["path"].to_pylist(), table["raw_path"].to_pylist(), strict=True
            )
        ]
        manifest = json.loads(table.schema.metadata[b"aim_mlx"])
        return np.array(table["embedding"].to_pylist(), np.float32), paths, manifest
    if target.suffix == ".jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        manifest = json.loads(sidecar(target).read_text())["manifest"]
        vectors = np.array([row["embedding"] for row in rows], np.float32)
        return vectors, [row["path"] for row in rows], manifest
    with safe_open(target, "numpy") as file:
        paths = json.loads(file.get_tensor("paths_json").tobytes())
        return file.get_tensor("embeddings"), paths, json.loads(file.metadata()["manifest"])


def exact(paths, suffix):
    """The paths as a kind of file has them: .jsonl has text only."""
    return (
        [path.encode("utf-8", "backslashreplace").decode() for path in paths]
        if (suffix == ".jsonl")
        else paths
    )


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_rows_names_and_manifest_come_back_exactly(store, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    write_file(Rows(store), target)
    embeddings, paths, manifest = read(target)
    np.testing.assert_array_equal(embeddings, VECTORS)
    assert embeddings.dtype == np.float32 and paths == exact(PATHS, suffix)
    assert manifest["pooling"] == "mean" and manifest["first_frame_only"] == ["a.jpg"]
    skip = {"path": "bad.jpg", "reason": "empty", "detail": "0 bytes"}
    assert manifest["skipped"] == [skip]


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_rows_come_in_the_order_of_the_paths_that_are_wanted(store, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(onefile, "_PART_ROWS", 2)
    wanted = [PATHS[4], "of another store", PATHS[0], PATHS[1]]
    write_file(Rows(store, wanted), tmp_path / f"out{suffix}")
    embeddings, paths, _ = read(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(embeddings, VECTORS[[4, 0, 1]])
    assert paths == [PATHS[4], PATHS[0], PATHS[1]]


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_nothing_but_the_result_is_left_in_the_folder(store, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    write_file(Rows(store), target)
    beside = {sidecar(target)} if suffix in (".npy", ".jsonl") else set()
    assert set(tmp_path.iterdir()) == {target} | beside


def test_an_error_before_the_end_leaves_the_old_file_as_it_was(store, tmp_path, monkeypatch):
    target = tmp_path / "out.npz"
    target.write_bytes(b"precious")
    rows = Rows(store)
    monkeypatch.setattr(rows, "vectors", lambda: iter([np.zeros((1, 3), np.float32), 1 / 0]))
    with pytest.raises(ZeroDivisionError):
        write_file(rows, target, overwrite=True)
    assert target.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [target]


def test_an_existing_file_is_replaced_only_on_request(store, tmp_path):
    target = tmp_path / "out.npy"
    write_file(Rows(store), target)
    with pytest.raises(OutputError, match="--overwrite"):
        write_file(Rows(store), target)
    write_file(Rows(store, PATHS[:2]), target, overwrite=True)
    assert read(target)[1] == PATHS[:2]


def test_a_sidecar_of_something_else_is_not_overwritten(store, tmp_path):
    (tmp_path / "out.npy.json").write_text("precious")
    with pytest.raises(OutputError, match="out.npy.json"):
        write_file(Rows(store), tmp_path / "out.npy")


def test_a_full_disk_is_an_output_error_that_leaves_nothing(store, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_file(Rows(store), tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.csv", "out", "out.NPZ.txt"])
def test_an_unknown_suffix_is_refused(store, tmp_path, name):
    with pytest.raises(UsageError, match="must end in"):
        write_file(Rows(store), tmp_path / name)


def test_a_name_says_whether_the_output_is_a_file_or_a_folder(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    assert is_file_target(tmp_path / "x.parquet")
    assert not any(is_file_target(tmp_path / name) for name in ("x", "x.v2", "folder.npz"))
    with pytest.raises(UsageError, match="or be a folder"):
        is_file_target(tmp_path / "x.csv")


def test_a_missing_folder_is_refused(store, tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        write_file(Rows(store), tmp_path / "missing" / "out.npz")


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_a_name_too_long_or_a_pipe_is_an_output_error(store, tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    for name in ("x" * 300, "pipe"):
        with pytest.raises(OutputError):
            write_file(Rows(store), tmp_path / f"{name}{suffix}", overwrite=True)


def test_a_link_to_nothing_is_not_replaced_unasked(store, tmp_path):
    (tmp_path / "out.npz").symlink_to("nothing")
    with pytest.raises(OutputError, match="exists"):
        write_file(Rows(store), tmp_path / "out.npz")


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_a_full_disk_is_an_output_error_that_leaves_all_as_it_was(tmp_path, suffix):
    # Five rows of a thousand numbers: 20,000 bytes without any header.
    vectors = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32)
    source = make_store(tmp_path / "store", PATHS, vectors)
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / f"out{suffix}"
    write_file(Rows(source), target)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for limit in (6000, 20_000, 20_050):
        with pytest.raises(OutputError, match="it is as it was"), full_from(limit):
            write_file(Rows(source), target, overwrite=True)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


# Crashes


class Crash(BaseException):
    """The end of a process: on the way out nothing changes the disk any more."""


def crash() -> None:
    raise Crash


def crashed_writes(store, tmp_path, suffix, before, **rules):
    """The folders that writes of a file left which ended at another operation each."""
    counting = Disk(-1, crash)
    for n in [-1, *range(1000)]:
        if n >= 0 and n >= counting.count:
            return
        target = tmp_path / f"{n}" / f"out{suffix}"
        target.parent.mkdir()
        before(target)
        disk = counting if n < 0 else Disk(n, crash, for_good=True)
        with suppress(Crash), disk.watched():
            write_file(Rows(store), target, **rules)
        if n >= 0:
            yield target


def fits(target) -> bool:
    """Whether rows and sidecar, where both are there, name each other."""
    both = target.exists() and sidecar(target).exists()
    named = json.loads(sidecar(target).read_text())["sha256"] if both else None
    return not both or named == hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_after_a_crash_the_same_command_writes_the_file_and_leaves_nothing_else(
    store, tmp_path, suffix
):
    write_file(Rows(store), tmp_path / f"out{suffix}")
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    folders = list(crashed_writes(store, tmp_path, suffix, before=lambda target: None))
    assert len(folders) > 3
    for target in folders:
        complete = all((target.parent / name).exists() for name in whole)
        try:
            write_file(Rows(store), target)
        except OutputError as error:
            assert "exists: pass --overwrite" in str(error) and complete
        assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == whole


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_a_crash_never_leaves_old_rows_beside_new_paths(store, tmp_path, suffix):
    def older(target):
        write_file(Rows(store, PATHS[::-1]), target)  # as many rows: nothing else would show it

    seen = set()
    for target in crashed_writes(store, tmp_path, suffix, before=older, overwrite=True):
        assert fits(target)
        seen.add((target.exists(), sidecar(target).exists()))
        write_file(Rows(store), target, overwrite=True)
        assert fits(target) and {p.name for p in target.parent.iterdir()} == {
            target.name, sidecar(target).name,
        }  # fmt: skip
    assert seen == {(True, True), (False, True)}


def test_a_sidecar_names_the_digest_of_its_rows(store, tmp_path):
    write_file(Rows(store), tmp_path / "out.npy")
    assert fits(tmp_path / "out.npy")
    np.save(tmp_path / "out.npy", VECTORS[::-1])
    assert not fits(tmp_path / "out.npy")


def test_a_sidecar_whose_rows_were_moved_away_is_not_taken_for_a_leftover(store, tmp_path):
    write_file(Rows(store), tmp_path / "out.npy")
    os.rename(tmp_path / "out.npy", tmp_path / "mine.npy")
    with pytest.raises(OutputError, match="out.npy.json' exists"):
        write_file(Rows(store), tmp_path / "out.npy")
    assert sidecar(tmp_path / "out.npy").exists()
