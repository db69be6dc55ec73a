"""Classified images as files: a table, or a web page."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from aim_mlx.files import disk_errors, publish
from aim_mlx.report.contact_sheet import Line, Origin, Picture, Section, write_contact_sheet
from aim_mlx.wording import counted
from aim_mlx.words.classify import Choice, Classified

ON_PAGE = 5  # labels that an image has on a page, where no number is asked for
_FORMULA = re.compile(r"[=@\t\r\n]|[-+](?!\d+(\.\d+)?\Z)")  # how one begins; -1 is a number


def write_table(target: Path, rows: Iterable[Classified]) -> None:
    """Writes rows as they come, as CSV or JSON lines; complete or not at all.

    CSV has a line for each label, and one without a label for an image that has none; a text that
    a spreadsheet would take for a formula begins with an apostrophe. Raises OutputError.
    """
    write = _write_csv if target.suffix.lower() == ".csv" else _write_jsonl
    with disk_errors("write", target, "nothing was kept"):
        publish({target: lambda file: write(file, rows)})


def _write_csv(file: BinaryIO, rows: Iterable[Classified]) -> None:
    # Names that are not UTF-8 go out as the bytes they are.
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    table = csv.writer(text)
    table.writerow(("path", "rank", "label", "score"))
    for row in rows:
        for rank, (label, score) in enumerate(row.labels, 1):
            table.writerow((_cell(row.path), rank, _cell(label), f"{score:.6g}"))
        if not row.labels:
            table.writerow((_cell(row.path), "", "", ""))
    text.detach()


def _cell(text: str) -> str:
    """A text that no spreadsheet computes: with an apostrophe before what would be a formula."""
    return "'" + text if _FORMULA.match(text) else text


def _write_jsonl(file: BinaryIO, rows: Iterable[Classified]) -> None:
    for row in rows:
        file.write(json.dumps(record(row)).encode() + b"\n")


def record(row: Classified) -> dict[str, object]:
    """A row as JSON values."""
    return {"path": row.path, "labels": [{"label": n, "score": s} for n, s in row.labels]}


def write_page(
    target: Path,
    rows: Sequence[Classified],
    choice: Choice,
    origin: Origin,
    locate: Callable[[str], Path],
) -> None:
    """Writes a page with a section for each best label, the most frequent first, and bars for all.

    `locate` gives the place of a photo from its path. Raises OutputError.
    """
    groups: dict[str, list[Classified]] = {}
    for row in rows:
        groups.setdefault(row.labels[0][0] if row.labels else "", []).append(row)
    note, full = "The number before a label is its probability among the labels given.", 1.0
    if choice.multi_label:  # small even where they match
        note = "The number before a label is its cosine with the photo."
        largest = max((score for row in rows for _, score in row.labels), default=0.0)
        if largest > 0:
            full, note = largest, f"{note} A full bar is {largest:.3f}, the largest here."

    def picture(row: Classified) -> Picture:
        labels = row.labels[: ON_PAGE if choice.top in (None, 1) else choice.top]
        lines = [Line(f"{score:.3f} {name}", score / full) for name, score in labels]
        return Picture(locate(row.path), [*lines, row.path])

    sections = [
        Section(
            label or "None of the labels", list(map(picture, group)), counted(len(group), "photo")
        )
        for label, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    title = f"{counted(len(rows), 'photo')} by label"
    write_contact_sheet(target, title, sections, origin, note)
