"""Files to vectors on disk: list, compare with what is there, embed the rest, account for all."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from aim_mlx.embedding.plan import (
    Plan,
    check_prune,
    find_stale,
    make_plan,
    retried_reasons,
    rows_under_other_names,
)
from aim_mlx.embedding.run import EmbedRun, Report, skip_record
from aim_mlx.embedding.selection import Selected, Selection
from aim_mlx.encoder.batching import block_size
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.errors import AimError, Interrupted, UsageError
from aim_mlx.images import Listing, Skip
from aim_mlx.store.export import Rows, check_target, clear_up, is_file_target, sidecar, write_file
from aim_mlx.store.folder import hidden_beside, load_rows, remove
from aim_mlx.store.journal import State
from aim_mlx.store.lists import place, started_in
from aim_mlx.store.manifest import NAME as MANIFEST
from aim_mlx.store.manifest import describe
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import Catalog
from aim_mlx.store.writer import StoreWriter, writing
from aim_mlx.wording import counted


@dataclass(frozen=True)
class Summary:
    """The account of a run: listed == embedded + skipped + ignored.

    Of the embedded, `computed` went through the encoder, `reused` have the content of another row,
    and `unchanged` were there before. Rows of files that are no more: `moved` went to a new name
    with the same content, `vanished` were kept, `pruned` taken out.
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


@dataclass(frozen=True)
class Rules:
    """What a run makes of what an earlier one left."""

    overwrite: bool = False
    retry_skipped: bool = False
    prune: bool = False


@dataclass(frozen=True)
class Job:
    """What is to be embedded, where to, and how; `stop` ends it early, to be resumed."""

    selection: Selection
    output: Path
    options: EmbedOptions
    rules: Rules = Rules()
    stop: Callable[[], bool] = lambda: False

    @property
    def is_file(self) -> bool:
        return is_file_target(self.output)

    @property
    def store(self) -> Path:
        """The folder where the rows gather: the output, or a hidden one beside the output file."""
        if not self.is_file:
            return self.output
        return hidden_beside(self.output)

    def select(self) -> Selected:
        """The selected files; raises AimError where there is none."""
        afresh = self.rules.overwrite and not self.is_file
        base = "" if afresh else started_in(self.store)
        outputs = [self.output, sidecar(self.output), self.store]
        selected = self.selection.select(outputs, base)
        listing = selected.listing
        if not listing.files and not listing.skipped:
            others = counted(listing.ignored, "other file")
            if listing.notes not in ((), (others,)):
                others += f" ({', '.join(listing.notes)})"
            raise AimError(f"0 images, {others} under {self.selection}: give a folder with images")
        return selected

    @property
    def retried(self) -> frozenset[str]:
        """The reasons for which files skipped by an earlier run are tried again."""
        options = self.options
        return retried_reasons(
            self.rules.retry_skipped, options.allow_truncated, options.max_pixels is not None
        )


def embed_files(job: Job, load: Callable[[], Encoder], report: Report) -> Summary:
    """Embeds the selected images into a folder or a file; the model is loaded last.

    A folder is a store, which goes on from where an earlier run came to. A file is written by one
    rename, from a store beside it that is then deleted. Raises UsageError, OutputError or
    CheckpointError before any work, AimError if there is no image, or none that could be embedded,
    Interrupted where it was stopped.
    """
    if job.is_file:
        clear_up(job.output, job.rules.overwrite)
        check_target(job.output, job.rules.overwrite)
    if job.rules.prune and (job.selection.from_list or job.selection.share):
        raise UsageError("--prune needs whole folders: it does not go with lists or --shard")
    selected = job.select()
    report.listed(selected.listing)
    with _open(job) as store:
        encoder = load()
        encoder.check(job.options)
        facts_of_store = describe(encoder, job.options)
        facts_of_store["block"] = block_size(encoder.model, job.options.batch_size)
        manifest = store.begin(facts_of_store, replace=job.is_file and job.rules.overwrite)
        for note in store.notes:
            report.noted(note)
        run = EmbedRun(store, encoder, job.options, report, job.stop)
        summary = _run(job, store, run, selected, manifest["block"], report)
        if job.is_file:
            rows = Rows(EmbeddingStore(job.store), selected.listing.files)
            write_file(rows, job.output, job.rules.overwrite)
    return summary


