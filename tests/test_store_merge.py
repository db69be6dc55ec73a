"""Shares of several machines merged: the store of one machine, or a refusal that says why."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aim_mlx.cli import main as cli
from aim_mlx.images import in_share
from aim_mlx.store import journal, lists, manifest
from aim_mlx.store import merge as module
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.verify import verify
from tests import small
from tests.embed_runs import SAME

COUNT = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with photos, a model, the store of one machine and those of three."""
    folder = tmp_path_factory.mktemp("merge")
    (folder / "photos" / "sub").mkdir(parents=True)
    for seed in range(14):
        Image.fromarray(small.photo(seed)).save(folder / "photos" / f"{seed}.png")
    os.rename(folder / "photos" / "3.png", os.fsencode(folder) + b"/photos/\xff.png")
    shutil.copy(folder / "photos" / "5.png", folder / "photos" / "sub" / "same.png")
    frames = [Image.fromarray(small.photo(seed)) for seed in (20, 21)]
    frames[0].save(folder / "photos" / "moving.webp", save_all=True, append_images=frames[1:])
    for name in ("broken.jpg", "sub/cut.jpg", "notes.txt"):
        (folder / "photos" / name).write_bytes(b"no image")
    (folder / "photos" / "nothing.jpg").symlink_to("nowhere")
    small.save(folder / "model")
    before = os.getcwd()
    os.chdir(folder)
    try:
        embed("whole")
        for i in range(1, COUNT + 1):
            embed(f"s{i}", "--shard", f"{i}/{COUNT}")
    finally:
        os.chdir(before)
    return folder


def embed(out: str, *options: str, code: int = 3) -> None:
    assert cli._run(["embed", "photos", "-o", out, "--model", "model", *options]) in (code, 0)


