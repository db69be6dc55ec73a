"""What of the named files and folders is listed, skipped or ignored."""

import os
import sys
from pathlib import Path

import pytest

from aim_mlx.errors import UsageError
from aim_mlx.images import Listing, discover


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(listing: Listing, root: Path):
    return [os.path.relpath(path, root) for path in listing.files]


def reasons(listing: Listing):
    return {os.path.basename(skip.path): skip.reason for skip in listing.skipped}


def test_images_are_found_by_suffix_in_any_case_at_any_depth(tmp_path):
    make(tmp_path, "a.jpg", "b.JPEG", "deep/er/c.Png", "d.heic", "e.avif", "f.webp", "g.tif")
    assert names(discover([tmp_path]), tmp_path) == [
        *("a.jpg", "b.JPEG", "d.heic", "deep/er/c.Png", "e.avif", "f.webp", "g.tif")
    ]


@pytest.mark.parametrize("name", ["a.jxl", "a.svg", "a.eps", "a.NEF", "a.dng", "a.psd"])
def test_an_image_that_no_decoder_reads_is_listed_for_the_decoder_to_refuse(tmp_path, name):
    assert names(discover([make(tmp_path, name)]), tmp_path) == [name]


def test_other_files_are_ignored_and_counted(tmp_path):
    make(tmp_path, "a.jpg", "notes.txt", "film.mov", "report.pdf", "jpg", ".jpg")
    listing = discover([tmp_path])
    assert names(listing, tmp_path) == ["a.jpg"]
    assert listing.ignored == 5 and listing.notes == ("5 other files",)


def test_a_folder_without_images_says_what_it_has(tmp_path):
    listing = discover([make(tmp_path, *(f"{i}.txt" for i in range(214)))])
    assert (listing.files, listing.ignored, listing.notes) == ((), 214, ("214 other files",))


def test_a_file_named_itself_is_listed_whatever_its_suffix(tmp_path):
    make(tmp_path, "photo", "._photo.txt")
    listing = discover([tmp_path / "photo", str(tmp_path / "._photo.txt")])
    assert names(listing, tmp_path) == ["._photo.txt", "photo"]


def test_one_path_may_be_given_without_a_list(tmp_path):
    make(tmp_path, "a.jpg")
    assert discover(str(tmp_path)) == discover(tmp_path) == discover([tmp_path])


def test_the_order_is_that_of_the_bytes_of_the_paths(tmp_path):
    make(
        tmp_path,
        "b.jpg",
        "B.jpg",
        "a/z.jpg",
        "a.jpg",
        "a b.jpg",
        "é.jpg",
        "z.jpg",
        "10.jpg",
        "9.jpg",
    )
    files = discover([tmp_path]).files
    assert list(files) == sorted(files, key=os.fsencode)
    assert discover([tmp_path / "z.jpg", tmp_path]).files == files


def test_the_counts_add_up(tmp_path):
    make(tmp_path, "a.jpg", "._a.jpg", "b.txt", "Lib.photoslibrary/originals/c.jpg", "d/e.png")
    (tmp_path / "broken.jpg").symlink_to("nothing")
    (tmp_path / "link").symlink_to("d")
    listing = discover([tmp_path])
    assert (len(listing.files), listing.ignored, len(listing.skipped)) == (2, 4, 1)
    assert listing.listed == 7


@pytest.mark.parametrize("name", ["gone", "gone.jpg", "a\0b"])
def test_a_missing_source_is_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be found") as caught:
        discover([make(tmp_path, "a.jpg"), f"{tmp_path}/{name}"])
    assert caught.value.exit_code == 2


def test_an_unreadable_folder_is_skipped_and_the_rest_goes_on(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "closed/b.jpg", "open/c.jpg")
    scandir = os.scandir

    def refuse(path):  # the tests may run as root, whom no mode bit stops
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = discover([tmp_path])
    assert names(listing, tmp_path) == ["a.jpg", "open/c.jpg"]
    assert reasons(listing) == {"closed": "unreadable"}


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    make(tmp_path / "out", "photo.jpg", "folder/b.jpg")
    make(tmp_path / "in", "a.jpg")
    (tmp_path / "in" / "photo.jpg").symlink_to("../out/photo.jpg")
    (tmp_path / "in" / "folder").symlink_to("../out/folder")
    listing = discover([tmp_path / "in"])
    assert names(listing, tmp_path / "in") == ["a.jpg", "photo.jpg"]
    assert listing.ignored == 1 and listing.notes == ("1 links to folders",)


def test_follow_visits_every_folder_once_by_its_own_name(tmp_path):
    make(tmp_path / "out", "b.jpg")
    make(tmp_path / "in", "z/a.jpg")
    for link, target in [("a", "z"), ("loop", "."), ("out", "../out"), ("zz", "../out")]:
        (tmp_path / "in" / link).symlink_to(target)
    listing = discover([tmp_path / "in"], follow=True)
    assert names(listing, tmp_path / "in") == ["out/b.jpg", "z/a.jpg"]


