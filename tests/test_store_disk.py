"""Disks that fail, and two who write: no finished row is lost."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from aim_mlx.errors import OutputError
from aim_mlx.store import journal, lists
from aim_mlx.store.reader import EmbeddingStore
from tests.bad_images import JPEG, PNG
from tests.commands import start
from tests.embed_runs import Run, embed, make
from tests.full_disk import full_from
from tests.small import many_photos, save, wait_for
from tests.store_crashes import Disk, facts, run

FILES = {f"{name}.jpg": f"good {name}".encode() for name in "abcdefghijk"}


@pytest.fixture
def photos(tmp_path) -> Path:
    return make(tmp_path / "photos", FILES)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


# Full and failing disks


@pytest.mark.parametrize(("name", "last"), [("out", 10_000), ("out.npy", 50)])
def test_a_disk_that_fails_at_any_operation_costs_no_row_that_was_kept(
    photos, tmp_path, name, last
):
    """Of a file only the last operations: before these it is a store like any other."""
    run(photos, tmp_path / "whole")
    whole = facts(tmp_path / "whole")
    (tmp_path / "counted").mkdir()
    counting = Disk(-1, lambda: None, flushes=True)
    with counting.watched():
        run(photos, tmp_path / "counted" / name)

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    points = range(counting.count)[-last:]
    for n in points:
        folder = tmp_path / f"{n}"
        folder.mkdir()
        with pytest.raises(OutputError, match="No space left on device"):
            with Disk(n, fail, flushes=True).watched():
                run(photos, folder / name)
        store = folder / name if name == "out" else folder / f".{name}.aim-mlx"
        kept = kept_in(store)
        again = run(photos, folder / name, overwrite=any(folder.glob("out.npy*")))
        assert again.embedded == len(FILES) and again.computed <= len(FILES) - kept, n
        if name == "out":
            assert facts(folder / name) == whole, n
        else:
            assert {path.name for path in folder.iterdir()} == {"out.npy", "out.npy.json"}, n
    assert len(points) >= min(last, 60)


def kept_in(store: Path) -> int:
    path = store / journal.NAME
    return journal.read(path)[0].rows if path.exists() else 0


@pytest.mark.parametrize("limit", [100, 2000])
def test_where_files_cannot_grow_the_rows_so_far_are_kept(photos, tmp_path, limit):
    run(photos, tmp_path / "whole")
    with pytest.raises(OutputError, match="File too large.*run the same command again"):
        with full_from(limit):
            run(photos, tmp_path / "out")
    run(photos, tmp_path / "out")
    assert facts(tmp_path / "out") == facts(tmp_path / "whole")


@pytest.fixture
def disk(tmp_path):
    """A disk of its own with room for some files; mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    if shutil.which("mount") is None or os.geteuid():
        pytest.skip("only root can mount a disk")
    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("kilobytes", [16, 28, 40, 48])
def test_a_run_goes_on_when_there_is_room_again_on_a_full_disk(photos, disk, tmp_path, kilobytes):
    run(photos, tmp_path / "whole")
    folder = disk(f"size={kilobytes}k")
    with pytest.raises(OutputError, match="No space left on device: [0-9]+ rows are kept; fix"):
        run(photos, folder / "out")
    kept = kept_in(folder / "out")
    disk("remount,size=10m")
    again = run(photos, folder / "out")
    assert again.unchanged == kept
    assert facts(folder / "out") == facts(tmp_path / "whole")


def test_a_disk_that_cannot_be_written_to_ends_with_5(model, disk, tmp_path):
    make(tmp_path / "in", {"a.png": PNG})
    folder = disk("size=1m")
    embed(tmp_path / "in", "-o", folder / "out", "--model", model)
    for name in ("out", "new", "new.npz"):
        disk("remount,ro")
        done = embed(tmp_path / "in", "-o", folder / name, "--model", model)
        assert done.code == 5 and "Read-only file system" in one_line(done), name
        disk("remount,rw")
    assert os.listdir(folder) == ["out"] and len(EmbeddingStore(folder / "out")) == 1


def one_line(done: Run) -> str:
    """All that a run said, without what any run on a small model notes."""
    (line,) = done.stderr.splitlines()
    assert done.records == []
    return line


# Two who write


@pytest.fixture
def busy(model, tmp_path):
    """A process that embeds for a while: starts it for an output, and waits until it does."""
    many_photos(tmp_path / "many", 400)
    processes = []

    def begin(output: str) -> subprocess.Popen:
        out = tmp_path / output
        process = start("embed", tmp_path / "many", "-o", out, "--model", model)
        processes.append(process)
        store = out if out.suffix == "" else out.with_name(f".{output}.aim-mlx")
        wait_for(store / lists.FILES)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("output", ["out", "out.npz"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=str)
def test_a_second_writer_is_refused_with_the_number_of_the_first(
    model, tmp_path, busy, output, more
):
    first = busy(output)
    before = set(tmp_path.rglob("*out*/[jm]*.json*"))
    arguments = (tmp_path / "many", "-o", tmp_path / output, "--model", model)
    done = embed(*arguments, *more)
    assert done.code == 5 and f"process {first.pid} is writing to" in one_line(done)
    assert before <= set(tmp_path.rglob("*out*/[jm]*.json*")) and first.poll() is None
    # The lock of a process that was killed is taken over.
    first.kill()
    first.wait()
    make(tmp_path / "few", {"a.png": PNG})
    done = embed(tmp_path / "few", *arguments[1:], *more)
    assert done.code == 0 and done.summary["computed"] == 1


# Standard output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_disk_behind_standard_output_ends_with_5(model, tmp_path):
    make(tmp_path / "in", {"a.png": PNG, "b.jpg": JPEG})
    for arguments in (
        ("embed", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--json"),
        ("models",),
    ):
        with open("/dev/full", "w") as full:
            process = start(*arguments, stdout=full)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == 5, stderr
        assert stderr.splitlines()[-1].endswith(
            "cannot write: No space left on device: make room and run again"
        )
    assert len(EmbeddingStore(tmp_path / "out")) == 2
