"""`aim-mlx pretrain`, and what its networks make: `caption` and `continue`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aim_mlx.cli.options import (
    AsJson,
    Log,
    MemoryGb,
    Offline,
    Overwrite,
    Revision,
    TrainingDtype,
    memory_bytes,
    options_of,
)
from aim_mlx.pretrain.config import PretrainConfig

_Run = Annotated[Path, typer.Option(help="The folder that pretrain wrote.")]


@options_of(PretrainConfig)
def pretrain(
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS",
            help="A .csv, .jsonl or .parquet file, a Hugging Face data set or a folder of images.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The model's folder to write.")],
    init: Annotated[
        str | None, typer.Option(help="Go on from this encoder: a name, Hub repo, folder or file.")
    ] = None,
    revision: Revision = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A folder with a tokenizer.json, instead of learning one.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(help="Measure the features on this folder of class folders as it goes."),
    ] = None,
    memory_gb: MemoryGb = 4.0,
    dtype: TrainingDtype = None,
    path_column: Annotated[str, typer.Option(help="The column of the images.")] = "path",
    caption_column: Annotated[str, typer.Option(help="The column of the texts.")] = "caption",
    log: Log = None,
    offline: Offline = False,
    as_json: AsJson = False,
    **options: Any,
) -> int:
    """Train an encoder on your own pictures and captions.

    PAIRS has the columns path and caption; a caption may be empty, and an image may have several.
    The network learns to predict the next patch of an image, then the words. It starts from nothing
    or, with --init, from a published encoder.

    The output is a model that every other command takes, with a report.html. The same command
    resumes an interrupted run.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.interrupt import gently
    from aim_mlx.cli.reporter import PretrainReporter
    from aim_mlx.data.labelled import Data
    from aim_mlx.errors import UsageError
    from aim_mlx.loading import load
    from aim_mlx.pretrain.run import pretrain as run
    from aim_mlx.training.logs import logged
    from aim_mlx.training.parallel import joined

    memory = memory_bytes(memory_gb)
    for name, value in (("PAIRS", pairs), ("--init", init), ("--labelled", labelled)):
        if value == "":
            raise UsageError(f"{name} is empty: give a name, or leave it out")

    def encoder():
        return load(init or "", dtype="float32", revision=revision, offline=offline, progress=tqdm)

    group = joined()
    report = PretrainReporter(as_json)
    with report, gently() as stop, logged(report, log, output) as log_report:
        done = run(
            pairs,
            output,
            PretrainConfig(**options),
            log_report,
            columns=(path_column, caption_column),
            init=encoder if init else None,
            tokenizer=tokenizer,
            labelled=Data(labelled) if labelled else None,
            memory=memory,
            dtype=dtype,
            stop=stop,
            group=group,
        )
    if group.is_first:
        report.summary(done)
    return done.exit_code


def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMG...", help="The images.")],
    model: _Run,
    longest: Annotated[
        int | None, typer.Option(help="Tokens at most.  [default: as many as the model can]")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 for the likeliest words; 1 draws them by their probability.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Describe images in words, with a model that pretrain made.

    A line has the caption and the path, with a tab between.
    """
    import json

    from aim_mlx.pretrain.pretrained import load_pretrained
    from aim_mlx.wording import escaped

    written = load_pretrained(model).caption(
        images, longest=longest, temperature=temperature, seed=seed
    )
    for path, text in zip(images, written, strict=True):
        record = {"event": "caption", "path": str(path), "caption": text}
        print(json.dumps(record) if as_json else f"{escaped(text)}\t{escaped(str(path))}")
    if as_json:
        print(json.dumps({"event": "summary", "captions": len(written), "exit_code": 0}))
    return 0


def continue_image(
    image: Annotated[Path, typer.Argument(metavar="IMG", help="The image.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png file to write.")],
    model: _Run,
    rows: Annotated[
        int | None, typer.Option(help="Rows of patches to keep.  [default: half of them]")
    ] = None,
    overwrite: Overwrite = False,
) -> int:
    """Draw the rest of an image from its first rows.

    MODEL is a folder that pretrain wrote.
    """
    from PIL import Image

    from aim_mlx.cli.targets import check_target
    from aim_mlx.files import disk_errors, publish
    from aim_mlx.pretrain.pretrained import load_pretrained

    check_target(output, (".png",), overwrite)
    pretrained = load_pretrained(model)
    grid = pretrained.model.config.vision.grid or 0
    finished = Image.fromarray(pretrained.finish(image, grid // 2 if rows is None else rows))
    with disk_errors("write", output):
        publish({output: lambda file: finished.save(file, "PNG")})
    return 0
