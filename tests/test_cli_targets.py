"""What a command is to write is looked at before any work."""

import pytest

from aim_mlx.cli.targets import PAGES, check_folder, check_target
from aim_mlx.errors import OutputError, UsageError


def test_a_file_is_of_its_kind_in_a_folder_that_is_there_and_replaces_nothing_unasked(tmp_path):
    check_target(None, (".csv",), False)
    check_target(tmp_path / "x.CSV", (".csv",), False)
    (tmp_path / "x.csv").touch()
    check_target(tmp_path / "x.csv", (".csv",), True)
    with pytest.raises(OutputError, match="--overwrite"):
        check_target(tmp_path / "x.csv", (".csv",), False)
    with pytest.raises(UsageError, match=r"\.csv, \.jsonl"):
        check_target(tmp_path / "x.jpg", (".csv", ".jsonl"), True)
    with pytest.raises(OutputError, match="does not exist"):
        check_target(tmp_path / "no" / "x.csv", (".csv",), True)
    (tmp_path / "y.csv").mkdir()
    with pytest.raises(OutputError, match="not a file"):
        check_target(tmp_path / "y.csv", (".csv",), True)


def test_a_folder_is_empty_or_to_be_made_in_one_that_is_there(tmp_path):
    check_folder(None, False)
    check_folder(tmp_path / "new", False)
    with pytest.raises(OutputError, match="does not exist"):
        check_folder(tmp_path / "no" / "new", False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a folder"):
        check_folder(tmp_path / "file", True)
    with pytest.raises(OutputError, match="--overwrite"):
        check_folder(tmp_path, False)
    check_folder(tmp_path, True)


def test_a_name_that_is_too_long_is_an_output_error(tmp_path):
    name = "x" * 300
    with pytest.raises(OutputError, match="choose another name"):
        check_target(tmp_path / f"{name}.html", PAGES, True)
    with pytest.raises(OutputError, match="choose another name"):
        check_folder(tmp_path / name, True)
