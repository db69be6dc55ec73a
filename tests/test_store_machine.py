"""Any history of files, runs, crashes and rules: each vector is that of its photo, none is lost."""

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aim_mlx.embedding.job import Summary
from aim_mlx.errors import AimError, UsageError
from aim_mlx.store.reader import EmbeddingStore
from tests.store_crashes import Disk, StubEncoder, all_vectors, run, vector_of

ODD = "\udcff" if sys.platform == "linux" else "\u00e9\n"
NAMES = st.sampled_from([f"{name}.jpg" for name in ("a", "b", "c", "d", "e", "f", "g", ODD)])
# Few contents, so that there are duplicates; most of one size, for changes that nothing shows.
CONTENTS = st.sampled_from([b"good 1", b"good 2", b"film 3", b"good 44", b"bad 55", b"bad 6", b""])
# "hide" changes a file without a new size or time.
KINDS = st.sampled_from(["put", "touch", "delete", "rename", "hide"])
RULES = st.sampled_from([{}, {}, {}, {"prune": True}, {"retry_skipped": True}, {"overwrite": True}])


class Crash(BaseException):
    """The end of a process: on the way out nothing changes the disk any more."""


class Photos(RuleBasedStateMachine):
    """A folder of photos, a store of them, and what the store must hold."""

    def __init__(self):
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.photos, self.out = self.home / "photos", self.home / "out"
        self.photos.mkdir()
        self.clock = 10**18
        self.ever: dict[str, set[bytes]] = {}  # the contents that each path has had
        self.hidden: set[int] = set()  # times of change of files that changed without a sign
        self.rows: dict[str, str] = {}  # path -> digest, as the store had them last

    def teardown(self):
        shutil.rmtree(self.home)

    def put(self, name: str, content: bytes, mtime_ns: int | None = None) -> None:
        self.clock += 10**9
        path = self.photos / name
        path.write_bytes(content)
        mtime_ns = mtime_ns or self.clock
        os.utime(path, ns=(mtime_ns, mtime_ns))
        self.ever.setdefault(str(path), set()).add(content)

    # What happens to the photos

    @initialize(files=st.dictionaries(NAMES, CONTENTS, min_size=5))
    def begin(self, files):
        for name, content in files.items():
            self.put(name, content)

    @rule(changes=st.lists(st.tuples(KINDS, NAMES, NAMES, CONTENTS), min_size=1, max_size=4))
    def change(self, changes):
        for kind, name, other, content in changes:
            path = self.photos / name
            if kind == "put":
                self.put(name, content)
            elif path.exists() and kind == "touch":
                self.put(name, path.read_bytes())
            elif path.exists() and kind == "delete":
                path.unlink()
            elif path.exists() and kind == "rename":
                self.ever.setdefault(str(self.photos / other), set()).add(path.read_bytes())
                os.replace(path, self.photos / other)
            elif path.exists() and kind == "hide" and path.stat().st_size == len(content):
                self.hidden.add(path.stat().st_mtime_ns)
                self.put(name, content, path.stat().st_mtime_ns)

    # What happens to the store

    @rule(rules=RULES)
    def run(self, rules):
        self.embed(rules, None)

    @rule(rules=RULES, n=st.integers(0, 90))
    def run_and_crash(self, rules, n):
        def crash() -> None:
            raise Crash

        try:
            with Disk(n, crash, for_good=True).watched():
                self.embed(rules, n)
        except Crash:
            self.remember(rules.get("overwrite", False), rules.get("prune", False))

    def embed(self, rules: dict[str, bool], n: int | None) -> None:
        try:
            summary = run(self.photos, self.out, **rules)
        except UsageError as error:
            assert rules.get("prune") and "is its disk mounted?" in str(error)
        except AimError as error:  # an empty folder, or one of bad photos only
            assert "0 images" in str(error) or "could be embedded" in str(error)
        else:
            self.check_complete(summary, rules)
        self.remember(rules.get("overwrite", False), rules.get("prune", False))

    def check_complete(self, summary: Summary, rules: dict[str, bool]) -> None:
        """The account, and each listed file in one place, with the vector of what it is now."""
        store = EmbeddingStore(self.out)
        listed = {str(path): path for path in self.photos.iterdir()}
        skipped = {skip["path"]: skip for skip in store.skipped}
        facts = {row["path"]: row for row in self.table(store)}
        assert store.finished and len(facts) == len(store) and len(skipped) == len(store.skipped)
        assert summary.embedded + summary.skipped + summary.ignored == summary.listed == len(listed)
        assert summary.embedded == summary.computed + summary.reused + summary.unchanged
        assert (summary.embedded, summary.skipped) == (len(facts.keys() & listed), len(skipped))
        assert summary.vanished == len(facts.keys() - listed)
        assert not (summary.vanished and rules.get("prune"))
        assert facts.keys() & listed | skipped.keys() == listed.keys()
        assert not facts.keys() & skipped.keys()
        for name, path in listed.items():
            found, content = path.stat(), path.read_bytes()
            good = content.startswith((b"good", b"film"))
            if found.st_mtime_ns in self.hidden:
                continue
            assert (name in facts) == good
            if good:
                row = facts[name]
                assert (row["size"], row["mtime_ns"]) == (found.st_size, found.st_mtime_ns)
                assert row["digest"] == hashlib.sha256(content).hexdigest()
                assert (name in store._state.first_frames) == content.startswith(b"film")
        # Whoever reads the shards as they are gets the same.
        tables = [pq.read_table(self.out / shard.name) for shard in store._state.shards]
        read = [row for table in tables for row in table.to_pylist()]
        assert [row["digest"] for row in read] == [row["digest"] for row in self.table(store)]
        vectors = np.array([row["embedding"] for row in read], np.float32)
        np.testing.assert_array_equal(vectors.reshape(len(store), store.dim), all_vectors(store))

    def remember(self, overwritten: bool, pruned: bool) -> None:
        """Rows of files that are no more stay, whatever the end of the run.

        Those make room whose content is there under another name.
        """
        rows = {}
        if self.out.exists() and any(self.out.glob("journal.jsonl")):
            try:
                rows = {row["path"]: row["digest"] for row in self.table(EmbeddingStore(self.out))}
            except AimError:
                assert not (self.out / "manifest.json").exists()
        if not overwritten and not pruned:
            for path in self.rows.keys() - {str(path) for path in self.photos.iterdir()}:
                there = {rows[p] for p in rows.keys() & set(map(str, self.photos.iterdir()))}
                assert rows.get(path) == self.rows[path] or self.rows[path] in there
        self.rows = rows

    @invariant()
    def every_row_is_of_its_photo(self):
        """Also in a store whose run has crashed."""
        if not (self.out / "manifest.json").exists():
            return
        store = EmbeddingStore(self.out)
        rows = self.table(store)
        assert len({row["path"] for row in rows}) == len(rows) == len(store)
        for row, vector in zip(rows, all_vectors(store), strict=True):
            contents = {hashlib.sha256(c).hexdigest(): c for c in self.ever[row["path"]]}
            np.testing.assert_array_equal(vector[:-1], vector_of(contents[row["digest"]])[:-1])

    @staticmethod
    def table(store: EmbeddingStore) -> list[dict]:
        """The rows with their exact paths."""
        rows = store.table().to_pylist()
        return [{**row, "path": path} for row, path in zip(rows, store.paths, strict=True)]


