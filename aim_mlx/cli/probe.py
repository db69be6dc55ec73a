"""`aim-mlx probe train|eval|predict`: classifiers on the frozen features of an encoder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aim_mlx.cli.help import App
from aim_mlx.cli.options import (
    Adapter,
    AllowEmpty,
    AsJson,
    EncoderModel,
    Follow,
    Hidden,
    Html,
    LabelColumn,
    LabelledImages,
    Log,
    MeanLayers,
    Offline,
    Overwrite,
    PathColumn,
    Revision,
    SplitColumn,
    Table,
    model_named,
    numbers,
    options_of,
    takes_data,
)
from aim_mlx.probe.config import ProbeConfig

app = App(help="Classifiers on the features of a frozen encoder.", rich_markup_mode=None)

Probe = Annotated[Path, typer.Argument(metavar="PROBE", help="The folder that probe train wrote.")]
OtherModel = Annotated[
    str | None, typer.Option(help="Where the encoder is now; default: where it was.")
]


@app.command("train")
@options_of(ProbeConfig, defaults=False)
@takes_data
def train(
    data: Any,
    output: Annotated[Path, typer.Option("-o", "--output", help="The probe's folder to write.")],
    model: EncoderModel = None,
    adapter: Adapter = None,
    revision: Revision = None,
    protocol: Annotated[
        str, typer.Option(help="The defaults: fast for small sets, or paper, AIMv2's 28 heads.")
    ] = "fast",
    layers: MeanLayers = "",
    augment: Annotated[
        bool, typer.Option("--augment", help="Train on random views, new ones in every epoch.")
    ] = False,
    views: Annotated[
        int, typer.Option(help="With --augment, this many views an image, kept and taken in turn.")
    ] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokens are kept; default: in the output.")
    ] = None,
    max_cache_gb: Annotated[
        float, typer.Option(help="What they may take; more is computed again in every epoch.")
    ] = 20.0,
    log: Log = None,
    offline: Offline = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report epochs and a summary as JSON lines on stdout.")
    ] = False,
    **options: Any,
) -> int:
    """Train a probe on labelled images.

    A grid of heads is trained at once, the best on val is kept, and that one is tested once. Writes
    the probe, the splits and report.html. The same command resumes an interrupted run.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.interrupt import gently
    from aim_mlx.cli.reporter import ProbeReporter
    from aim_mlx.errors import UsageError
    from aim_mlx.loading import load
    from aim_mlx.probe.config import protocol as configured
    from aim_mlx.probe.features import Augmentation
    from aim_mlx.probe.run import Plan, train_probe
    from aim_mlx.training.logs import logged

    if not 0 <= max_cache_gb < 1e6:
        raise UsageError(f"--max-cache-gb must be from 0, got {max_cache_gb}")
    if views and not augment:
        raise UsageError("--views is about random views: say --augment too")
    changes = {name: value for name, value in options.items() if value is not None}
    if changes.get("patience") == 0:
        changes["patience"] = None
    config = configured(protocol, **changes)
    augmentation = Augmentation(config.seed, views, protocol == "paper") if augment else None
    blocks = numbers("--layers", layers, int) if layers else ()
    plan = Plan(config, blocks, augmentation, cache, round(max_cache_gb * 1e9))
    name = model_named(model)
    report = ProbeReporter(as_json)
    with report, gently() as stop, logged(report, log, output) as log_report:
        done = train_probe(
            data,
            output,
            lambda: load(name, revision=revision, adapter=adapter, offline=offline, progress=tqdm),
            plan,
            log_report,
            stop=stop,
        )
    report.summary(done)
    return done.exit_code


@app.command("eval")
def evaluate(
    probe: Probe,
    source: LabelledImages,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; default: test, else all.")
    ] = None,
    model: OtherModel = None,
    html: Html = None,
    overwrite: Overwrite = False,
    allow_empty: AllowEmpty = False,
    follow: Follow = False,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    split_column: SplitColumn = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> int:
    """Measure a probe on labelled images.

    Prints the figures, then the share of each class that was right.
    """
    from aim_mlx.cli.reporter import ProbeReporter
    from aim_mlx.cli.targets import PAGES, check_target
    from aim_mlx.data.labelled import Columns, Data
    from aim_mlx.errors import Interrupted
    from aim_mlx.probe.evaluation import evaluate_probe
    from aim_mlx.probe.summary import made_report
    from aim_mlx.report.probe_page import write_report
    from aim_mlx.training.report import pass_on

    check_target(html, PAGES, overwrite)
    loaded = _load(probe, model, offline)
    columns = Columns(path_column, label_column, split_column)
    data = Data(source, columns, loaded.multi_label, allow_empty, follow)
    report = ProbeReporter(as_json)
    try:
        with report:
            found = evaluate_probe(loaded, probe, data, split, report.advanced)
            if html is not None:
                facts = {"probe": str(probe), "data": source, "encoder": loaded.model.get("model")}
                title = f"{probe.resolve().name} on {data.name}"
                write_report(
                    html, made_report(title, loaded, found.measured, facts, found.warnings)
                )
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was measured") from None
    pass_on(report, found.skips, found.notes, found.warnings)
    code = 3 if found.skips else 0
    report.figures(found.measured.name, found.measured.figures, code)
    return code


@app.command("predict")
def predict(
    probe: Probe,
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help="Images and folders.")],
    output: Table = None,
    html: Html = None,
    top: Annotated[
        int | None, typer.Option(help="The best N classes; default: 1, or all with several.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Only classes this likely; 0.5 where there are several.")
    ] = None,
    model: OtherModel = None,
    overwrite: Overwrite = False,
    follow: Follow = False,
    hidden: Hidden = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> int:
    """Print the class of each photo.

    A line has the probability, the class and the path, with tabs between.
    """
    from aim_mlx.cli.labelled import LabelReport
    from aim_mlx.cli.targets import PAGES, TABLES, check_target
    from aim_mlx.report.contact_sheet import Origin
    from aim_mlx.words.classify import Choice, label_images

    check_target(output, TABLES, overwrite)
    check_target(html, PAGES, overwrite)
    report = LabelReport(as_json, output, html)
    paths = report.find(sources, follow, hidden)
    loaded = _load(probe, model, offline)
    if loaded.multi_label:
        likely = threshold if threshold is not None or top is not None else 0.5
        choice = Choice(len(loaded.classes) if top is None else top, likely)
    else:
        choice = Choice(1 if top is None else top, threshold)
    stream, wanted = loaded.predict_stream(paths), report.wanted(choice)
    rows = label_images(stream, loaded.classes, lambda each: each, wanted, report.skipped)
    report.run(rows, choice, Origin(loaded.model))
    return report.account(len(loaded.classes))


def _load(folder: Path, model: str | None, offline: bool):
    """The probe with its encoder."""
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.probe.probe import AttentiveProbe

    return AttentiveProbe.load(folder, model or None, offline=offline, progress=tqdm)
