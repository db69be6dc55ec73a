"""Which files `aim-mlx embed` takes: lists on stdin, patterns and shares."""

import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from aim_mlx import EmbeddingStore
from aim_mlx.cli import main
from aim_mlx.embedding import plan
from aim_mlx.store.verify import verify
from tests.bad_images import PHOTO, PNG, encoded
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
    assert (
        "note: ignored 1 excluded file\n" in done.stderr
        and "note: ignored 2 excluded folders\n" in done.stderr
    )


def test_patterns_that_leave_nothing_end_with_1(photos, run, tmp_path):
    done = run(".", "--include", "*.gif")
    assert done.code == 1 and "0 images under . (ignored 5 excluded files)" in done.stderr
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


def test_relative_paths_of_another_folder_are_those_of_other_files(
    photos, run, tmp_path, monkeypatch
):
    run("2024").check_account(2, 0, 0)
    (tmp_path / "elsewhere" / "2024").mkdir(parents=True)
    (tmp_path / "elsewhere" / "2024" / "f.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("2024", "--prune")
    assert (done.code, done.summary["pruned"], done.summary["reused"]) == (0, 0, 1)
    new = str(tmp_path / "elsewhere/2024/f.png")
    assert paths(tmp_path / "store") == {"2024/drafts/e.png", "2024/f.png", new}


def paths(store: Path) -> set[str]:
    return set(EmbeddingStore(store).paths)


def test_prune_leaves_the_rows_of_other_sources(photos, run, tmp_path):
    run("2024", "drafts").check_account(3, 0, 0)
    (photos / "2024" / "f.png").unlink()
    (photos / "drafts" / "d.png").unlink()
    done = run("2024", "--prune")
    assert (done.code, done.summary["pruned"], done.summary["vanished"]) == (0, 1, 0)
    assert names(tmp_path / "store") == {"d.png", "e.png"}


def test_prune_leaves_the_rows_of_files_that_a_pattern_left_out(photos, run, tmp_path):
    run(".").check_account(5, 0, 0)
    done = run(".", "--exclude", "drafts", "--prune")
    assert (done.code, done.summary["pruned"], done.summary["vanished"]) == (0, 0, 0)
    assert names(tmp_path / "store") == {"a.png", "b c.png", "d.png", "e.png", "f.png"}


@pytest.mark.parametrize("call", ["scandir", "lstat"])
def test_prune_leaves_the_rows_of_files_in_a_folder_that_cannot_be_read(
    photos, run, tmp_path, monkeypatch, call
):
    run(".").check_account(5, 0, 0)
    real, closed = getattr(os, call), ("drafts",) if call == "scandir" else ("d.png", "e.png")

    def refused(path=".", *rest, **more):  # the tests may run as root, whom no mode bit stops
        if os.fspath(path).endswith(closed):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest, **more)

    monkeypatch.setattr(os, call, refused)
    if call == "lstat":
        (photos / "drafts" / "d.png").unlink()
    done = run(".", "--prune")
    assert (done.summary["pruned"], done.summary["vanished"]) == (0, 0)
    assert names(tmp_path / "store") == {"a.png", "b c.png", "d.png", "e.png", "f.png"}


@pytest.fixture
def spellings(photos, tmp_path) -> dict[str, str]:
    """Names of one folder."""
    (tmp_path / "linked").symlink_to(photos)
    return {
        "relative": "2024",
        "absolute": str(photos / "2024"),
        "through a link": str(tmp_path / "linked" / "2024"),
        "with dots": "../in/2024",
    }


@pytest.mark.parametrize("second", ["absolute", "through a link", "with dots"])
def test_a_file_keeps_one_row_however_it_is_named(photos, run, tmp_path, spellings, second):
    run("2024").check_account(2, 0, 0)
    before = vectors_of(tmp_path / "store")
    for name in (second, "relative"):
        done = run(spellings[name])
        done.check_account(2, 0, 0)
        assert (done.summary["unchanged"], done.summary["computed"]) == (2, 0)
        assert paths(tmp_path / "store") == {
            os.path.join(os.path.normpath(spellings[name]), file)
            for file in ("drafts/e.png", "f.png")
        }
        after = vectors_of(tmp_path / "store")
        assert all((after[file] == vector).all() for file, vector in before.items())
        assert verify(EmbeddingStore(tmp_path / "store")).complete