TestPhotos = Photos.TestCase
TestPhotos.settings = settings(
    max_examples=60,
    stateful_step_count=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# What such histories seldom come upon


def test_a_film_that_became_a_photo_is_no_film_any_more(tmp_path):
    (tmp_path / "in").mkdir()
    for content, films in ((b"film", 1), (b"a photo", 0), (b"film again", 1)):
        (tmp_path / "in" / "a.jpg").write_bytes(content)
        run(tmp_path / "in", tmp_path / "out")
        assert len(EmbeddingStore(tmp_path / "out")._state.first_frames) == films


@pytest.mark.parametrize("change", ["rewritten", "deleted"])
def test_a_copy_of_a_file_that_goes_or_changes_meanwhile_is_embedded(tmp_path, monkeypatch, change):
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / name for name in ("a.jpg", "b.jpg", "c.jpg")]
    for path in paths:
        path.write_bytes(b"good")
    read = StubEncoder.embed_stream

    def meddle(self, *arguments):
        for row in read(self, *arguments):
            if row.index == 0 and change == "deleted":
                paths[0].unlink(missing_ok=True)
            elif row.index == 0:
                paths[0].write_bytes(b"another content")
            yield row

    monkeypatch.setattr(StubEncoder, "embed_stream", meddle)
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.computed, summary.reused, summary.skipped) == (1, 1, 1)
    store = EmbeddingStore(tmp_path / "out")
    assert store.paths == [str(path) for path in paths[1:]]
    (skip,) = store.skipped
    assert skip["path"] == str(paths[0])
    assert skip["reason"] == {"rewritten": "changed", "deleted": "vanished"}[change]


def test_files_that_were_renamed_keep_their_vectors_wherever_in_a_shard_they_are(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("aim_mlx.store.shards._GROUP_ROWS", 3)  # of the five rows of a shard
    (tmp_path / "in").mkdir()
    for i in range(23):
        (tmp_path / "in" / f"{i:02}.jpg").write_bytes(f"good {i}".encode())
    run(tmp_path / "in", tmp_path / "out")
    for place, i in enumerate(np.random.default_rng(0).permutation(23)):
        os.rename(tmp_path / "in" / f"{i:02}.jpg", tmp_path / "in" / f"new {place:02}.jpg")
    assert run(tmp_path / "in", tmp_path / "out", prune=True).reused == 23
    store = EmbeddingStore(tmp_path / "out")
    for path, vector in zip(store.paths, all_vectors(store), strict=True):
        np.testing.assert_array_equal(vector[:-1], vector_of(Path(path).read_bytes())[:-1])
