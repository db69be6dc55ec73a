"""Which files `aim-mlx embed` takes: lists on stdin, patterns and shares."""

import io
import os
import sys
from pathlib import Path

import pytest

from aim_mlx.cli import main
from tests.bad_images import PNG
from tests.embed_runs import Run, embed, make, vectors_of
from tests.small import save


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """The working folder, with five photos."""
    names = ("a.png", "b c.png", "drafts/d.png", "2024/drafts/e.png", "2024/f.png")
    monkeypatch.chdir(make(tmp_path / "in", dict.fromkeys(names, PNG)))
    return tmp_path / "in"


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """Runs `embed` into a store beside the photos, with these bytes on stdin."""

    def call(*arguments: object, stdin: bytes = b"", output: str = "store") -> Run:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return embed(*arguments, "-o", tmp_path / output, "--model", model)

    return call


def names(store: Path) -> set[str]:
    return set(vectors_of(store))


def test_paths_come_from_stdin_without_blank_lines_and_each_once(photos, run, tmp_path):
    done = run("-", stdin=b"\na.png\r\n\n  \nb c.png\n./a.png\ndrafts\n\n")
    done.check_account(3, 0, 0)
    assert names(tmp_path / "store") == {"a.png", "b c.png", "d.png"}


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS file systems refuse such names")
def test_with_nul_any_name_comes_through(photos, run, tmp_path):
    odd = b"line\nfeed \xff.png"
    os.rename("a.png", odd)
    run("-", "-0", stdin=odd + b"\0\0b c.png\0").check_account(2, 0, 0)
    assert names(tmp_path / "store") == {os.fsdecode(odd), "b c.png"}


def test_a_listed_path_that_is_not_there_has_vanished_and_the_rest_goes_on(photos, run):
    done = run("2024", "-", stdin=b"a.png\ngone.png\na.png/x.png\n")
    done.check_account(3, 2, 0)
    assert done.reasons == {"gone.png": "vanished", "x.png": "vanished"}


def test_a_named_path_that_is_not_there_ends_with_2_whatever_is_listed(photos, run, tmp_path):
    done = run("gone", "-", stdin=b"a.png\n")
    assert done.code == 2 and "gone" in done.stderr and not (tmp_path / "store").exists()


def test_a_list_with_nul_read_as_lines_ends_with_2_and_the_option(photos, run, tmp_path):
    done = run("-", stdin=b"a.png\0b c.png\0")
    assert done.code == 2 and "pass -0" in done.stderr and not (tmp_path / "store").exists()


def test_an_empty_list_ends_with_1(photos, run, tmp_path):
    done = run("-", stdin=b"\n\n")
    assert done.code == 1 and "0 images" in done.stderr and not (tmp_path / "store").exists()


def test_patterns_choose_and_are_counted(photos, run, tmp_path):
    done = run(".", "--exclude", "drafts/", "--exclude", "b*", "--include", "*.png")
    done.check_account(2, 0, 3)
    assert names(tmp_path / "store") == {"a.png", "f.png"}
    assert "note: 1 excluded\n" in done.stderr and "note: 2 excluded folders\n" in done.stderr


def test_patterns_that_leave_nothing_end_with_1(photos, run, tmp_path):
    done = run(".", "--include", "*.gif")
    assert done.code == 1 and "0 images, 5 other files (5 excluded" in done.stderr
    assert not (tmp_path / "store").exists()


def test_an_empty_pattern_ends_with_2(photos, run):
    done = run(".", "--exclude", "")
    assert done.code == 2 and "expected a pattern" in done.stderr


def test_shares_are_parts_of_the_whole(photos, run, tmp_path):
    make(photos, {f"{i}.png": PNG for i in range(20)})
    parts = []
    for i in (1, 2, 3):
        output = f"part{i}"
        assert run(".", "--shard", f"{i}/3", output=output).code == 0
        parts.append(names(tmp_path / output))
    run(".").check_account(25, 0, 0)
    assert sum(map(len, parts)) == 25 and set.union(*parts) == names(tmp_path / "store")


@pytest.mark.parametrize("share", ["0/4", "5/4", "x"])
def test_a_share_that_is_none_ends_with_2(photos, run, share):
    done = run(".", "--shard", share)
    assert done.code == 2 and "such as 2/4" in done.stderr


@pytest.mark.parametrize("source", [".", "./", "../in", ".//2024/"])
def test_what_vanished_is_noticed_and_pruned_however_the_source_is_written(photos, run, source):
    count = run(source).summary["embedded"]
    (photos / "2024" / "f.png").unlink()
    done = run(source)
    done.check_account(count - 1, 0, 0)
    assert (done.summary["vanished"], done.summary["pruned"]) == (1, 0)
    done = run(source, "--prune")
    assert (done.summary["vanished"], done.summary["pruned"]) == (0, 1)


def test_relative_paths_are_not_pruned_from_another_folder(photos, run, tmp_path, monkeypatch):
    run("2024").check_account(2, 0, 0)
    (tmp_path / "elsewhere" / "2024").mkdir(parents=True)
    (tmp_path / "elsewhere" / "2024" / "new.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("2024", "--prune")
    assert done.code == 2 and "the last run was started in" in done.stderr
    assert names(tmp_path / "store") == {"e.png", "f.png"}


def test_a_source_that_lists_nothing_any_more_refuses_to_prune(photos, run, tmp_path):
    run(".").check_account(5, 0, 0)
    for path in photos.rglob("*.png"):
        path.unlink()
    other = make(tmp_path / "other", {"x.png": PNG})
    done = run(".", other, "--prune")
    assert done.code == 2 and "'.' lists no image" in done.stderr
    assert len(vectors_of(tmp_path / "store")) == 5


def test_a_list_that_is_not_there_or_not_asked_for_is_refused(photos, run, monkeypatch, capsys):
    done = run(".", "-0")
    assert done.code == 2 and "give - as a source" in done.stderr
    monkeypatch.setattr(sys, "stdin", None)
    assert main._run(["embed", "-", "-o", "out"]) == 2
    assert "stdin, but it is closed" in capsys.readouterr().err