@contextmanager
def _open(job: Job) -> Iterator[StoreWriter]:
    """The store of a job; the one beside a file goes with its purpose, or if it is of no use."""
    opened = done = False
    rows = 0
    try:
        with writing(job.store, job.rules.overwrite and not job.is_file) as store:
            opened = True  # before, it may be another process's
            try:
                yield store
                done = True
            finally:
                rows = store.state.rows
    finally:
        if job.is_file and opened and job.store.is_dir() and (done or not rows):
            remove(job.store)


def _run(
    job: Job,
    store: StoreWriter,
    run: EmbedRun,
    selected: Selected,
    block: int,
    report: Report,
) -> Summary:
    """Embeds what the store lacks and closes the run with its account."""
    started = time.monotonic()
    listing, facts, places = selected.listing, selected.facts, selected.places
    if job.rules.prune:
        check_prune(store.catalog, listing.files, facts["sources"], places)
    others = rows_under_other_names(listing.files, selected.links, store.catalog, places)
    plan = make_plan(listing.files, store.catalog, store.state, job.retried, others)
    known = [skip_record(skip) for skip in listing.skipped] + plan.skipped
    store.start_run({**facts, "output": place(job.store)}, listing.files, known)
    report.unchanged(plan.unchanged)
    for skip in known:
        report.skipped(Skip(skip["path"], skip["reason"], skip["detail"]))
    try:
        run.embed(plan.todo, block)
    except Interrupted as error:
        raise Interrupted(_resumable(job, store)) from error
    skips = sorted(known + run.skipped, key=lambda skip: os.fsencode(skip["path"]))
    if run.first_frames:
        report.noted(
            f"the first frame was embedded of {counted(run.first_frames, 'image')} with several"
        )
    if run.beyond_times:
        report.noted(
            "times of change outside the years 1677 to 2262 were brought within them "
            f"({run.beyond_times} of the files): there only a new size shows that a file changed"
        )
    stale = find_stale(plan, store.catalog, listing.files, skips, facts["sources"], places)
    pruned = stale.vanished if job.rules.prune else []
    store.compact(stale.rows.union(pruned), plan.renamed)
    summary = Summary(
        output=str(job.output),
        listed=listing.listed,
        embedded=run.computed + run.reused + plan.unchanged,
        skipped=len(skips),
        ignored=listing.ignored,
        computed=run.computed,
        reused=run.reused,
        unchanged=plan.unchanged,
        moved=len(stale.moved),
        vanished=len(stale.vanished) - len(pruned),
        pruned=len(pruned),
        seconds=round(time.monotonic() - started, 3),
    )
    store.finish(asdict(summary), skips)
    if not summary.embedded:
        raise AimError(
            f"none of {counted(len(skips), 'image')} could be embedded: nothing was written"
        )
    return summary


def _resumable(job: Job, store: StoreWriter) -> str:
    rows = store.state.rows
    where = f"for {job.output}" if job.is_file else f"in {job.output}"
    return f"interrupted: {counted(rows, 'row')} kept {where}; run the same command again to resume"


def plan_files(job: Job) -> tuple[Listing, Plan]:
    """What embed_files() would do: no model is loaded and nothing is written.

    Raises UsageError, OutputError or AimError as it would.
    """
    if job.is_file:
        check_target(job.output, job.rules.overwrite)
    selected = job.select()
    catalog, state = Catalog(), State()
    if (job.store / MANIFEST).exists() and not (job.rules.overwrite and not job.is_file):
        store = EmbeddingStore(job.store)
        state = store._state
        load_rows(job.store, state.shards, catalog)
    listing, links, places = selected.listing, selected.links, selected.places
    others = rows_under_other_names(listing.files, links, catalog, places)
    return listing, make_plan(listing.files, catalog, state, job.retried, others)
