"""Files to vectors on disk, the main job: into a store, or by way of a store into one file."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aim_mlx.embedding.plan import EmbeddingPlan, check_prune, find_stale, looked_at, make_plan
from aim_mlx.embedding.selection import Job, Selected
from aim_mlx.encoder.encoder import Embedded, Encoder
from aim_mlx.encoder.pipeline import block_size
from aim_mlx.errors import AimError, ImageError, Interrupted, OutputError, UsageError
from aim_mlx.images import Content, Listing, Skip, changed, is_beyond_times
from aim_mlx.store.export import Rows, check_target, clear_up, is_file_target, sidecar, write_file
from aim_mlx.store.folder import hidden_beside, load_rows, remove
from aim_mlx.store.journal import State
from aim_mlx.store.lists import place, started_in
from aim_mlx.store.manifest import NAME as MANIFEST
from aim_mlx.store.manifest import describe
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import Catalog, Row
from aim_mlx.store.writer import StoreWriter, writing
from aim_mlx.wording import counted

Load = Callable[[], Encoder]

# Reasons that lie in a file's place or its disk: another file with this content may do well.
_OF_THE_PLACE = ("unreadable", "vanished", "changed", "not_regular")


@dataclass(frozen=True)
class Summary:
    """The account of a run: listed == embedded + skipped + ignored.

    Of the embedded, `computed` went through the encoder, `reused` have the content of another row,
    and `unchanged` were there before. Of rows of deleted files `moved` went to a new name with the
    same content, `vanished` were kept, `pruned` taken out.
    """

    output: str
    listed: int
    embedded: int
    skipped: int
    ignored: int
    computed: int
    reused: int
    unchanged: int
    moved: int
    vanished: int
    pruned: int
    seconds: float

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


class EmbedReport(Protocol):
    """What a run says while it goes on."""

    def listed(self, listing: Listing) -> None: ...
    def unchanged(self, count: int) -> None: ...
    def skipped(self, skip: Skip) -> None: ...
    def embedded(self, path: str) -> None: ...
    def noted(self, note: str) -> None: ...


def embed_files(job: Job, load: Load, report: EmbedReport) -> Summary:
    """Embeds the selected images into a folder or a file; the model is loaded last.

    A folder is a store, which goes on from where an earlier run stopped. A file is written from
    such a store, hidden beside it, by one rename; then the store is deleted. Raises UsageError,
    OutputError or CheckpointError before any work, AimError if there is no image, or none that
    could be embedded, Interrupted where it was stopped.
    """
    if job.rules.prune and (job.selection.from_list or job.selection.share):
        raise UsageError("--prune needs whole folders: it does not go with lists or --shard")
    if is_file_target(job.output):
        return _into_file(job, load, report)
    selected = _select(job, job.output, empty=job.rules.overwrite)
    report.listed(selected.listing)
    with writing(job.output, job.rules.overwrite) as store:
        return _into_store(job, selected, store, load, report)


def _into_file(job: Job, load: Load, report: EmbedReport) -> Summary:
    """The same into a store beside the file, which is then exported."""
    overwrite, folder = job.rules.overwrite, hidden_beside(job.output)
    clear_up(job.output, overwrite)
    check_target(job.output, overwrite)
    selected = _select(job, folder)
    report.listed(selected.listing)
    with _until_done(folder) as store:
        summary = _into_store(job, selected, store, load, report, replace=overwrite)
        rows = Rows(EmbeddingStore(folder), selected.listing.files)
        write_file(rows, job.output, overwrite)
    return summary


@contextmanager
def _until_done(folder: Path) -> Iterator[StoreWriter]:
    """A store that is deleted at the end of the block; one with rows stays where that failed."""
    of_use = True  # before it is opened it may be another process's
    try:
        with writing(folder) as store:
            try:
                yield store
                of_use = False
            except BaseException:
                of_use = store.state.rows > 0
                raise
    finally:
        if not of_use and folder.is_dir():
            remove(folder)


def _into_store(
    job: Job,
    selected: Selected,
    store: StoreWriter,
    load: Load,
    report: EmbedReport,
    replace: bool = False,
) -> Summary:
    """Embeds what an open store lacks.

    With `replace` a store of other vectors begins empty, otherwise that is an OutputError.
    """
    encoder = load()
    encoder.check(job.options)
    block = block_size(encoder.model, job.options.batch_size)
    manifest = store.begin(describe(encoder, job.options) | {"block": block}, replace)
    for note in store.notes:
        report.noted(note)
    return EmbedRun(job, selected, store, encoder, report).run(manifest["block"])


def _select(job: Job, store: Path, empty: bool = False) -> Selected:
    """The files of a job, named as in its store unless that begins empty."""
    outputs = [job.output, sidecar(job.output), store]
    return job.selection.select(outputs, "" if empty else started_in(store))


def plan_files(job: Job) -> tuple[Listing, EmbeddingPlan]:
    """What embed_files() would do: no model is loaded and nothing is written.

    Raises UsageError, OutputError or AimError as it would.
    """
    folder, empty = job.output, job.rules.overwrite
    if is_file_target(job.output):
        check_target(job.output, job.rules.overwrite)
        folder, empty = hidden_beside(job.output), False
    selected = _select(job, folder, empty)
    catalog, state = Catalog(), State()
    if (folder / MANIFEST).exists() and not empty:
        state = EmbeddingStore(folder)._state
        load_rows(folder, state.shards, catalog)
    return selected.listing, make_plan(job, selected, catalog, state)


class EmbedRun:
    """The run of a job into a store that is open; counts what became of the selected files."""

    def __init__(
        self,
        job: Job,
        selected: Selected,
        store: StoreWriter,
        encoder: Encoder,
        report: EmbedReport,
    ):
        self._job, self._selected, self._store = job, selected, store
        self._encoder, self._report = encoder, report
        self._failed: dict[str, ImageError] = {}  # by the digest of what failed
        self._again: list[str] = []
        self._skips: list[dict[str, Any]] = []
        self._computed = self._reused = self._first_frames = self._beyond_times = 0

    def run(self, block: int) -> Summary:
        """Embeds files in order; whole blocks are committed, also where it ends before its time.

        Raises Interrupted where it was asked to stop, AimError where no file could be embedded.
        """
        started = time.monotonic()
        if self._job.rules.prune:
            check_prune(self._store.catalog, self._selected)
        plan = make_plan(self._job, self._selected, self._store.catalog, self._store.state)
        self._begin(plan)
        try:
            paths = plan.todo
            while paths:
                self._again = []
                self._embed(paths, block)
                paths = self._again
        except Interrupted as error:
            raise Interrupted(
                f"interrupted: {counted(self._store.state.rows, 'row')} kept for "
                f"{self._job.output}; run the same command again to resume"
            ) from error
        self._note()
        return self._close(plan, started)

    def _begin(self, plan: EmbeddingPlan) -> None:
        """Writes down and reports what is known before any file is opened."""
        listing = self._selected.listing
        self._skips = [_record(skip) for skip in listing.skipped] + plan.skipped
        header = {**self._selected.header, "output": place(self._store.folder)}
        self._store.start_run(header, listing.files, self._skips)
        self._report.unchanged(plan.unchanged)
        for skip in self._skips:
            self._report.skipped(Skip(skip["path"], skip["reason"], skip["detail"]))

    def _embed(self, paths: Sequence[str], block: int) -> None:
        job, store = self._job, self._store
        rows = self._encoder.embed_stream(paths, job.options, block, job.stop, store.has)
        try:
            with closing(rows):
                for row in rows:
                    self._take(row)
                    if (row.index + 1) % block == 0 or row.index + 1 == len(paths):
                        store.end_block()
        except OutputError:
            raise
        except AimError:
            store.commit()
            raise
        store.commit()

    def _take(self, row: Embedded) -> None:
        """What became of one file: a row of the store, or a skip."""
        content, failure = row.content, row.failure
        if content is not None and row.repeats:
            self._reuse(row.path, content)
        elif content is not None and (change := changed(row.path, content)) is not None:
            self._skip(row.path, change, content)
        elif failure is not None:
            if content is not None and failure.reason not in _OF_THE_PLACE:
                self._failed[content.digest] = failure
            self._skip(row.path, failure, content)
        elif content is not None:
            file = (row.path, content.digest, content.size, content.mtime_ns)
            self._add(Row(*file, row.width, row.height), row.vector, row.multi_frame)
            self._computed += 1

    def _reuse(self, path: str, content: Content) -> None:
        copied = self._store.find(content.digest)
        if copied is not None:
            row, vector, first_frame = copied
            row = replace(row, path=path, size=content.size, mtime_ns=content.mtime_ns)
            self._add(row, vector, first_frame)
            self._reused += 1
        elif (failure := self._failed.get(content.digest)) is not None:
            self._skip(path, failure, content)
        else:  # the first file with this content failed, not the content
            self._again.append(path)

    def _add(self, row: Row, vector: np.ndarray, first_frame: bool) -> None:
        self._store.add(row, vector, first_frame)
        self._first_frames += first_frame
        self._beyond_times += is_beyond_times(row.mtime_ns)
        self._report.embedded(row.path)

    def _skip(self, path: str, failure: ImageError, content: Content | None) -> None:
        skip = Skip.of(path, failure)
        self._skips.append(_record(skip, content))
        self._store.skip(self._skips[-1])
        self._report.skipped(skip)

    def _note(self) -> None:
        if self._first_frames:
            films = counted(self._first_frames, "image")
            self._report.noted(f"the first frame was embedded of {films} with several")
        if self._beyond_times:
            self._report.noted(
                "times of change outside the years 1677 to 2262 were brought within them "
                f"({self._beyond_times} of the files): there only a new size shows that a file "
                "changed"
            )

    def _close(self, plan: EmbeddingPlan, started: float) -> Summary:
        """Takes out the rows that no longer hold, and writes down the account."""
        skips = sorted(self._skips, key=lambda skip: os.fsencode(skip["path"]))
        stale = find_stale(plan, self._store.catalog, self._selected, skips)
        pruned = stale.vanished if self._job.rules.prune else ()
        self._store.compact(stale.rows.union(pruned), plan.renamed)
        listing = self._selected.listing
        summary = Summary(
            output=str(self._job.output),
            listed=listing.listed,
            embedded=self._computed + self._reused + plan.unchanged,
            skipped=len(skips),
            ignored=listing.ignored,
            computed=self._computed,
            reused=self._reused,
            unchanged=plan.unchanged,
            moved=len(stale.moved),
            vanished=len(stale.vanished) - len(pruned),
            pruned=len(pruned),
            seconds=round(time.monotonic() - started, 3),
        )
        self._store.finish(asdict(summary), skips)
        if not summary.embedded:
            count = counted(len(skips), "image")
            raise AimError(f"none of {count} could be embedded: nothing was written")
        return summary


def _record(skip: Skip, content: Content | None = None) -> dict[str, Any]:
    """A skip as it is written down, with size and time of the file where they are known."""
    file = (content.size, content.mtime_ns) if content else looked_at(skip.path)
    size, mtime_ns = file or (None, None)
    return {**asdict(skip), "size": size, "mtime_ns": mtime_ns}
