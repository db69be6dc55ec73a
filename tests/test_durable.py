"""Files that are complete or not there."""

import os

import pytest

from aim_mlx import durable
from aim_mlx.durable import publish


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