def test_a_run_from_inside_the_folder_finds_the_rows_that_are_there(
    photos, run, tmp_path, monkeypatch
):
    run(".").check_account(5, 0, 0)
    monkeypatch.chdir(photos / "2024")
    done = run(".")
    done.check_account(2, 0, 0)
    assert (done.summary["unchanged"], done.summary["vanished"]) == (2, 0)
    store = EmbeddingStore(tmp_path / "store")
    inside = {str(photos / "2024" / name) for name in ("f.png", "drafts/e.png")}
    assert set(store.paths) == {"a.png", "b c.png", "drafts/d.png"} | inside
    monkeypatch.chdir("/")
    assert all(store.locate(row).is_file() for row in range(len(store)))


def test_a_store_with_several_spellings_keeps_one_row_a_file(photos, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(plan, "rows_under_other_names", lambda *_: {})
        run("2024")
        run(photos / "2024")
    assert len(EmbeddingStore(tmp_path / "store")) == 4
    run("2024").check_account(2, 0, 0)
    assert paths(tmp_path / "store") == {"2024/drafts/e.png", "2024/f.png"}


def test_a_film_under_another_name_is_still_one(photos, run, tmp_path):
    frames = [PHOTO, PHOTO.rotate(180)]
    frames[0].save("2024/film.webp", save_all=True, append_images=frames[1:])
    for source in ("2024", photos / "2024"):
        run(source)
    store = EmbeddingStore(tmp_path / "store")
    assert store._state.first_frames == {str(photos / "2024" / "film.webp")}
    assert verify(store).complete


def test_a_dry_run_knows_a_file_by_another_name(photos, run, tmp_path, model):
    run("2024")
    done = run(photos / "2024", "--dry-run")
    assert (done.records[-1]["unchanged"], done.records[-1]["to_look_at"]) == (2, 0)


def test_a_changed_file_under_another_name_has_its_new_vector_alone(photos, run, tmp_path):
    run("2024")
    (photos / "2024" / "f.png").write_bytes(encoded(PHOTO.rotate(180)))
    before = vectors_of(tmp_path / "store")["f.png"]
    done = run(photos / "2024")
    assert (done.summary["computed"], done.summary["unchanged"]) == (1, 1)
    after = vectors_of(tmp_path / "store")["f.png"]  # which has one row a name
    assert np.abs(after - before).max() > 0.01


def test_a_link_to_a_listed_file_is_no_second_photo(photos, run, tmp_path):
    (photos / "2024" / "link.png").symlink_to("f.png")
    (photos / "2024" / "other.png").symlink_to("../a.png")
    (photos / "2024" / "again.png").symlink_to("other.png")
    done = run("2024")
    done.check_account(3, 0, 2)
    assert "note: ignored 2 links to listed photos\n" in done.stderr
    assert names(tmp_path / "store") == {"e.png", "f.png", "again.png"}
    run(".").check_account(5, 0, 3)  # now what the links lead to is listed too
    assert names(tmp_path / "store") == {"a.png", "b c.png", "d.png", "e.png", "f.png"}


def test_a_hard_link_is_a_name_of_its_own(photos, run, tmp_path):
    os.link(photos / "a.png", photos / "hard.png")
    run(".").check_account(6, 0, 0)
    assert len(EmbeddingStore(tmp_path / "store")) == 6


def test_a_renamed_folder_takes_its_rows_along(photos, run, tmp_path):
    run(".").check_account(5, 0, 0)
    (photos / "2024" / "f.png").write_bytes(encoded(PHOTO.rotate(180)))
    run(".")
    (photos / "2024").rename(photos / "2025")
    done = run(".")
    done.check_account(5, 0, 0)
    assert done.summary["computed"] == 0 and done.summary["vanished"] == 0
    assert done.summary["moved"] == 2 and "2 under a new name" in done.stderr
    assert {path for path in paths(tmp_path / "store") if "20" in path} == {
        "2025/drafts/e.png",
        "2025/f.png",
    }


def test_a_copy_on_a_disk_that_is_away_keeps_its_row(photos, run, tmp_path):
    disk = make(tmp_path / "disk", {"a.png": PNG})
    run(".", disk).check_account(6, 0, 0)
    disk.rename(tmp_path / "away")
    done = run(".")
    assert (done.summary["moved"], len(EmbeddingStore(tmp_path / "store"))) == (0, 6)


def test_a_project_that_was_moved_or_copied_with_its_store_goes_on(
    photos, model, tmp_path, monkeypatch
):
    command = (".", "-o", "store", "--model", model)
    embed(*command).check_account(5, 0, 0)
    shutil.copytree(photos, tmp_path / "copied")
    photos.rename(tmp_path / "moved")
    for name in ("copied", "moved"):
        monkeypatch.chdir(tmp_path / name)
        done = embed(*command)
        done.check_account(5, 0, 0)
        # What was copied has its times of change too.
        assert done.summary["unchanged"] == 5 and len(EmbeddingStore("store")) == 5


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
