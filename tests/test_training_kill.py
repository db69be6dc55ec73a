"""Trainings that are killed: the same command ends in the bits of one that was not."""

import json
import subprocess
import sys

import pytest

from aim_mlx.files import TEMPORARY
from tests.training_crashes import results, write_data


@pytest.mark.parametrize("kind", ["probe", "lit", "pretrain", "finetune"])
def test_a_training_killed_anywhere_and_resumed_ends_in_the_same_bits(tmp_path, kind):
    """At some operations on files, among them the last ones, which write the result."""
    data = write_data(tmp_path / "data")
    job = {"kind": kind, "data": str(data), "into": str(tmp_path), "every": 50, "last": 6}
    job["random"] = 1
    command = [sys.executable, "-m", "tests.training_crashes", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    whole = results(tmp_path / "whole")
    folders = [path for path in tmp_path.iterdir() if path.name[:4].isdecimal()]
    folders += tmp_path.glob("random-*")
    assert len(folders) > 7 and not [name for name in whole if name.endswith(TEMPORARY)]
    for folder in folders:
        assert results(folder) == whole, folder.name
