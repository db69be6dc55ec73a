"""Lists of paths: read from a stream, and divided among machines."""

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_mlx.errors import UsageError
from aim_mlx.images import in_share, parse_share, read_paths


def read(data: bytes, null: bool = False) -> list[str]:
    return read_paths(io.BytesIO(data), null)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a.jpg", ["a.jpg"]),
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"a.jpg\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),
        (b"\n\n  \n\r\n\t\na.jpg\n\n", ["a.jpg"]),
        (b"b.jpg\na.jpg\nb.jpg\n", ["b.jpg", "a.jpg"]),
        (b" a.jpg \n", [" a.jpg "]),
        (b"\xef\xbb\xbfa.jpg\n", ["a.jpg"]),
    ],
)
def test_lines_are_paths_without_blank_ones_and_each_once(data, expected):
    assert read(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a.jpg\0b\n.jpg\0", ["a.jpg", "b\n.jpg"]),
        (b"a.jpg\0\0a.jpg\0\r\0", ["a.jpg", "\r"]),
        (b"\xef\xbb\xbfa.jpg", ["\ufeffa.jpg"]),
    ],
)
def test_with_nul_every_name_is_kept_exactly(data, expected):
    assert read(data, null=True) == expected


def test_names_that_are_not_utf_8_come_back_as_the_same_bytes():
    (path,) = read(b"\xff\xfe.jpg\n")
    assert os.fsencode(path) == b"\xff\xfe.jpg"


def test_a_nul_within_a_line_is_a_usage_error_that_names_the_line_and_the_option():
    with pytest.raises(UsageError, match="line 2 has a NUL byte: pass -0"):
        read(b"a.jpg\nb.jpg\0c.jpg\n")


def split(files: list[str], share: tuple[int, int]) -> list[str]:
    return [path for path in files if in_share(path, share)]


NAMES = st.binary(min_size=1).filter(lambda name: b"\0" not in name)


@given(st.lists(NAMES, unique=True))
def test_any_names_come_through_a_list_with_nul(names):
    assert list(map(os.fsencode, read(b"\0".join(names), null=True))) == names


def test_a_share_is_read():
    assert [parse_share(text) for text in ("1/1", "2/4", "12/12")] == [(1, 1), (2, 4), (12, 12)]


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "x", "2/0", "", "2", "1/2/3", "-1/4", " 1/4", "1/4\n", "1.0/4", "1/" * 9]
)
def test_anything_else_is_no_share(text):
    with pytest.raises(UsageError, match="i from 1 to n"):
        parse_share(text)


@given(st.lists(NAMES.map(os.fsdecode), unique=True), st.integers(1, 9))
def test_every_file_belongs_to_exactly_one_share(files, count):
    shares = [split(files, (i + 1, count)) for i in range(count)]
    assert sorted(sum(shares, [])) == sorted(files)


def test_the_share_of_a_path_is_that_of_the_checksum_of_its_bytes():
    # crc32 of "123456789" is 0xCBF43926, the check value that its definition gives.
    assert [i for i in range(1, 8) if in_share("123456789", (i, 7))] == [0xCBF43926 % 7 + 1]


def test_shares_are_about_equal():
    files = [f"photos/IMG_{i:04d}.jpg" for i in range(4000)]
    sizes = [len(split(files, (i, 4))) for i in (1, 2, 3, 4)]
    assert all(900 < size < 1100 for size in sizes), sizes