@pytest.fixture
def work(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


SHARES = [f"s{i}" for i in range(1, COUNT + 1)]


def run(capsys, *arguments) -> tuple[int, str, list[str]]:
    capsys.readouterr()
    code = cli._run(["merge", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err.splitlines()


def refused(capsys, *arguments) -> tuple[int, str]:
    """Exit code and line of a merge that must leave nothing behind."""
    code, out, err = run(capsys, *arguments, "-o", "merged")
    assert out == "" and len(err) == 1, err
    assert not [name for name in os.listdir() if "merged" in name]
    return code, err[0]


def test_merged_shares_equal_the_store_of_one_machine(capsys, work):
    code, out, err = run(capsys, *reversed(SHARES), "-o", "merged", "--json")
    whole, merged = EmbeddingStore("whole"), EmbeddingStore("merged")
    assert code == 3 and merged.paths == whole.paths and len(merged) == 16
    # Other images share a batch, and so sums are made in another order.
    np.testing.assert_allclose(merged.vectors, whole.vectors, atol=SAME)
    assert merged.table().equals(whole.table())
    assert merged.skipped == whole.skipped and merged._state.skipped == whole._state.skipped
    assert merged._state.first_frames == whole._state.first_frames
    summary = json.loads(out)
    assert whole._state.finished and merged._state.finished
    for name in ("listed", "embedded", "skipped", "ignored"):
        assert summary[name] == whole._state.finished[name] == merged._state.finished[name]
    header, files = lists.read_files(work / "merged")
    expected, whole_files = lists.read_files(work / "whole")
    # The stores were copied here: where their relative names start is for the next run to say.
    assert (header.pop("output"), header.pop("folder")) == (str(work / "merged"), "")
    assert (header, files) == ({name: expected[name] for name in header}, whole_files)
    assert header.keys() == expected.keys() - {"output", "folder"}
    assert verify(merged).complete
    assert "3 stores merged: 16 embedded, 3 skipped, 1 ignored: merged" in err[0]


def test_the_vectors_are_those_of_the_shares_bit_for_bit(capsys, work, monkeypatch):
    monkeypatch.setattr(module, "_PART_ROWS", 3)
    assert run(capsys, *SHARES, "-o", "merged")[0] == 3
    merged = EmbeddingStore("merged")
    of_path = dict(zip(merged.paths, merged.vectors, strict=True))
    for share in map(EmbeddingStore, SHARES):
        for path, vector in zip(share.paths, share.vectors, strict=True):
            np.testing.assert_array_equal(of_path.pop(path), vector)
    assert not of_path


def test_embedding_again_into_the_merged_store_computes_nothing(capsys, work):
    assert run(capsys, *SHARES, "-o", "merged")[0] == 3
    assert cli._run(["embed", "photos", "-o", "merged", "--model", "model", "--json"]) == 3
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["computed"] == 0 and summary["unchanged"] == summary["embedded"] == 16


def test_shares_that_grew_in_several_runs_are_sorted_too(capsys, work):
    for seed in range(30, 36):
        Image.fromarray(small.photo(seed)).save(work / "photos" / f"0{seed}.png")
    (work / "photos" / "7.png").unlink()
    for i, share in enumerate(SHARES, 1):
        embed(share, "--shard", f"{i}/{COUNT}")
    assert any(sorted(s.paths, key=os.fsencode) != s.paths for s in map(EmbeddingStore, SHARES))
    assert run(capsys, *SHARES, "-o", "merged")[0] == 3
    paths = EmbeddingStore("merged").paths
    assert paths == sorted(paths, key=os.fsencode) and len(paths) == 22
    assert "photos/7.png" in paths  # its row is kept, as without --prune on one machine
    assert verify(EmbeddingStore("merged")).complete


@pytest.mark.parametrize(
    "stores, code, words",
    [
        (["s1", "s3"], 2, "2/3 is missing"),
        (["s1", "s2", "s2", "s3"], 2, "2/3 is one too many ('s2' and 's2')"),
        (["whole"], 2, "without --shard"),
        (["s1", "whole"], 2, "without --shard"),
        (["s1", "nowhere"], 2, "nowhere"),
        (["s1", "model"], 5, "is not a store"),
        (["s1", "photos/0.png"], 2, "photos/0.png"),
    ],
)
def test_what_is_not_every_share_once_is_refused(capsys, work, stores, code, words):
    got, line = refused(capsys, *stores)
    assert got == code and words in line


def test_shares_of_other_divisions_are_refused(capsys, work):
    embed("half", "--shard", "1/2")
    code, line = refused(capsys, *SHARES, "half")
    assert code == 2 and "each once: 1/2 is one too many ('half')" in line


def test_shares_with_other_vectors_are_refused(capsys, work):
    embed("s2", "--shard", "2/3", "--pooling", "max", "--overwrite")
    code, line = refused(capsys, *SHARES)
    assert code == 5 and "'s2' and 's1'" in line and "pooling" in line


def test_shares_of_other_lists_are_refused(capsys, work):
    Image.fromarray(small.photo(40)).save(work / "photos" / "new.png")
    embed("s3", "--shard", "3/3")
    code, line = refused(capsys, *SHARES)
    assert code == 5 and "'s3' and 's1' were made from different lists" in line


def test_a_share_that_was_not_finished_is_refused(capsys, work):
    journal.Journal(work / "s2").append()  # as the next run does when it starts
    code, line = refused(capsys, *SHARES)
    assert code == 5 and "the last run into 's2' was not finished" in line


def test_a_damaged_share_is_refused(capsys, work):
    os.truncate(work / "s3" / "rows-000000.parquet", 900)
    code, line = refused(capsys, *SHARES)
    assert code == 5 and "'s3': rows-000000.parquet: it has 900 bytes" in line


def test_a_share_of_a_newer_schema_is_refused(capsys, work):
    facts = EmbeddingStore("s2").manifest
    manifest.write(work / "s2", {**facts, "schema": 99})
    code, line = refused(capsys, *SHARES)
    assert code == 5 and "'s2' has schema 99" in line


def test_a_path_in_two_shares_is_refused(capsys, work):
    # The first share was the second of three once, and keeps those rows.
    embed("s1", "--shard", "2/3")
    embed("s1", "--shard", "1/3")
    code, line = refused(capsys, *SHARES)
    assert code == 5 and "has a row in 's1' and in 's2'" in line


def test_a_list_that_the_shares_do_not_make_up_is_refused(capsys, work, monkeypatch):
    monkeypatch.setattr(module.lists, "digest_of_paths", lambda files: "other")
    code, line = refused(capsys, *SHARES)
    assert code == 5 and "do not make up the list" in line


@pytest.mark.parametrize("target", ["s1", "whole", "photos", "photos/0.png"])
def test_a_target_that_is_there_is_refused_and_kept(capsys, work, target):
    before = sorted(map(str, (work).rglob("*")))
    code, _, err = run(capsys, *SHARES, "-o", target)
    assert code == 5 and len(err) == 1 and "exists" in err[0]
    assert sorted(map(str, work.rglob("*"))) == before


def test_a_target_in_a_folder_that_is_not_there_is_refused(capsys, work):
    code, _, err = run(capsys, *SHARES, "-o", "no/merged")
    assert code == 5 and len(err) == 1 and "create it first" in err[0]


def test_an_empty_folder_becomes_the_store(capsys, work):
    (work / "merged").mkdir()
    assert run(capsys, *SHARES, "-o", "merged")[0] == 3
    assert len(EmbeddingStore("merged")) == 16


def test_a_second_merge_into_one_target_is_refused_and_harms_nothing(capsys, work, monkeypatch):
    def meanwhile(shares, writer):
        code, _, err = run(capsys, *SHARES, "-o", "merged")
        assert code == 5 and len(err) == 1 and f"process {os.getpid()} is writing" in err[0]
        copy(shares, writer)

    copy = module._copy
    monkeypatch.setattr(module, "_copy", meanwhile)
    assert module.merge([Path(share) for share in SHARES], Path("merged")).embedded == 16
    assert verify(EmbeddingStore("merged")).complete


def test_a_target_that_appears_meanwhile_is_kept(capsys, work, monkeypatch):
    def meanwhile(shares, writer):
        (work / "merged").mkdir()
        (work / "merged" / "precious").write_text("x")

    monkeypatch.setattr(module, "_copy", meanwhile)
    code, _, err = run(capsys, *SHARES, "-o", "merged")
    assert code == 5 and len(err) == 1 and "cannot write 'merged'" in err[0]
    assert os.listdir("merged") == ["precious"] and not os.path.lexists(".merged.aim-mlx")


CRASH = """
import os, signal, sys
from aim_mlx.cli.main import main

left = int(sys.argv.pop(1))

def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove") and ".merged.aim-mlx" in str(arguments[0]):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
main()
"""


@pytest.mark.parametrize("step", [1, 5, 9, 13, 16])
def test_a_merge_that_was_killed_leaves_no_store_and_begins_anew(capsys, work, step):
    command = [sys.executable, "-c", CRASH, str(step), "merge", *SHARES, "-o", "merged"]
    died = subprocess.run(command, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not os.path.lexists("merged")
    assert run(capsys, *SHARES, "-o", "merged")[0] == 3
    assert verify(EmbeddingStore("merged")).complete
    assert EmbeddingStore("merged").paths == EmbeddingStore("whole").paths
    assert not os.path.lexists(".merged.aim-mlx")


def test_each_file_is_in_one_share_only(work):
    for path in EmbeddingStore("whole").paths:
        assert sum(in_share(path, (i, COUNT)) for i in range(1, COUNT + 1)) == 1
