"""`aim-mlx models`, and the table of docs/checkpoints.md made from it."""

import json
import re
from pathlib import Path

import pytest

from aim_mlx.cli import main as cli
from aim_mlx.cli.models import described, markdown_table
from aim_mlx.registry import MODELS

PAGE = Path(__file__).parent.parent / "docs/checkpoints.md"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_model_is_one_line_in_the_list_of_its_family(capsys):
    assert cli._run(["models"]) == 0
    lists = capsys.readouterr().out.strip().split("\n\n")
    assert [each.split(":")[0] for each in lists] == ["Nano", "AIMv2", "LiT", "AIMv1"]
    for each in lists:
        title, heading, *lines = each.splitlines()
        assert heading.split()[:2] == ["name", "pixels"]
        names = [line.split()[0] for line in lines]
        assert names == [n for n, spec in MODELS.items() if spec.family == title.split(":")[0]]
        here = "yes" if title.startswith("Nano") else "no"
        assert all(line.endswith(here) for line in lines)


def test_json_gives_one_object_a_model(capsys):
    assert cli._run(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(row["name"] for row in rows) == sorted(MODELS)


def test_aimv1_has_a_score_on_its_last_blocks_and_one_on_the_best():
    row = described("aim-7B-5B-imgs")
    assert (row["IN-1k"], row["best blocks"]) == (82.4, "84.0 (14-19)")


def test_memory_is_that_of_the_published_files():
    assert described("aimv2-3B-patch14-224")["float32"] == "10.88 GB"
    assert described("aimv2-large-patch14-224")["float16"] == "0.62 GB"


def test_the_table_on_the_page_of_checkpoints_is_the_one_that_the_command_prints(capsys):
    assert cli._run(["models", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == markdown_table()
    found = re.search(r"<!-- models -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.S)
    assert found and found[1] == markdown_table()
