"""What of the named files and folders is listed, skipped or ignored."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_mlx.errors import UsageError
from aim_mlx.images import Listing, discover, is_under


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
    assert listing.ignored == 5 and listing.notes == ("ignored 5 files that are no images",)


def test_a_folder_without_images_says_what_it_has(tmp_path):
    listing = discover([make(tmp_path, *(f"{i}.txt" for i in range(214)))])
    assert (listing.files, listing.ignored) == ((), 214)
    assert listing.notes == ("ignored 214 files that are no images",)


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


@pytest.mark.parametrize("name", ["gone", "gone.jpg", "a\0b", "a.jpg/b.jpg"])
def test_a_missing_source_is_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be found") as caught:
        discover([make(tmp_path, "a.jpg"), f"{tmp_path}/{name}"])
    assert caught.value.exit_code == 2


def test_an_empty_path_is_not_the_working_folder():
    with pytest.raises(UsageError, match="cannot be found"):
        discover([""])


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
    assert listing.ignored == 1 and listing.notes == ("ignored 1 link to a folder",)


def test_follow_visits_every_folder_once_by_its_own_name(tmp_path):
    make(tmp_path / "out", "b.jpg")
    make(tmp_path / "in", "z/a.jpg")
    for link, target in [("a", "z"), ("loop", "."), ("out", "../out"), ("zz", "../out")]:
        (tmp_path / "in" / link).symlink_to(target)
    listing = discover([tmp_path / "in"], follow=True)
    assert names(listing, tmp_path / "in") == ["out/b.jpg", "z/a.jpg"]


def test_with_follow_a_later_source_is_named_by_its_own_place_too(tmp_path):
    make(tmp_path / "one", "a.jpg")
    make(tmp_path / "two", "b.jpg")
    (tmp_path / "one" / "link").symlink_to("../two")
    listing = discover([tmp_path / "one", tmp_path / "two"], follow=True)
    assert names(listing, tmp_path) == ["one/a.jpg", "two/b.jpg"]


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
    assert listing.ignored == 6 and listing.notes == ("ignored 6 system files",)


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
    assert os.fsencode(path).endswith(b"/" + name) and os.path.exists(path)


@pytest.mark.parametrize(
    "name",
    ["caf\u00e9.jpg", "cafe\u0301.jpg", "two\nlines.jpg", "\x1b[31mred.jpg", "n" * 251 + ".jpg"],
    ids=["NFC", "NFD", "newline", "escape", "long"],
)
def test_odd_names_are_kept_exactly(tmp_path, name):
    (path,) = discover([make(tmp_path, name)]).files
    assert os.path.basename(path) in os.listdir(tmp_path) and os.path.exists(path)


def test_hard_links_are_both_listed(tmp_path):
    make(tmp_path, "a.jpg")
    os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert names(discover([tmp_path]), tmp_path) == ["a.jpg", "b.jpg"]


def test_a_file_named_twice_or_inside_a_named_folder_is_listed_once(tmp_path):
    make(tmp_path, "a.jpg", "sub/b.jpg", "sub/c.txt")
    sources = [tmp_path / "sub", tmp_path, tmp_path / "a.jpg", tmp_path / "sub" / ".." / "a.jpg"]
    listing = discover([*sources, tmp_path / "sub" / "c.txt", str(tmp_path / "sub")])
    assert sorted(map(os.path.basename, listing.files)) == ["a.jpg", "b.jpg", "c.txt"]


def test_relative_sources_give_relative_paths(tmp_path, monkeypatch):
    make(tmp_path, "sub/a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    assert discover(["."]).files == ("b.jpg", "sub/a.jpg")
    assert discover(["sub", "b.jpg", "./b.jpg", ".//sub/."]).files == ("b.jpg", "sub/a.jpg")


@pytest.mark.parametrize("source", [".", "./", "sub", "./sub/", "sub//deep", "../top/sub", "/"])
def test_what_was_found_under_a_source_is_under_it(tmp_path, monkeypatch, source):
    make(tmp_path / "top", "sub/deep/a.jpg", "sub/deep/..b.jpg")
    monkeypatch.chdir(tmp_path / "top")
    found = discover([source]).files if source != "/" else ["/a.jpg", "/sub/b.jpg"]
    assert len(found) == 2 and all(is_under(path, source) for path in found)


@pytest.mark.parametrize(
    ("path", "source"),
    [("sub.jpg", "sub"), ("subway/a.jpg", "./sub"), ("../a.jpg", "."), ("/a.jpg", "."), ("a", "b")],
)
def test_what_is_beside_a_source_is_not_under_it(path, source):
    assert not is_under(path, source)


def test_a_source_that_is_a_file_is_under_itself():
    assert is_under("a.jpg", "./a.jpg")


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


# Paths from a list


def test_of_a_list_a_missing_path_has_vanished_and_the_rest_goes_on(tmp_path):
    make(tmp_path, "a.jpg", "sub/b.jpg", "odd name")
    gone = [tmp_path / "gone.jpg", tmp_path / "a.jpg" / "x.jpg", f"{tmp_path}/./gone.jpg"]
    found = [tmp_path / "a.jpg", tmp_path / "odd name", tmp_path / "sub"]
    listing = discover([], from_list=[*gone, *found])
    assert names(listing, tmp_path) == ["a.jpg", "odd name", "sub/b.jpg"]
    assert reasons(listing) == {"gone.jpg": "vanished", "x.jpg": "vanished"}
    assert listing.listed == 5


def test_of_a_list_a_path_that_cannot_be_looked_at_is_unreadable(tmp_path):
    listing = discover([], from_list=["n" * 10_000, "a\0b"])
    assert [skip.reason for skip in listing.skipped] == ["unreadable", "unreadable"]
    assert all(skip.detail for skip in listing.skipped)


def test_a_list_that_names_the_output_passes_it_by(tmp_path):
    make(tmp_path, "a.jpg", "out/manifest.json", "single.npz")
    listed = [tmp_path / "a.jpg", tmp_path / "out" / "manifest.json", tmp_path / "single.npz"]
    listing = discover([], exclude=[tmp_path / "out", tmp_path / "single.npz"], from_list=listed)
    assert names(listing, tmp_path) == ["a.jpg"] and listing.listed == 1


# Patterns

TREE = ("a.jpg", "a.png", "drafts/b.jpg", "2024/drafts/c.jpg", "2024/may/d.jpg", "2024/may/e.png")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], ["*.png"], "a.jpg drafts/b.jpg 2024/drafts/c.jpg 2024/may/d.jpg"),
        ([], ["*.PNG"], " ".join(TREE)),
        ([], ["drafts"], "a.jpg a.png 2024/may/d.jpg 2024/may/e.png"),
        ([], ["drafts/"], "a.jpg a.png 2024/may/d.jpg 2024/may/e.png"),
        ([], ["/drafts/"], "a.jpg a.png 2024/drafts/c.jpg 2024/may/d.jpg 2024/may/e.png"),
        ([], ["2024/*"], "a.jpg a.png drafts/b.jpg"),
        ([], ["2024/*.jpg"], "a.jpg a.png drafts/b.jpg 2024/may/e.png"),
        ([], ["a.jpg/", "?.png/"], " ".join(TREE)),
        ([], ["/a.*"], " ".join(TREE[2:])),
        (["*.png"], [], "a.png 2024/may/e.png"),
        (["[ab].*"], [], "a.jpg a.png drafts/b.jpg"),
        (["[!ab].*"], [], "2024/drafts/c.jpg 2024/may/d.jpg 2024/may/e.png"),
        (["drafts/", "e.png"], [], "drafts/b.jpg 2024/drafts/c.jpg 2024/may/e.png"),
        (["2024"], ["drafts", "*.png"], "2024/may/d.jpg"),
        (["*/drafts/*"], [], "2024/drafts/c.jpg"),
        (["nothing"], [], ""),
    ],
    ids=str,
)
def test_patterns_choose_among_what_is_found(tmp_path, include, exclude, expected):
    listing = discover([make(tmp_path, *TREE)], include_patterns=include, exclude_patterns=exclude)
    assert sorted(names(listing, tmp_path)) == sorted(expected.split())


def test_an_excluded_folder_is_not_entered_and_counts_as_one(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "drafts/b.jpg", "drafts/c.jpg", "d.png")
    entered = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(path) or scandir(path))
    listing = discover([tmp_path], exclude_patterns=["drafts/", "*.png"])
    assert entered == [str(tmp_path)]
    assert listing.listed == 3 and listing.notes == (
        "ignored 1 excluded file",
        "ignored 1 excluded folder",
    )


def test_patterns_leave_alone_what_is_named_itself(tmp_path):
    make(tmp_path, "drafts/a.jpg", "drafts/b.jpg", "c.jpg")
    folder = tmp_path / "drafts"
    listing = discover([folder], exclude_patterns=["drafts", "b.jpg"])
    assert names(listing, folder) == ["a.jpg"]
    listing = discover([folder / "b.jpg"], exclude_patterns=["b.jpg"], from_list=[folder / "a.jpg"])
    assert names(listing, folder) == ["a.jpg", "b.jpg"]


def test_what_is_excluded_is_not_skipped(tmp_path):
    make(tmp_path, "a.jpg")
    (tmp_path / "broken.jpg").symlink_to("nothing")
    listing = discover([tmp_path], exclude_patterns=["broken*"])
    assert listing.skipped == () and listing.ignored == 1


def test_a_pattern_matches_a_name_in_either_unicode_form(tmp_path):
    make(tmp_path, "caf\u00e9.jpg", "cafe\u0301.png", "cafe.jpg")
    listing = discover([tmp_path], exclude_patterns=["cafe\u0301.*"])
    assert names(listing, tmp_path) == ["cafe.jpg"]


@pytest.mark.parametrize("pattern", ["", "/", "//"])
def test_an_empty_pattern_is_a_usage_error(tmp_path, pattern):
    with pytest.raises(UsageError, match="expected a pattern"):
        discover([tmp_path], include_patterns=[pattern])
    with pytest.raises(UsageError, match="expected a pattern"):
        discover([tmp_path], exclude_patterns=[pattern])


# Glob -> what it means for a path below the source: (path, is a folder) -> whether it matches.
GLOBS: dict[str, Callable[[str, bool], bool]] = {
    "*.jpg": lambda path, folder: path.endswith(".jpg"),
    "d": lambda path, folder: path.split("/")[-1] == "d",
    "d/": lambda path, folder: folder and path.split("/")[-1] == "d",
    "/d": lambda path, folder: path == "d",
    "*/e.jpg": lambda path, folder: path.endswith("/e.jpg"),
    "[ab]*": lambda path, folder: path.split("/")[-1][0] in "ab",
}
PATHS = st.lists(
    st.sampled_from(["a.jpg", "b.png", "c.txt", "d", "e.jpg", "._f.jpg", "Thumbs.db"]),
    min_size=1,
    max_size=3,
).map("/".join)
KINDS: dict[str, Callable[[Path], object]] = {
    "file": Path.touch,
    "fifo": os.mkfifo,
    "link to a folder": lambda path: path.symlink_to("."),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}


def expected_of(
    folder: Path, include: list[str], exclude: list[str], below: str = "", inside: bool = False
) -> Iterator[tuple[str, str]]:
    """What becomes of each entry, as a plain reading of the rules has it."""
    for path in folder.iterdir():
        name = below + path.name
        is_folder = path.is_dir()
        included = inside or not include or any(GLOBS[glob](name, is_folder) for glob in include)
        excluded = any(GLOBS[glob](name, is_folder) for glob in exclude)
        if path.name in ("._f.jpg", "Thumbs.db"):
            yield name, "ignored"
        elif is_folder and not path.is_symlink() and not excluded:
            yield from expected_of(path, include, exclude, name + "/", included and bool(include))
        elif is_folder or path.suffix not in (".jpg", ".png") or excluded or not included:
            yield name, "ignored"
        else:
            yield name, "listed" if path.is_file() else "skipped"


@settings(deadline=None, max_examples=100)
@given(
    tree=st.dictionaries(PATHS, st.sampled_from(sorted(KINDS)), max_size=12),
    include=st.lists(st.sampled_from(sorted(GLOBS)), max_size=2),
    exclude=st.lists(st.sampled_from(sorted(GLOBS)), max_size=2),
)
def test_every_entry_of_any_tree_is_listed_ignored_or_skipped_once(tree, include, exclude):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for path, kind in tree.items():
            with suppress(FileExistsError, NotADirectoryError):  # one path may be within another
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                KINDS[kind](root / path)
        listing = discover([root], include_patterns=include, exclude_patterns=exclude)
        expected = Counter(dict(expected_of(root, include, exclude)).values())
        files = [n for n, what in expected_of(root, include, exclude) if what == "listed"]
        assert names(listing, root) == sorted(files)
        assert (len(listing.skipped), listing.ignored) == (expected["skipped"], expected["ignored"])
        assert listing.listed == expected.total()


# Hidden folders


def test_hidden_folders_are_counted_and_not_entered_unless_that_is_asked_for(tmp_path):
    make(tmp_path, "a.jpg", ".thumbnails/b.jpg", "c/.cache/deep/d.jpg", ".e.jpg")
    listing = discover([tmp_path])
    assert names(listing, tmp_path) == [".e.jpg", "a.jpg"]
    assert listing.ignored == 2 and listing.notes == ("ignored 2 hidden folders",)
    assert len(discover([tmp_path], hidden=True).files) == 4


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    make(tmp_path, ".photos/a.jpg", ".photos/.more/b.jpg")
    listing = discover([tmp_path / ".photos"])
    assert names(listing, tmp_path) == [".photos/a.jpg"]
    assert listing.notes == ("ignored 1 hidden folder",)


# The order


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there, in text order too")
def test_paths_are_sorted_by_their_bytes_not_as_text(tmp_path):
    # Byte 0xFF is \udcff as text, which comes before \uff21, whose first byte is 0xEF.
    folders = ["\udcff.photoslibrary", "\uff21.photoslibrary"]
    make(tmp_path, "\udcff.jpg", "\uff21.jpg", *(f"{name}/a.jpg" for name in folders))
    listing = discover([tmp_path], from_list=["\udcff", "\uff21"])
    assert names(listing, tmp_path) == ["\uff21.jpg", "\udcff.jpg"]
    assert [skip.path for skip in listing.skipped] == ["\uff21", "\udcff"]
    assert ["\uff21" in note for note in listing.notes[-2:]] == [True, False]
