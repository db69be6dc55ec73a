"""What the commands share that label photos: which photos, the labels in words, and the results."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from aim_mlx.cli.reporter import Progress, Reporter
from aim_mlx.errors import AimError, Interrupted
from aim_mlx.images import Listing, discover
from aim_mlx.report.contact_sheet import Origin
from aim_mlx.store.reader import EmbeddingStore, Photos
from aim_mlx.wording import counted, escaped
from aim_mlx.words.classify import Choice, Classified
from aim_mlx.words.label_files import ON_PAGE, record, write_page, write_table
from aim_mlx.words.lit import LiT, warn_of_cut
from aim_mlx.words.zeroshot import ZeroShotHead


class LabelReport(Progress):
    """Prints or writes labelled photos as they come, and the account of all at the end."""

    def __init__(self, as_json: bool, output: Path | None, html: Path | None):
        super().__init__(as_json)
        self.rows: list[Classified] = []  # all of them, where a page or `keep` needs them
        self._output, self._html = output, html
        self._listed = self._ignored = self._classified = 0

    def find(self, sources: list[str], follow: bool, hidden: bool) -> tuple[str, ...]:
        """The image files under the sources; raises AimError where there are none."""
        ours = [path for path in (self._output, self._html) if path]
        listing = discover(sources, follow=follow, hidden=hidden, exclude=ours)
        self.listed(listing)
        listing.check_any(", ".join(sources))
        return listing.files

    def find_rows(self, store: EmbeddingStore, gone: bool) -> list[int]:
        """The rows of a store, each photo once, without those that are gone unless `gone`."""
        photos = Photos(store, gone)
        rows = photos.each_once(range(len(store)))
        for note in photos.notes(rows):
            self.noted(note)
        self.listed(Listing(tuple(store.paths[row] for row in rows), 0, (), ()))
        return rows

    def listed(self, listing: Listing) -> None:
        super().listed(listing)
        self._listed, self._ignored = listing.listed, listing.ignored
        for skip in listing.skipped:
            self.skipped(skip)

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
            with self:
                if self._output is not None:
                    write_table(self._output, taken)
                else:
                    for row in taken:
                        self._print(row)
        except KeyboardInterrupt:
            kept = f": {self._output} was not written" if self._output else ""
            count = counted(self._classified, "image")
            raise Interrupted(f"interrupted after {count}{kept}") from None
        if self._html is not None:
            write_page(self._html, self.rows, choice, origin, locate)

    def _taken(
        self, rows: Iterable[Classified], top: int | None, keep: bool
    ) -> Iterator[Classified]:
        first_frames = 0
        for row in rows:
            self._classified += 1
            first_frames += row.multi_frame
            self.embedded(row.path)
            if keep or self._html:
                self.rows.append(row)
            yield replace(row, labels=row.labels[:top])
        if not self._classified:
            raise AimError(
                f"none of {counted(self.skips, 'image')} could be read: nothing was written"
            )
        if first_frames:
            self.noted(f"the first frame was taken of {counted(first_frames, 'image')}")

    def _print(self, row: Classified) -> None:
        self.emit("image", record(row))
        if self.as_json:
            return
        for label, score in row.labels:
            print(f"{score:.4f}\t{escaped(label)}\t{escaped(row.path)}")
        if not row.labels:
            print(f"\t\t{escaped(row.path)}")

    def account(self, labels: int) -> int:
        """Prints how many there were of everything; the exit code."""
        code = 3 if self.skips else 0
        written = {"output": self._output, "html": self._html}
        written = {name: str(path) for name, path in written.items() if path}
        account = {
            "listed": self._listed,
            "classified": self._classified,
            "skipped": self.skips,
            "ignored": self._ignored,
            "labels": labels,
            "output": None,
            "html": None,
        }
        self.emit("summary", account | written | {"exit_code": code})
        line = f"{self._classified} classified, {self.skips} skipped, {self._ignored} ignored"
        self.say(f"{line}: {', '.join(written.values())}" if written else line)
        return code


def build_head(
    lit: LiT, labels: tuple[str, ...], templates: tuple[str, ...], single: bool
) -> ZeroShotHead:
    """The head of these labels, with a bar on a terminal and a warning of prompts that were cut."""
    with Reporter(as_json=False) as reporter:
        head = ZeroShotHead.build(
            lit, labels, templates, single=single, progress=partial(reporter.advanced, "labels")
        )
    if head.cut:
        warn_of_cut(head.cut, lit.lit.config.text.context_length)
    return head
