"""One-file outputs: complete or untouched, readable by the usual libraries."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

from aim_mlx import durable
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.store import onefile
from aim_mlx.store.onefile import OneFile, sidecar

VECTORS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
PATHS = ["a.jpg", "ä/ü.png", "new\nline", os.fsdecode(b"\xff.jpg"), "x" * 300]
MANIFEST = {"pooling": "mean", "skipped": [{"path": "é"}]}


def write(target, overwrite=False):
    with OneFile(target, 3, overwrite) as file:
        for path, vector in zip(PATHS, VECTORS, strict=True):
            file.add(path, vector)
        file.commit(MANIFEST)
    return target


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
    with safe_open(target, "numpy") as file:
        paths = json.loads(file.get_tensor("paths_json").tobytes())
        return file.get_tensor("embeddings"), paths, json.loads(file.metadata()["manifest"])


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_rows_names_and_manifest_come_back_exactly(tmp_path, suffix):
    embeddings, paths, manifest = read(write(tmp_path / f"out{suffix}"))
    np.testing.assert_array_equal(embeddings, VECTORS)
    assert embeddings.dtype == np.float32 and paths == PATHS and manifest == MANIFEST


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_nothing_but_the_result_is_left_in_the_folder(tmp_path, suffix):
    target = write(tmp_path / f"out{suffix}")
    expected = {target, sidecar(target)} if suffix == ".npy" else {target}
    assert set(tmp_path.iterdir()) == expected


def test_more_rows_than_one_chunk_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onefile, "_CHUNK_ROWS", 2)
    embeddings, paths, _ = read(write(tmp_path / "out.npz"))
    np.testing.assert_array_equal(embeddings, VECTORS)
    assert paths == PATHS


def test_an_error_before_the_end_leaves_the_old_file_as_it_was(tmp_path):
    target = tmp_path / "out.npz"
    target.write_bytes(b"precious")
    with pytest.raises(ZeroDivisionError), OneFile(target, 3, overwrite=True) as file:
        file.add("a.jpg", VECTORS[0])
        raise ZeroDivisionError
    assert target.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [target]


def test_an_existing_file_is_replaced_only_on_request(tmp_path):
    target = write(tmp_path / "out.npy")
    with pytest.raises(OutputError, match="--overwrite"):
        write(target)
    assert read(write(target, overwrite=True))[1] == PATHS


def test_a_sidecar_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "out.npy.json").write_text("precious")
    with pytest.raises(OutputError, match="out.npy.json"):
        write(tmp_path / "out.npy")


def test_a_full_disk_is_an_output_error_that_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.csv", "out", "out.NPZ.txt"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="must end in"):
        write(tmp_path / name)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        write(tmp_path / "missing" / "out.npz")


@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_a_name_too_long_or_a_pipe_is_an_output_error(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    for name in ("x" * 300, "pipe"):
        with pytest.raises(OutputError):
            write(tmp_path / f"{name}{suffix}", overwrite=True)


def test_a_link_to_nothing_is_not_replaced_unasked(tmp_path):
    (tmp_path / "out.npz").symlink_to("nothing")
    with pytest.raises(OutputError, match="exists"):
        write(tmp_path / "out.npz")


# Writes five rows of a thousand numbers, 20,000 bytes without any header, where no file may grow
# beyond a number of bytes: as on a full disk, all of what is buffered fails again on closing.
FULL = """
import resource, signal, sys
import numpy as np
from aim_mlx.errors import OutputError
from aim_mlx.store.onefile import OneFile
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with OneFile(Path(sys.argv[1]), 1000, overwrite=True) as file:
        for i in range(5):
            file.add(str(i), np.zeros(1000, np.float32))
        file.commit({"skipped": []})
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [6000, 20_000, 20_050])
@pytest.mark.parametrize("suffix", onefile.SUFFIXES)
def test_a_full_disk_is_an_output_error_that_leaves_all_as_it_was(tmp_path, suffix, limit):
    target = write(tmp_path / f"out{suffix}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(target), str(limit)], capture_output=True, text=True
    )
    assert "nothing was kept" in done.stdout and not done.stderr, done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
