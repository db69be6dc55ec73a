"""When rows become durable: what is flushed before what, and how long they wait at most."""

import os
import stat

import numpy as np
import pyarrow.parquet as pq
import pytest

from aim_mlx import files as durable
from aim_mlx.errors import OutputError
from aim_mlx.store import journal, shards
from aim_mlx.store import writer as module
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.shards import read_table
from aim_mlx.store.writer import StoreWriter, writing
from tests import stores

DIM = 8
VECTORS = np.random.default_rng(0).normal(size=(6, DIM)).astype(np.float32)


@pytest.fixture
def writer(tmp_path):
    with writing(tmp_path / "store") as opened:
        opened.begin(stores.manifest(DIM))
        opened.start_run({"folder": "", "listed": 6, "ignored": 0}, [*"abcdef"], [])
        yield opened


def add(writer: StoreWriter, number: int) -> None:
    writer.add(stores.row("abcdef"[number]), VECTORS[number])
    writer.end_block()


def test_a_shard_has_its_name_before_the_journal_has_its_line_and_both_are_flushed(
    writer, monkeypatch
):
    """A line that is only in the system's memory is lost with the power, and its rows with it."""
    done, fsync, replace = [], os.fsync, os.replace
    inode = (writer.folder / journal.NAME).stat().st_ino

    def flushed(handle: int) -> None:
        found = os.fstat(handle)
        if found.st_ino == inode:  # with the line in it
            done.append(f"journal of {found.st_size > before} more")
        elif not stat.S_ISDIR(found.st_mode):
            done.append("shard")
        fsync(handle)

    def renamed(old, new) -> None:
        replace(old, new)
        done.append(f"named {os.path.basename(new)}")

    monkeypatch.setattr(durable.sys, "platform", "linux")  # macOS has another call
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    add(writer, 0)
    before = (writer.folder / journal.NAME).stat().st_size
    writer.commit()
    assert done == ["shard", "named rows-000000.parquet", "journal of True more"]


@pytest.mark.parametrize(("seconds", "rows"), [(29.0, 0), (30.0, 2), (3000.0, 2)])
def test_rows_wait_for_half_a_minute_at_most(writer, monkeypatch, seconds, rows):
    now = [module.time.monotonic()]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    writer.commit()  # the clock starts
    add(writer, 0)
    now[0] += seconds
    add(writer, 1)
    assert journal.read(writer.folder / journal.NAME)[0].rows == rows


def test_a_flipped_bit_in_a_vector_is_noticed_by_every_reader(writer):
    """Vectors are not compressed, so that without checksums of pages they would just be others."""
    for number in range(6):
        add(writer, number)
    writer.commit()
    (shard,) = writer.state.shards
    path = writer.folder / shard.name
    data = bytearray(path.read_bytes())
    place = data.index(VECTORS[3].tobytes())
    data[place + 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(OutputError, match="damaged.*CRC"):
        read_table(writer.folder, shard, ["embedding"])
    with pytest.raises(OutputError, match="damaged.*CRC"):
        shards.read_group(writer.folder, shard, 3)
    with pytest.raises(OutputError, match="damaged.*CRC"):
        len(EmbeddingStore(writer.folder).vectors)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)
