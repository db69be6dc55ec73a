"""Trainings that are killed: the same command ends in the bits of one that was not."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from aim_mlx.durable import TEMPORARY
from tests.small import photo


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """28 photos in two classes, one of which cannot be decoded, and captions for them."""
    folder = tmp_path_factory.mktemp("data")
    rows = [("path", "caption")]
    for seed in range(28):
        path = folder / "cat dog".split()[seed % 2] / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photo(seed)).save(path)
        if seed == 3:
            path.write_bytes(b"not an image")
        rows.append((str(path), f"picture {seed} by hand"))
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """What a finished training leaves, without the tokens and what holds times."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("training/tokens/") and path.name != ".lock":
            kept[name] = path.read_bytes()
    return kept


@pytest.mark.parametrize("kind", ["probe", "lit"])
def test_a_training_killed_anywhere_and_resumed_ends_in_the_same_bits(data, tmp_path, kind):
    """At some operations on files, among them the last ones, which write the result."""
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
