"""Files that are complete or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aim_mlx import files as durable
from aim_mlx.files import open_regular, publish, read_regular, remove_leftovers


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_appear_under_their_names_and_nothing_else(tmp_path):
    publish({tmp_path / "a": lambda f: f.write(b"1"), tmp_path / "b": lambda f: f.write(b"2")})
    assert contents(tmp_path) == {"a": b"1", "b": b"2"}


def test_an_error_while_writing_leaves_old_files_and_no_new_ones(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish({tmp_path / "a": lambda f: f.write(b"new"), tmp_path / "b": fail})
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_no_new_file(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.sys, "platform", "linux")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        publish({tmp_path / "a": lambda f: f.write(b"1"), tmp_path / "b": lambda f: f.write(b"2")})
    assert contents(tmp_path) == {}


def test_files_are_flushed_to_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(durable.sys, "platform", "linux")
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("rename") or replace(a, b))
    publish({tmp_path / "a": lambda f: f.write(b"1"), tmp_path / "b": lambda f: f.write(b"2")})
    assert calls == ["fsync", "fsync", "rename", "rename", "fsync"]  # the last is the folder's


def unfinished(folder, name: str, process: int):
    path = folder / f".{name}.{process}.aim-mlx.tmp"
    path.write_bytes(b"half")
    return path


def test_what_dead_processes_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = [unfinished(tmp_path, "a", ended.pid), unfinished(tmp_path, "a", os.getpid())]
    (tmp_path / f".a.{ended.pid + 1}0.aim-mlx.tmp").symlink_to(tmp_path)
    kept = [unfinished(tmp_path, "a", os.getppid()), unfinished(tmp_path, "b", ended.pid)]
    kept += [unfinished(tmp_path, "a", 10**12)]  # no number of a process
    remove_leftovers(tmp_path / "a")
    assert {*tmp_path.iterdir()} == {*kept} and not any(path.exists() for path in dead)


@pytest.mark.parametrize("process", [os.getpid, lambda: 999_999_999], ids=["ours", "another's"])
def test_a_link_under_the_name_of_an_unfinished_file_is_not_written_through(tmp_path, process):
    (tmp_path / "letter").write_bytes(b"precious")
    (tmp_path / f".a.{process()}.aim-mlx.tmp").symlink_to(tmp_path / "letter")
    remove_leftovers(tmp_path / "a")
    publish({tmp_path / "a": lambda f: f.write(b"new")})
    assert contents(tmp_path) == {"a": b"new", "letter": b"precious"}


def test_a_link_that_is_published_over_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "letter").write_bytes(b"precious")
    (tmp_path / "a").symlink_to(tmp_path / "letter")
    publish({tmp_path / "a": lambda f: f.write(b"new")})
    assert contents(tmp_path) == {"a": b"new", "letter": b"precious"}


def test_the_last_file_is_gone_before_the_others_change(tmp_path, monkeypatch):
    for name in ("rows", "paths"):
        (tmp_path / name).write_bytes(b"old")
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) or seen.append(visible(tmp_path)))
    files = {tmp_path / name: lambda file: file.write(b"new") for name in ("rows", "paths")}
    publish(files, last=tmp_path / "rows")
    assert seen == [{"paths": b"new"}, {"paths": b"new", "rows": b"new"}]


def visible(folder) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith(".")}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_only_a_regular_file_is_opened_and_nothing_is_waited_for(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "link":
        (tmp_path / "letter").write_bytes(b"precious")
        path.symlink_to(tmp_path / "letter")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path(os.devnull)
    for mode in ("rb", "r+b", "ab"):
        with pytest.raises(
            OSError, match="it is a link" if kind == "link" else "not a regular file"
        ):
            open_regular(path, mode)


def test_a_file_that_is_much_larger_than_it_should_be_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, expected at most 4"):
        read_regular(tmp_path / "a", 4)
