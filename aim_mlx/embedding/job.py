"""Files to vectors on disk: list, compare with what is there, embed the rest, account for all."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aim_mlx.embedding.plan import Plan, check_prune, find_stale, make_plan, retried_reasons
from aim_mlx.embedding.run import EmbedReport, EmbedRun, skip_record
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

    def select(self, store: Path, base: str) -> Selected:
        """The selected files, `store` and output not among them; raises AimError for none."""
        selected = self.selection.select([self.output, sidecar(self.output), store], base)
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


def embed_files(job: Job, load: Callable[[], Encoder], report: EmbedReport) -> Summary:
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
    selected = job.select(job.output, "" if job.rules.overwrite else started_in(job.output))
    report.listed(selected.listing)
    with writing(job.output, job.rules.overwrite) as store:
        return _into_store(job, selected, store, load, report)


def _into_file(job: Job, load: Callable[[], Encoder], report: EmbedReport) -> Summary:
    """The same into a store beside the file, which is then exported."""
    overwrite = job.rules.overwrite
    clear_up(job.output, overwrite)
    check_target(job.output, overwrite)
    folder = hidden_beside(job.output)
    selected = job.select(folder, started_in(folder))
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
    load: Callable[[], Encoder],
    report: EmbedReport,
    replace: bool = False,
) -> Summary:
    """Embeds what an open store lacks and closes the run with its account.

    With `replace` a store of other vectors begins empty, otherwise that is an OutputError.
    """
    encoder = load()
    encoder.check(job.options)
    block = block_size(encoder.model, job.options.batch_size)
    manifest = store.begin(describe(encoder, job.options) | {"block": block}, replace)
    for note in store.notes:
        report.noted(note)
    started = time.monotonic()
    if job.rules.prune:
        check_prune(store.catalog, selected)
    plan = make_plan(selected, store.catalog, store.state, job.retried)
    known = [skip_record(skip) for skip in selected.listing.skipped] + plan.skipped
    facts = {**selected.facts, "output": place(store.folder)}
    store.start_run(facts, selected.listing.files, known)
    report.unchanged(plan.unchanged)
    for skip in known:
        report.skipped(Skip(skip["path"], skip["reason"], skip["detail"]))
    run = EmbedRun(store, encoder, job.options, report, job.stop)
    try:
        run.embed(plan.todo, manifest["block"])
    except Interrupted as error:
        raise Interrupted(
            f"interrupted: {counted(store.state.rows, 'row')} kept for {job.output}; run the same "
            "command again to resume"
        ) from error
    summary = _closed(job, selected, store, plan, run, known, started)
    if not summary.embedded:
        raise AimError(
            f"none of {counted(summary.skipped, 'image')} could be embedded: nothing was written"
        )
    return summary


def _closed(
    job: Job,
    selected: Selected,
    store: StoreWriter,
    plan: Plan,
    run: EmbedRun,
    known: list[dict[str, Any]],
    started: float,
) -> Summary:
    """Takes out what no longer holds, and writes down the account of a run that is through."""
    skips = sorted(known + run.skipped, key=lambda skip: os.fsencode(skip["path"]))
    stale = find_stale(plan, store.catalog, selected, skips)
    pruned = stale.vanished if job.rules.prune else ()
    store.compact(stale.rows.union(pruned), plan.renamed)
    summary = Summary(
        output=str(job.output),
        listed=selected.listing.listed,
        embedded=run.computed + run.reused + plan.unchanged,
        skipped=len(skips),
        ignored=selected.listing.ignored,
        computed=run.computed,
        reused=run.reused,
        unchanged=plan.unchanged,
        moved=len(stale.moved),
        vanished=len(stale.vanished) - len(pruned),
        pruned=len(pruned),
        seconds=round(time.monotonic() - started, 3),
    )
    store.finish(asdict(summary), skips)
    return summary


def plan_files(job: Job) -> tuple[Listing, Plan]:
    """What embed_files() would do: no model is loaded and nothing is written.

    Raises UsageError, OutputError or AimError as it would.
    """
    folder, afresh = job.output, job.rules.overwrite
    if is_file_target(job.output):
        check_target(job.output, job.rules.overwrite)
        folder, afresh = hidden_beside(job.output), False
    selected = job.select(folder, "" if afresh else started_in(folder))
    catalog, state = Catalog(), State()
    if (folder / MANIFEST).exists() and not afresh:
        state = EmbeddingStore(folder)._state
        load_rows(folder, state.shards, catalog)
    return selected.listing, make_plan(selected, catalog, state, job.retried)
