"""Files to vectors on disk, the main job: into a store, or by way of a store into one file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aim_mlx.embedding.plan import Plan, make_plan
from aim_mlx.embedding.run import EmbedReport, EmbedRun, Summary
from aim_mlx.embedding.selection import Job, Selected
from aim_mlx.encoder.batching import block_size
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import UsageError
from aim_mlx.images import Listing
from aim_mlx.store.export import Rows, check_target, clear_up, is_file_target, sidecar, write_file
from aim_mlx.store.folder import hidden_beside, load_rows, remove
from aim_mlx.store.journal import State
from aim_mlx.store.lists import started_in
from aim_mlx.store.manifest import NAME as MANIFEST
from aim_mlx.store.manifest import describe
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import Catalog
from aim_mlx.store.writer import StoreWriter, writing

Load = Callable[[], Encoder]


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
    selected = _select(job, job.output, afresh=job.rules.overwrite)
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


def _select(job: Job, store: Path, afresh: bool = False) -> Selected:
    """The files of a job, named as in its store unless that begins empty."""
    outputs = [job.output, sidecar(job.output), store]
    return job.selection.select(outputs, "" if afresh else started_in(store))


def plan_files(job: Job) -> tuple[Listing, Plan]:
    """What embed_files() would do: no model is loaded and nothing is written.

    Raises UsageError, OutputError or AimError as it would.
    """
    folder, afresh = job.output, job.rules.overwrite
    if is_file_target(job.output):
        check_target(job.output, job.rules.overwrite)
        folder, afresh = hidden_beside(job.output), False
    selected = _select(job, folder, afresh)
    catalog, state = Catalog(), State()
    if (folder / MANIFEST).exists() and not afresh:
        state = EmbeddingStore(folder)._state
        load_rows(folder, state.shards, catalog)
    return selected.listing, make_plan(job, selected, catalog, state)
