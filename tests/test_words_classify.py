"""Images and rows of a store to labels: which they get, and how they are written."""

import csv
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.report.contact_sheet import Origin
from aim_mlx.words.classify import Choice, Classified, check_words, label_rows
from aim_mlx.words.label_files import write_page, write_table
from aim_mlx.words.zeroshot import ZeroShotHead

SCORES = np.array([0.1, 0.4, 0.1, 0.4], np.float32)
LABELS = ("a", "b", "c", "d")
HEAD = ZeroShotHead(("x", "y", "z"), ("{}",), np.eye(3, dtype=np.float32), 10.0, "digest", {})


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), "b"),
        (Choice(top=3), "bda"),
        (Choice(top=9), "bdac"),
        (Choice(multi_label=True), "bdac"),
        (Choice(top=3, threshold=0.3), "bd"),
        (Choice(threshold=0.5), ""),
        (Choice(multi_label=True, threshold=0.2), "bd"),
    ],
)
def test_the_best_labels_are_given_equal_ones_in_the_order_given(choice, expected):
    assert "".join(label for label, _ in choice.of(LABELS, SCORES)) == expected


@pytest.mark.parametrize(
    "options",
    [{"top": 0}, {"top": 1.5}, {"threshold": -0.1}, {"threshold": 1.1}]
    + [{"threshold": float("nan")}, {"threshold": -1.1, "multi_label": True}],
)
def test_impossible_choices_are_refused(options):
    with pytest.raises(UsageError, match=r"top|threshold"):
        Choice(**options)


class Rows(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.paths)


def stored(vectors: np.ndarray, **manifest) -> Any:
    """What is read of a store."""
    return Rows(
        folder=Path("store"),
        manifest={"pooling": "attention", "weights": "digest", **manifest},
        paths=[f"{i}.jpg" for i in range(len(vectors))],
        vectors=vectors,
    )


def test_rows_of_a_store_are_labelled_without_a_model(monkeypatch):
    monkeypatch.setattr("aim_mlx.words.classify._ROWS_AT_ONCE", 2)
    vectors = np.array([[2, 0, 0], [0, 0, 1], [0, 3, 1], [1, 1, 0], [0, 1, 0]], np.float32)
    rows = list(label_rows(stored(vectors), HEAD, range(5), Choice(top=2)))
    assert [(row.path, row.labels[0][0]) for row in rows] == [
        ("0.jpg", "x"),
        ("1.jpg", "z"),
        ("2.jpg", "y"),
        ("3.jpg", "x"),
        ("4.jpg", "y"),
    ]
    assert [row.row for row in rows] == [0, 1, 2, 3, 4]


def test_a_store_of_another_pooling_is_refused():
    with pytest.raises(UsageError, match="'mean' pooling"):
        check_words(stored(np.ones((1, 3), np.float32), pooling="mean"))


def test_a_store_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="make them again"):
        next(label_rows(stored(np.ones((1, 3), np.float32), weights="other"), HEAD, [0], Choice()))


ROWS = [
    Classified("a, b\n.jpg", (("cat", 0.75), ('say "x"', 0.25)), 0),
    Classified(os.fsdecode(b"\xff.jpg"), (), 1),
]


def test_a_csv_has_a_line_for_each_label_and_one_for_an_image_without(tmp_path):
    write_table(tmp_path / "x.csv", ROWS)
    with open(tmp_path / "x.csv", newline="", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [
            ["path", "rank", "label", "score"],
            ["a, b\n.jpg", "1", "cat", "0.75"],
            ["a, b\n.jpg", "2", 'say "x"', "0.25"],
            [os.fsdecode(b"\xff.jpg"), "", "", ""],
        ]


def test_a_text_that_a_spreadsheet_would_compute_begins_with_an_apostrophe(tmp_path):
    texts = ["=1+2", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-1+1", "--1"]
    plain = ["-1", "+2.5", "a=b", "'=1", "", "7", "caf\u00e9"]
    labels = tuple((text, -0.5) for text in texts + plain)
    rows = [Classified("=cmd.jpg", labels, 0), Classified("-none.jpg", (), 1)]
    write_table(tmp_path / "x.csv", rows)
    with open(tmp_path / "x.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == ["'=cmd.jpg"] * len(labels) + ["'-none.jpg"]
    assert [row["label"] for row in table[:-1]] == ["'" + text for text in texts] + plain
    assert {row["score"] for row in table[:-1]} == {"-0.5"}  # a number stays one
    write_table(tmp_path / "x.jsonl", rows)
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])["path"] == "=cmd.jpg"


def test_json_lines_hold_exact_names(tmp_path):
    write_table(tmp_path / "x.jsonl", ROWS)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [row.path for row in ROWS]
    assert lines[0]["labels"][0] == {"label": "cat", "score": 0.75} and lines[1]["labels"] == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_that_cannot_be_finished_is_not_there(suffix, tmp_path):
    def rows():
        yield ROWS[0]
        raise CheckpointError("stop")

    with pytest.raises(CheckpointError):
        write_table(tmp_path / f"x{suffix}", rows())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scores", "bars", "full"), [((0.2, 0.1), ["100.0", "50.0"], 1), ((-0.1, -0.2), ["0.0"] * 2, 0)]
)
def test_bars_of_cosines_are_shares_of_the_largest_and_empty_below_zero(
    scores, bars, full, tmp_path
):
    row = Classified("x.jpg", tuple(zip("ab", scores, strict=True)), 0)
    write_page(tmp_path / "x.html", [row], Choice(multi_label=True), Origin({}), Path)
    text = (tmp_path / "x.html").read_text()
    assert re.findall(r"width:([\d.]+)%", text) == bars and text.count("A full bar") == full
