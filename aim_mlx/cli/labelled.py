"""How classified photos are told: lines, JSON lines, a table, a page; and the account of all."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import typer

from aim_mlx.cli.progress import Progress
from aim_mlx.cli.terminal import escaped
from aim_mlx.errors import AimError
from aim_mlx.images import Listing, Skip
from aim_mlx.report.contact_sheet import Line, Origin, Picture, Section, write_contact_sheet
from aim_mlx.wording import counted
from aim_mlx.words.classify import Choice, Classified, record, write_table

_ON_PAGE = 5  # labels that an image has on a page, where no number is asked for


class Source(Protocol):
    """Where rows come from: the images, the model, and where the photo of a row is."""

    @property
    def listing(self) -> Listing: ...
    @property
    def origin(self) -> Origin: ...
    def locate(self, row: Classified) -> Path: ...


@dataclass(frozen=True)
class Telling:
    """What is told and where; `keep` keeps all rows for later, as a page does."""

    told: Choice
    as_json: bool = False
    output: Path | None = None
    html: Path | None = None
    keep: bool = False


class Report:
    """Tells the rows as they come, and the account of all at the end."""

    def __init__(self, progress: Progress, telling: Telling):
        self._progress, self._telling = progress, telling
        self.rows: list[Classified] = []
        self._listed = self._ignored = self._skipped = self._first_frames = 0
        self.classified = 0

    @property
    def choice(self) -> Choice:
        """The labels that rows must come with: a page shows more than the one that is told."""
        told = self._telling.told
        return replace(told, top=_ON_PAGE) if self._telling.html and told.top == 1 else told

    def skipped(self, skip: Skip) -> None:
        self._skipped += 1
        self._progress.skipped(skip)

    def run(self, source: Source, rows: Iterable[Classified]) -> None:
        """Takes all rows; raises AimError where there was not one."""
        self._listed, self._ignored = source.listing.listed, source.listing.ignored
        for skip in source.listing.skipped:
            self.skipped(skip)
        if self._telling.output is not None:
            write_table(self._telling.output, self._passing(rows))
        else:
            for row in self._passing(rows):
                self._print(row)
        if self._first_frames:
            self._progress.noted(
                f"the first frame was taken of {counted(self._first_frames, 'image')}"
            )
        if self._telling.html is not None:
            write_page(self._telling.html, source, self.rows, self._telling.told)

    def _passing(self, rows: Iterable[Classified]) -> Iterator[Classified]:
        for row in rows:
            self.classified += 1
            self._first_frames += row.multi_frame
            self._progress.embedded(row.path)
            if self._telling.keep or self._telling.html:
                self.rows.append(row)
            yield replace(row, labels=row.labels[: self._telling.told.top])
        if not self.classified:
            raise AimError(
                f"none of {counted(self._skipped, 'image')} could be read: nothing was written"
            )

    def _print(self, row: Classified) -> None:
        if self._telling.as_json:
            print(json.dumps({"event": "image", **record(row)}))
            return
        for label, score in row.labels:
            print(f"{score:.4f}\t{escaped(label)}\t{escaped(row.path)}")
        if not row.labels:
            print(f"\t\t{escaped(row.path)}")

    def summary(self, labels: int) -> int:
        """Prints the account; the exit code."""
        code = 3 if self._skipped else 0
        account = {"listed": self._listed, "classified": self.classified}
        account |= {"skipped": self._skipped, "ignored": self._ignored, "labels": labels}
        places = {"output": self._telling.output, "html": self._telling.html}
        if self._telling.as_json:
            written = {name: path and str(path) for name, path in places.items()}
            print(json.dumps({"event": "summary", **account, **written, "exit_code": code}))
        line = "{classified} classified, {skipped} skipped, {ignored} ignored".format(**account)
        files = ", ".join(str(path) for path in places.values() if path)
        typer.echo(line + (f": {files}" if files else ""), err=True)
        return code


def write_page(target: Path, source: Source, rows: list[Classified], told: Choice) -> None:
    """A page with a section for each best label, the most frequent first, and bars for all."""
    groups: dict[str, list[Classified]] = {}
    for row in rows:
        groups.setdefault(row.labels[0][0] if row.labels else "", []).append(row)
    note, full = "Probability of each label among those given.", 1.0
    if told.multi_label:  # small even where they match
        full = max((score for row in rows for _, score in row.labels), default=1.0)
        note = f"Cosine with each label; a full bar is {full:.3f}, the largest here."

    def picture(row: Classified) -> Picture:
        lines = [
            Line(f"{score:.3f} {name}", score / full)
            for name, score in row.labels[: told.top if told.top and told.top > 1 else _ON_PAGE]
        ]
        return Picture(source.locate(row), [*lines, row.path])

    sections = [
        Section(label or "None of the labels", list(map(picture, group)), _photos(len(group)))
        for label, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    title = f"{_photos(len(rows))} by label"
    write_contact_sheet(target, title, sections, source.origin, note)


def _photos(count: int) -> str:
    return counted(count, "photo", "photos")
