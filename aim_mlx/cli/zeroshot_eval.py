"""`aim-mlx zeroshot-eval`: how well words tell the classes of a data set apart."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aim_mlx.cli.options import (
    AllowEmpty,
    AsJson,
    BatchSize,
    Dtype,
    LabelColumn,
    LabelledImages,
    LitModel,
    Offline,
    Packed,
    PathColumn,
    Revision,
    Templates,
    model_named,
)
from aim_mlx.registry import DEFAULT_LIT

if TYPE_CHECKING:
    from aim_mlx.words.evaluation import ZeroShotEvaluation

_PAIRS = 5  # of the most confused classes that are printed


def zeroshot_eval(
    data: LabelledImages,
    class_names: Annotated[
        Path | None,
        typer.Option(help="A table of class and label, for folders not named in words."),
    ] = None,
    templates: Templates = "plain",
    split: Annotated[
        str | None, typer.Option(help="train, val or test.  [default: val, if there are splits]")
    ] = None,
    model: LitModel = None,
    revision: Revision = None,
    dtype: Dtype = None,
    packed: Packed = False,
    batch_size: BatchSize = None,
    offline: Offline = False,
    allow_empty: AllowEmpty = False,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    as_json: AsJson = False,
) -> int:
    """Measure how well words tell classes apart.

    Each image is classified by the names of the classes. Prints how many are right.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.labelled import build_head
    from aim_mlx.cli.reporter import Progress
    from aim_mlx.data.labelled import Columns, Data
    from aim_mlx.encoder.encoder import EmbedOptions
    from aim_mlx.images import Listing
    from aim_mlx.loading import load_lit
    from aim_mlx.wording import counted
    from aim_mlx.words.evaluation import chosen_split, evaluate, labels_of
    from aim_mlx.words.prompts import as_labels, as_templates

    sentences = as_templates(templates)
    options = EmbedOptions("attention", batch_size=batch_size)
    columns = Columns(path_column, label_column)
    images = Data(data, columns, allow_empty=allow_empty).labelled()
    items = chosen_split(images, split)
    labels = as_labels(labels_of(images.classes, class_names))
    report = Progress(as_json)
    report.listed(Listing(tuple(item.path for item in items), 0, images.skips, images.notes))
    for skip in images.skips:
        report.skipped(skip)
    name = model_named(model, DEFAULT_LIT)
    lit = load_lit(
        name,
        revision=revision,
        dtype=dtype,
        packed=packed or None,
        offline=offline,
        progress=tqdm,
    )
    head = build_head(lit, labels, sentences, single=False)
    with report:
        result = evaluate(
            lit, head, items, images.classes, options, report.skipped, report.embedded
        )
    code, figures = 3 if report.skips else 0, result.figures
    tops = {"top1": figures["accuracy"], "top5": figures.get("top5_accuracy")}
    more = {"labels": labels, "confusion": result.mistakes, "skipped": report.skips}
    report.emit("summary", {**tops, **figures, **more, "exit_code": code})
    if not as_json:
        _print(result)
        report.say(f"{counted(figures['images'], 'image')}, {report.skips} skipped")
    return code


def _print(result: "ZeroShotEvaluation") -> None:
    from aim_mlx.wording import escaped

    figures = result.figures
    low, high = figures["accuracy_interval"]
    print(f"top-1\t{figures['accuracy']:.2%}\t95% interval {low:.2%} to {high:.2%}")
    if "top5_accuracy" in figures:
        print(f"top-5\t{figures['top5_accuracy']:.2%}")
    for each in figures["classes"]:
        right = "-" if each["recall"] is None else f"{each['recall']:.2%}"
        print(f"{escaped(each['name'])}\t{right}\tof {each['images']}")
    for pair in result.mistakes[:_PAIRS]:
        names = escaped(pair["class"]), escaped(pair["taken_for"])
        print(f"confused\t{pair['images']}\t{names[0]} taken for {names[1]}")
