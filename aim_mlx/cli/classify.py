"""`aim-mlx classify`: photos, or the rows of a store, to one's own labels."""

from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.cli.options import (
    AsJson,
    BatchSize,
    Dtype,
    Follow,
    Gone,
    Hidden,
    Html,
    LitModel,
    Offline,
    Overwrite,
    Packed,
    Revision,
    Table,
    Templates,
    model_named,
)
from aim_mlx.registry import DEFAULT_LIT


def classify(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC...", help="Images and folders, or one store of a LiT model."),
    ],
    labels: Annotated[
        str | None, typer.Option(help="The labels to choose from, such as cat,dog,something else")
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
    packed: Packed = False,
    batch_size: BatchSize = None,
    output: Table = None,
    html: Html = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(help="Also write pictures of where the best label is seen, into this folder."),
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
        bool, typer.Option("--allow-truncated", help="Classify truncated files by what is left.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Print the best label of each photo.

    A line has the score, the label and the path, with tabs between.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.labelled import LabelReport, build_head
    from aim_mlx.cli.targets import PAGES, TABLES, check_folder, check_target
    from aim_mlx.encoder.encoder import EmbedOptions
    from aim_mlx.errors import UsageError
    from aim_mlx.loading import load_encoder, load_lit
    from aim_mlx.report.contact_sheet import Origin
    from aim_mlx.wording import counted
    from aim_mlx.words.classify import Choice, find_store, label_photos, label_rows
    from aim_mlx.words.heatmap import write_heatmaps
    from aim_mlx.words.lit import as_lit
    from aim_mlx.words.prompts import as_labels, as_templates, read_labels
    from aim_mlx.words.zeroshot import ZeroShotHead

    if [labels, labels_file, head].count(None) != 2:
        raise UsageError("say what to choose from by one of --labels, --labels-file and --head")
    if head is not None and (save_head is not None or templates != "plain"):
        raise UsageError("saved labels have their templates: leave out --templates, --save-head")
    choice = Choice(top if top is not None or multi_label else 1, threshold, multi_label)
    check_target(output, TABLES, overwrite)
    check_target(html, PAGES, overwrite)
    check_folder(save_head, overwrite)
    check_folder(heatmap, overwrite)
    if head is None:
        given = (labels or "").split(",") if labels_file is None else read_labels(labels_file)
        names = as_labels([name for name in given if name.strip()], single=multi_label)
        sentences = as_templates(templates)
    else:
        saved = ZeroShotHead.load(head)
    options = EmbedOptions("attention", batch_size=batch_size, allow_truncated=allow_truncated)
    report, store = LabelReport(as_json, output, html), find_store(sources)
    if store is None:
        if gone:
            raise UsageError("--gone is for the rows of a store: leave it out for photos")
        paths = report.find(sources, follow, hidden)
        if head is not None:
            dtype = dtype or saved.model.get("dtype")  # in another, the weights are others
        loading = {"revision": revision, "dtype": dtype, "packed": packed or None}
        loading |= {"offline": offline, "progress": tqdm}
        load = cache(partial(load_lit, model_named(model, DEFAULT_LIT), **loading))
    else:
        if any([model, revision, dtype, packed, batch_size, follow, hidden, allow_truncated]):
            raise UsageError(
                "the photos of a store are embedded already: leave out --model, --revision, "
                "--dtype, --packed, --batch-size, --follow, --hidden and --allow-truncated"
            )
        numbers = report.find_rows(store, gone)
        load = cache(lambda: as_lit(load_encoder(store, offline=offline, progress=tqdm)))
    used = build_head(load(), names, sentences, multi_label) if head is None else saved
    if save_head is not None:
        used.save(save_head, overwrite)
    wanted, keep = report.wanted(choice), heatmap is not None
    if store is None:
        rows = label_photos(load(), used, paths, options, wanted, report.skipped)
        origin, locate = Origin(load().identity), Path
    else:
        rows = label_rows(store, used, numbers, wanted)
        origin, locate = Origin(store.manifest["model"], store.folder), store.locate_path
    report.run(rows, choice, origin, locate, keep)
    if heatmap is not None:
        count = write_heatmaps(heatmap, load(), used, report.rows, locate)
        report.noted(f"{counted(count, 'heat map')} in {heatmap}")
    return report.account(len(used.labels))
