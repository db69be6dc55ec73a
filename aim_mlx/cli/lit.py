"""`aim-mlx lit train`: pairs of image and caption to a LiT model around a frozen image tower."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aim_mlx.cli.help import App
from aim_mlx.cli.options import EncoderModel, Log, Offline, Revision, model_named, options_of
from aim_mlx.lit_training.config import TrainConfig

app = App(help="Models that compare images with words.", rich_markup_mode=None)


@app.command("train")
@options_of(TrainConfig)
def train(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS", help="A .csv, .jsonl or .parquet file, or a Hugging Face data set."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The model's folder to write.")],
    model: EncoderModel = None,
    revision: Revision = None,
    path_column: Annotated[str, typer.Option(help="The column of the images.")] = "path",
    caption_column: Annotated[str, typer.Option(help="The column of the texts.")] = "caption",
    cache: Annotated[
        Path | None, typer.Option(help="Where image tokens are kept; default: in the output.")
    ] = None,
    max_cache_gb: Annotated[
        float, typer.Option(help="What they may take; more is computed again every time.")
    ] = 20.0,
    log: Log = None,
    offline: Offline = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report steps and a summary as JSON lines on stdout.")
    ] = False,
    **options: Any,
) -> int:
    """Teach a model words for your own pictures.

    PAIRS has the columns path and caption. The text tower and the image head are trained; the image
    tower stays as it is.

    Paths are relative to the folder of PAIRS. The same command resumes an interrupted run.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.interrupt import gently
    from aim_mlx.cli.reporter import LiTReporter
    from aim_mlx.errors import UsageError
    from aim_mlx.lit_training.run import train_lit
    from aim_mlx.loading import load
    from aim_mlx.training.logs import logged

    if not 0 <= max_cache_gb < 1e6:
        raise UsageError(f"--max-cache-gb must be from 0, got {max_cache_gb}")
    name = model_named(model)
    report = LiTReporter(as_json)
    with report, gently() as stop, logged(report, log, output) as log_report:
        done = train_lit(
            pairs,
            output,
            lambda: load(name, dtype="float32", revision=revision, offline=offline, progress=tqdm),
            TrainConfig(**options),
            log_report,
            columns=(path_column, caption_column),
            cache=cache,
            cache_limit=round(max_cache_gb * 1e9),
            stop=stop,
        )
    report.summary(done)
    return done.exit_code
