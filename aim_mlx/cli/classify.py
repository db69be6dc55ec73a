"""`aim-mlx classify`: photos, or the rows of a store, to one's own labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aim_mlx.cli.options import (
    AsJson,
    BatchSize,
    Dtype,
    Follow,
    Gone,
    Hidden,
    LitModel,
    Offline,
    Overwrite,
    Revision,
    Table,
    Templates,
)
from aim_mlx.cli.words import build_head, given_labels, list_images, load_lit

if TYPE_CHECKING:
    from aim_mlx.words.classify import Stored


def classify(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC...", help="Images and folders, or one store of a LiT model."),
    ],
    labels: Annotated[
        str | None, typer.Option(help="What to choose from: cat,dog,something else")
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option(help="A text file of labels, one a line.")
    ] = None,
    head: Annotated[
        Path | None, typer.Option(help="A folder that --save-head wrote, instead of labels.")
    ] = None,
    templates: Templates = "plain",
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Score each label by itself, by its cosine.")
    ] = False,
    top: Annotated[
        int | None, typer.Option(help="The best N labels.  [default: 1, or all with --multi-label]")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Only labels with at least this score.")
    ] = None,
    model: LitModel = None,
    revision: Revision = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    output: Table = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Also write a web page of the photos and their labels."),
    ] = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(help="Also write pictures of where each label looks, into this folder."),
    ] = None,
    save_head: Annotated[
        Path | None, typer.Option(help="Save the labels' vectors in this folder, for --head.")
    ] = None,
    overwrite: Overwrite = False,
    offline: Offline = False,
    follow: Follow = False,
    hidden: Hidden = False,
    gone: Gone = False,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Classify what is left of cut files.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Print the best label of each photo.

    A line has the score, the label and the path, with tabs between.
    """
    from aim_mlx.cli.labelled import Report, Telling
    from aim_mlx.cli.progress import Progress
    from aim_mlx.cli.targets import PAGES, TABLES, check_folder, check_target
    from aim_mlx.encoder.encoder import EmbedOptions
    from aim_mlx.errors import Interrupted, UsageError
    from aim_mlx.wording import counted
    from aim_mlx.words.classify import Choice, Images
    from aim_mlx.words.heatmap import write_heatmaps
    from aim_mlx.words.prompts import as_templates
    from aim_mlx.words.zeroshot import ZeroShotHead

    if [labels, labels_file, head].count(None) != 2:
        raise UsageError("say what to choose from by one of --labels, --labels-file and --head")
    if head is not None and (save_head is not None or templates != "plain"):
        raise UsageError("saved labels have their templates: leave out --templates, --save-head")
    told = Choice(top if top is not None or multi_label else 1, threshold, multi_label)
    check_target(output, TABLES, overwrite)
    check_target(html, PAGES, overwrite)
    check_folder(save_head, overwrite)
    check_folder(heatmap, overwrite)
    saved = None if head is None else ZeroShotHead.load(head)
    names = () if saved else given_labels(labels, labels_file, multi_label)
    sentences = as_templates(templates)
    options = EmbedOptions("attention", batch_size=batch_size, allow_truncated=allow_truncated)
    progress = Progress(as_json)
    report = Report(progress, Telling(told, as_json, output, html, keep=heatmap is not None))
    unused = [model, revision, dtype, batch_size, follow, hidden, allow_truncated]  # by a store
    loading = {"revision": revision, "dtype": dtype, "offline": offline}
    try:
        source = _stored(sources, unused, gone, offline)
        if source is None:
            listing = list_images(sources, follow, hidden, [output, html], progress)
            source = Images(listing, lambda: load_lit(model, **loading), options)
        used = saved or build_head(source.lit, names, sentences, multi_label)
        if save_head is not None:
            used.save(save_head, overwrite)
        with progress:
            report.run(source, source.rows(used, report.choice, report.skipped))
            if heatmap is not None:
                count = write_heatmaps(heatmap, source.lit, used, report.rows, source.locate)
                progress.noted(f"{counted(count, 'picture')} of similarity in {heatmap}")
    except KeyboardInterrupt:
        kept = f": {output} was not written" if output else ""
        raise Interrupted(
            f"interrupted after {counted(report.classified, 'image')}{kept}"
        ) from None
    return report.summary(len(used.labels))


def _stored(sources: list[str], unused: list[Any], gone: bool, offline: bool) -> "Stored | None":
    """The store among the sources, if there is one; raises UsageError for options without use.

    Rows of photos that are gone are left out, except with `gone`.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.reports import note_missing
    from aim_mlx.errors import UsageError
    from aim_mlx.loading import load_encoder
    from aim_mlx.store.photos import Photos
    from aim_mlx.words.classify import Stored, find_store
    from aim_mlx.words.lit import as_lit

    store = find_store(sources)
    if store is None:
        if gone:
            raise UsageError("--gone is for the rows of a store: leave it out for photos")
        return None
    if any(unused):
        raise UsageError(
            "the photos of a store are embedded already: leave out --model, --revision, --dtype, "
            "--batch-size, --follow, --hidden and --allow-truncated"
        )
    photos = Photos(store, gone)
    rows = photos.each_once(range(len(store)))
    note_missing(photos, rows)
    return Stored(store, rows, lambda: as_lit(load_encoder(store, offline=offline, progress=tqdm)))
