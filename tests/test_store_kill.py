"""Runs that are killed: resumed they give what an uninterrupted one gives, to the bit."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.errors import AimError, OutputError
from aim_mlx.store.reader import EmbeddingStore
from tests.store_crashes import all_vectors, facts, run, vector_of

RANDOM = 8

FILES = {
    "a.jpg": b"good a",
    "b.jpg": b"",  # tried again by every run, as it may not be written yet
    "c.jpg": b"good c",
    "d.jpg": b"good a",
    "e.jpg": b"bad",
    "f.jpg": b"good f",
    "g.jpg": b"bad",
    "h.jpg": b"good h",
    "i.jpg": b"film i",
    "j.jpg": b"good j",
    "k.jpg": b"good k",
    "l.jpg": b"good f",
    "m.jpg": b"good m",
}
# What becomes of the files between two runs; None for one that is deleted.
CHANGES = {
    "c.jpg": None,
    "cc.jpg": b"good c",  # renamed
    "e.jpg": b"good now",
    "f.jpg": None,  # l.jpg has its content
    "h.jpg": b"good, and other than before",
    "j.jpg": b"good j",  # touched
    "k.jpg": b"bad after all",
    "n.jpg": b"good n",
    "o.jpg": b"good n",
    "p.jpg": b"good p",
}


PRUNE = {"prune": True}


@dataclass
class Life:
    """Photos, a folder with what a run began with, and one with what it comes to."""

    photos: Path
    before: Path
    whole: Path
    rules: dict[str, bool]

    def killed(self, into: Path, output: str, last: int = 10_000) -> list[Path]:
        """The folders that runs left which were killed, each at another point."""
        into.mkdir()
        job = {
            "photos": str(self.photos),
            "into": str(into),
            "before": str(self.before),
            "name": output,
            "rules": self.rules,
            "last": last,
            "random": RANDOM,
        }
        command = [sys.executable, "-m", "tests.store_crashes", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return sorted(into.iterdir())


@pytest.fixture(scope="module", params=["first", "second"])
def life(request, tmp_path_factory) -> Life:
    """A first run, or a second that meets every kind of change and takes out what is no more."""
    folder = tmp_path_factory.mktemp(request.param)
    photos, before, whole = (folder / name for name in ("photos", "before", "whole"))
    photos.mkdir()
    before.mkdir()
    make(photos, FILES)
    if request.param == "second":
        run(photos, before / "out")
        make(photos, CHANGES)
    shutil.copytree(before, whole)
    rules = {"prune": request.param == "second"}
    run(photos, whole / "out", **rules)
    return Life(photos, before, whole, rules)


def make(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)


def test_a_store_whose_runs_were_killed_is_that_of_a_run_that_was_not(life, tmp_path):
    inputs = {path: (path.read_bytes(), path.stat()) for path in life.photos.iterdir()}
    whole = facts(life.whole / "out")
    folders = life.killed(tmp_path / "killed", "out")
    assert len(folders) > 100
    for folder in folders:
        check_unfinished(folder / "out")
        run(life.photos, folder / "out", **life.rules)
        assert facts(folder / "out") == whole, folder.name
    after = {path: (path.read_bytes(), path.stat()) for path in life.photos.iterdir()}
    assert {p: (b, s.st_mtime_ns) for p, (b, s) in after.items()} == {
        p: (b, s.st_mtime_ns) for p, (b, s) in inputs.items()
    }


def check_unfinished(output: Path) -> None:
    """What a killed run left is no store, or one of vectors of files of these names."""
    try:
        store = EmbeddingStore(output)
    except AimError:
        assert not list(output.glob("rows-*")), output
        return
    rows = zip(store.table(["path", "digest"]).to_pylist(), all_vectors(store), strict=True)
    for row, vector in rows:
        name = Path(row["path"]).name
        contents = {files[name] for files in (FILES, CHANGES) if files.get(name)}
        (content,) = [c for c in contents if hashlib.sha256(c).hexdigest() == row["digest"]]
        np.testing.assert_array_equal(vector[:-1], vector_of(content)[:-1])


@pytest.mark.parametrize("life", ["first"], indirect=True)
@pytest.mark.parametrize("name", ["out.npz", "out.npy"])
def test_a_file_whose_run_was_killed_is_that_of_a_run_that_was_not(life, tmp_path, name):
    run(life.photos, tmp_path / name)
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # Before its last operations it is a store like any other.
    for folder in life.killed(tmp_path / "killed", name, last=30):
        complete = all((folder / n).exists() for n in expected)
        if (folder / name).exists():  # killed between the last rename and the end
            assert {n: (folder / n).read_bytes() for n in expected} == expected, folder.name
        try:
            run(life.photos, folder / name)
        except OutputError as error:
            assert "exists: pass --overwrite" in str(error) and complete, folder.name
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected, folder.name


def test_a_file_that_was_being_replaced_is_never_rows_beside_the_paths_of_others(tmp_path):
    photos, before, whole = (tmp_path / name for name in ("photos", "before", "whole"))
    for folder in (photos, before, whole):
        folder.mkdir()
    make(photos, FILES)
    run(photos, before / "out.npy")
    make(photos, CHANGES)
    run(photos, whole / "out.npy")
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    life = Life(photos, before, whole, {"overwrite": True})
    for folder in life.killed(tmp_path / "killed", "out.npy", last=30):
        rows, paths = folder / "out.npy", folder / "out.npy.json"
        if rows.exists():
            digest = hashlib.sha256(rows.read_bytes()).hexdigest()
            assert digest == json.loads(paths.read_text())["sha256"], folder.name
        run(photos, folder / "out.npy", overwrite=True)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected, folder.name