def test_a_source_that_is_a_link_to_a_folder_is_searched(tmp_path):
    make(tmp_path / "real", "a.jpg")
    (tmp_path / "link").symlink_to("real")
    assert names(discover([tmp_path / "link"]), tmp_path) == ["link/a.jpg"]


def test_what_is_not_a_file_is_skipped_by_its_name_and_never_opened(tmp_path):
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "broken.jpg").symlink_to("nothing")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    listing = discover([tmp_path])
    assert names(listing, tmp_path) == ["a.jpg"]
    assert reasons(listing) == dict.fromkeys(
        ("fifo.jpg", "broken.jpg", "loop.jpg", "null.jpg"), "not_regular"
    )
    assert listing.ignored == 1


def test_a_fifo_or_broken_link_named_itself_is_skipped(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken.jpg").symlink_to("nothing")
    listing = discover([tmp_path / "fifo", tmp_path / "broken.jpg"])
    assert reasons(listing) == {"fifo": "not_regular", "broken.jpg": "not_regular"}


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    assert names(discover([make(tmp_path, "x.jpg/a.jpg")]), tmp_path) == ["x.jpg/a.jpg"]


def test_what_systems_leave_behind_is_ignored_and_counted(tmp_path):
    make(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db")
    make(tmp_path, "__MACOSX/b.jpg", "@eaDir/c.jpg", "sub/@eaDir/d.jpg")
    listing = discover([tmp_path])
    assert names(listing, tmp_path) == ["a.jpg"]
    assert listing.ignored == 6 and listing.notes == ("6 system files",)


def test_a_photo_library_is_left_out_and_noted(tmp_path):
    make(tmp_path, "My.photoslibrary/originals/0/a.jpg", "b.jpg")
    listing = discover([tmp_path])
    assert names(listing, tmp_path) == ["b.jpg"] and listing.ignored == 1
    assert "My.photoslibrary" in listing.notes[-1] and "export" in listing.notes[-1]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS file systems refuse such names")
def test_names_that_are_not_utf_8_are_kept(tmp_path):
    name = b"\xff\xfe photo.jpg"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    (path,) = discover([tmp_path]).files
    assert os.fsencode(path.name) == name and path.exists()


@pytest.mark.parametrize(
    "name",
    ["caf\u00e9.jpg", "cafe\u0301.jpg", "two\nlines.jpg", "\x1b[31mred.jpg", "n" * 251 + ".jpg"],
    ids=["NFC", "NFD", "newline", "escape", "long"],
)
def test_odd_names_are_kept_exactly(tmp_path, name):
    (path,) = discover([make(tmp_path, name)]).files
    assert path.name in os.listdir(tmp_path) and path.exists()


def test_hard_links_are_both_listed(tmp_path):
    make(tmp_path, "a.jpg")
    os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert names(discover([tmp_path]), tmp_path) == ["a.jpg", "b.jpg"]


def test_a_file_named_twice_or_inside_a_named_folder_is_listed_once(tmp_path):
    make(tmp_path, "a.jpg", "sub/b.jpg", "sub/c.txt")
    sources = [tmp_path / "sub", tmp_path, tmp_path / "a.jpg", tmp_path / "sub" / ".." / "a.jpg"]
    listing = discover([*sources, tmp_path / "sub" / "c.txt", str(tmp_path / "sub")])
    assert sorted(path.name for path in listing.files) == ["a.jpg", "b.jpg", "c.txt"]


def test_relative_sources_give_relative_paths(tmp_path, monkeypatch):
    make(tmp_path, "sub/a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    assert discover(["."]).files == (Path("b.jpg"), Path("sub/a.jpg"))
    assert discover(["sub", "b.jpg", "./b.jpg"]).files == (Path("b.jpg"), Path("sub/a.jpg"))


def test_the_output_inside_the_sources_is_passed_by(tmp_path):
    make(tmp_path, "a.jpg", "out/plot.png", "out/deep/x.png", "single.png")
    listing = discover([tmp_path], exclude=[tmp_path / "out", tmp_path / "single.png"])
    assert names(listing, tmp_path) == ["a.jpg"] and listing.listed == 1
    assert discover([tmp_path], exclude=[tmp_path / "not there yet"]).listed == 4


def test_a_very_deep_tree_ends_with_a_record_and_no_error(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg")
    monkeypatch.chdir(tmp_path)
    for _ in range(30):  # beyond the longest path a system takes
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    listing = discover([tmp_path])
    assert names(listing, tmp_path) == ["a.jpg"]
    assert [skip.reason for skip in listing.skipped] == ["unreadable"]
