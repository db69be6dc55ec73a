"""What the commands share that label photos: which photos, the labels in words, and the results."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from aim_mlx.cli.reporter import Progress
from aim_mlx.cli.reports import note_missing
from aim_mlx.cli.terminal import escaped
from aim_mlx.errors import AimError, Interrupted
from aim_mlx.images import Listing, Skip, discover
from aim_mlx.report.contact_sheet import Origin
from aim_mlx.store.reader import Photos
from aim_mlx.wording import counted
from aim_mlx.words.classify import Choice, Classified
from aim_mlx.words.label_files import ON_PAGE, record, write_page, write_table

if TYPE_CHECKING:
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.words.lit import LiT
    from aim_mlx.words.zeroshot import ZeroShotHead


class LabelReport:
    """Prints or writes labelled photos as they come, and the account of all at the end."""

    def __init__(self, as_json: bool, output: Path | None, html: Path | None):
        self.progress = Progress(as_json)
        self.rows: list[Classified] = []  # all of them, where a page or `keep` needs them
        self._as_json, self._output, self._html = as_json, output, html
        self._counts = dict.fromkeys(("listed", "classified", "skipped", "ignored"), 0)

    def find(self, sources: list[str], follow: bool, hidden: bool) -> tuple[str, ...]:
        """The image files under the sources; raises AimError where there are none."""
        ours = [path for path in (self._output, self._html) if path]
        listing = discover(sources, follow=follow, hidden=hidden, exclude=ours)
        self.listed(listing)
        if not listing.files and not listing.skipped:
            raise AimError(
                f"0 images, {counted(listing.ignored, 'other file')} under {', '.join(sources)}: "
                "give a folder with images"
            )
        return listing.files

    def find_rows(self, store: "EmbeddingStore", gone: bool) -> list[int]:
        """The rows of a store, each photo once, without those that are gone unless `gone`."""
        photos = Photos(store, gone)
        rows = photos.each_once(range(len(store)))
        note_missing(photos, rows)
        self.listed(Listing(tuple(store.paths[row] for row in rows), 0, (), ()))
        return rows

    def listed(self, listing: Listing) -> None:
        self._counts |= {"listed": listing.listed, "ignored": listing.ignored}
        self.progress.listed(listing)
        for skip in listing.skipped:
            self.skipped(skip)

    def skipped(self, skip: Skip) -> None:
        self._counts["skipped"] += 1
        self.progress.skipped(skip)

    def wanted(self, choice: Choice) -> Choice:
        """The labels that rows must come with: a page shows more than the one that is printed."""
        return replace(choice, top=ON_PAGE) if self._html and choice.top == 1 else choice

    def run(
        self,
        rows: Iterable[Classified],
        choice: Choice,
        origin: Origin,
        locate: Callable[[str], Path] = Path,
        keep: bool = False,
    ) -> None:
        """Takes all rows, with the `wanted` labels, of photos that `locate` gives from their paths.

        Raises AimError where there is no row, Interrupted at Ctrl-C.
        """
        taken = self._taken(rows, choice.top, keep)
        try:
            with self.progress:
                if self._output is not None:
                    write_table(self._output, taken)
                else:
                    for row in taken:
                        self._print(row)
        except KeyboardInterrupt:
            kept = f": {self._output} was not written" if self._output else ""
            count = counted(self._counts["classified"], "image")
            raise Interrupted(f"interrupted after {count}{kept}") from None
        if self._html is not None:
            write_page(self._html, self.rows, choice, origin, locate)

    def _taken(
        self, rows: Iterable[Classified], top: int | None, keep: bool
    ) -> Iterator[Classified]:
        first_frames = 0
        for row in rows:
            self._counts["classified"] += 1
            first_frames += row.multi_frame
            self.progress.embedded(row.path)
            if keep or self._html:
                self.rows.append(row)
            yield replace(row, labels=row.labels[:top])
        if not self._counts["classified"]:
            raise AimError(
                f"none of {counted(self._counts['skipped'], 'image')} could be read: nothing was "
                "written"
            )
        if first_frames:
            self.progress.noted(f"the first frame was taken of {counted(first_frames, 'image')}")

    def _print(self, row: Classified) -> None:
        if self._as_json:
            print(json.dumps({"event": "image", **record(row)}))
            return
        for label, score in row.labels:
            print(f"{score:.4f}\t{escaped(label)}\t{escaped(row.path)}")
        if not row.labels:
            print(f"\t\t{escaped(row.path)}")

    def summary(self, labels: int) -> int:
        """Prints the account; the exit code."""
        code = 3 if self._counts["skipped"] else 0
        places = {"output": self._output, "html": self._html}
        if self._as_json:
            written = {name: path and str(path) for name, path in places.items()}
            account = {**self._counts, "labels": labels, **written, "exit_code": code}
            print(json.dumps({"event": "summary", **account}))
        files = ", ".join(str(path) for path in places.values() if path)
        line = "{classified} classified, {skipped} skipped, {ignored} ignored"
        typer.echo(line.format(**self._counts) + (f": {files}" if files else ""), err=True)
        return code


def build_head(
    lit: "LiT", labels: tuple[str, ...], templates: tuple[str, ...], single: bool
) -> "ZeroShotHead":
    """The head of these labels, with a bar on a terminal and a warning of prompts that were cut."""
    from rich.console import Console
    from rich.progress import Progress

    from aim_mlx.words.lit import warn_of_cut
    from aim_mlx.words.zeroshot import ZeroShotHead

    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(console=console, disable=hidden, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("labels", total=None)
        head = ZeroShotHead.build(
            lit,
            labels,
            templates,
            single=single,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if head.cut:
        warn_of_cut(head.cut, lit.lit.config.text.context_length)
    return head
