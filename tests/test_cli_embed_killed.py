"""The real command, killed and interrupted: run again it comes to the same bits."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aim_mlx.embedding import job as embedding
from aim_mlx.store import writer
from aim_mlx.store.reader import EmbeddingStore
from tests.commands import start
from tests.embed_runs import Run, embed
from tests.small import photo, save
from tests.store_crashes import facts

PHOTOS = 36
BLOCK = 4

# Before the command: blocks as small as its photos are few.
SMALL_BLOCKS = f"""
from aim_mlx.embedding import job as embed_files
from aim_mlx.store import writer
embed_files.block_size, writer._SECONDS = lambda *_: {BLOCK}, 0.0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model, photos that differ, among them one that is tried by every run, and their store."""
    home = tmp_path_factory.mktemp("home")
    save(home / "model")
    (home / "photos").mkdir()
    for i in range(PHOTOS):
        Image.fromarray(photo(i, 225, 300)).save(home / "photos" / f"{i:02}.png")
    (home / "photos" / "05.png").write_bytes(b"")
    process = embedding_into(home, home / "whole")
    process.communicate(timeout=60)
    assert process.returncode == 3
    return home


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(embedding, "block_size", lambda *_: BLOCK)
    monkeypatch.setattr(writer, "_SECONDS", 0.0)


def embedding_into(home: Path, out: Path) -> subprocess.Popen[str]:
    call = ["embed", home / "photos", "-o", out, "--model", home / "model"]
    return start(*call, before=SMALL_BLOCKS)


def started(home: Path, out: Path, shards: int) -> subprocess.Popen:
    """A run that has come to so many shards, or to its end."""
    process = embedding_into(home, out)
    deadline = time.monotonic() + 60
    while len(list(out.glob("rows-*.parquet"))) < shards and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def resume(home: Path, out: Path) -> Run:
    return embed(home / "photos", "-o", out, "--model", home / "model")


def check_same(home: Path, out: Path) -> None:
    ours, whole = facts(out), facts(home / "whole")
    vectors = np.frombuffer(ours["vectors"], np.float32)
    np.testing.assert_array_equal(vectors, np.frombuffer(whole["vectors"], np.float32))
    assert ours == whole


@pytest.mark.parametrize("seed", range(10))
def test_a_command_that_was_killed_at_any_time_comes_to_the_same_bits(home, tmp_path, seed):
    rng = np.random.default_rng(seed)
    process = started(home, tmp_path / "out", shards=seed)
    time.sleep(rng.uniform(0, 0.02))
    process.kill()
    process.communicate()
    resume(home, tmp_path / "out").check_account(PHOTOS - 1, 1, 0)
    check_same(home, tmp_path / "out")


@pytest.mark.parametrize("shards", [1, 4])
def test_an_interrupt_keeps_the_whole_blocks_and_says_how_to_go_on(home, tmp_path, shards):
    process = started(home, tmp_path / "out", shards)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    kept = len(EmbeddingStore(tmp_path / "out"))
    assert process.returncode == 130, stderr
    line = f"interrupted: {kept} rows kept for {tmp_path / 'out'}; run the same command again"
    assert line in stderr.splitlines()[-1]
    # 05.png has no row, so that one block has a row less.
    assert kept % BLOCK in (0, BLOCK - 1) and kept >= BLOCK * shards - 1
    done = resume(home, tmp_path / "out")
    assert done.summary["unchanged"] == kept
    check_same(home, tmp_path / "out")


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02])
def test_a_second_interrupt_ends_at_once_and_costs_no_block_that_was_kept(home, tmp_path, seconds):
    process = started(home, tmp_path / "out", shards=2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.002 + seconds)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr and "Traceback" not in stderr and "terminate" not in stderr
    kept = len(EmbeddingStore(tmp_path / "out"))
    # The file of the second shard was seen; the journal, by which it is kept, comes after it.
    assert kept >= BLOCK
    assert resume(home, tmp_path / "out").summary["unchanged"] == kept
    check_same(home, tmp_path / "out")
