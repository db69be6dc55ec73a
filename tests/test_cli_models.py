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


def test_every_model_is_one_line_after_the_heading(capsys):
    assert cli._run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["name", "pixels"]
    assert [line.split()[0] for line in lines[1:]] == list(MODELS)
    assert all(line.endswith("no") for line in lines[1:])


def test_json_gives_one_object_a_model(capsys):
    assert cli._run(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(MODELS)


def test_memory_is_that_of_the_published_files():
    assert described("aimv2-3B-patch14-224")["float32"] == "10.88 GB"
    assert described("aimv2-large-patch14-224")["float16"] == "0.62 GB"


def test_the_table_on_the_page_of_checkpoints_is_the_one_that_the_command_prints(capsys):
    assert cli._run(["models", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == markdown_table()
    found = re.search(r"<!-- models -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.S)
    assert found and found[1] == markdown_table()
