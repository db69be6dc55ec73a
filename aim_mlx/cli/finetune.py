"""`aim-mlx finetune` and `aim-mlx fuse`: classifiers with the encoder below them trained too."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aim_mlx.cli.options import (
    AsJson,
    EncoderModel,
    Log,
    MemoryGb,
    Offline,
    Overwrite,
    Revision,
    TrainingDtype,
    memory_bytes,
    model_named,
    options_of,
    takes_data,
)
from aim_mlx.finetune.config import FinetuneConfig


@options_of(FinetuneConfig)
@takes_data
def finetune(
    data: Any,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The classifier's folder to write.")
    ],
    model: EncoderModel = None,
    revision: Revision = None,
    from_probe: Annotated[
        Path | None,
        typer.Option(help="Begin with the head of this probe, and compare the two at the end."),
    ] = None,
    memory_gb: MemoryGb = 4.0,
    dtype: TrainingDtype = None,
    log: Log = None,
    offline: Offline = False,
    as_json: AsJson = False,
    **options: Any,
) -> int:
    """Train a classifier and the encoder below it.

    Small adapters (LoRA) are learned beside the encoder's weights or, with --full, the weights
    themselves. The best epoch on val is kept, and tested once. Writes the classifier, which probe
    predict and probe eval take, and report.html. The same command resumes an interrupted run.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.interrupt import gently
    from aim_mlx.cli.reporter import FinetuneReporter
    from aim_mlx.finetune.run import finetune as run
    from aim_mlx.loading import load
    from aim_mlx.training.logs import logged
    from aim_mlx.training.parallel import joined

    memory = memory_bytes(memory_gb)
    group = joined()
    name = model_named(model)
    report = FinetuneReporter(as_json)
    with report, gently() as stop, logged(report, log, output) as log_report:
        done = run(
            data,
            output,
            lambda: load(name, dtype="float32", revision=revision, offline=offline, progress=tqdm),
            FinetuneConfig(**options),
            log_report,
            probe=from_probe,
            memory=memory,
            dtype=dtype,
            stop=stop,
            group=group,
        )
    if done is None:
        return 0
    report.summary(done)
    return done.exit_code


def fuse(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The encoder that was fine-tuned.")],
    adapter: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that finetune wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    layout: Annotated[str, typer.Option(help="aim-mlx, or transformers for PyTorch.")] = "aim-mlx",
    revision: Revision = None,
    offline: Offline = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a fine-tuned encoder as a model of its own.

    FOLDER has the weights with the adapters in them, and is an encoder as any other. The classifier
    of OUT is in it too, for probe predict.
    """
    import sys

    from huggingface_hub.utils import tqdm

    from aim_mlx.finetune.fuse import fuse as write
    from aim_mlx.loading import load

    encoder = load(model, dtype="float32", revision=revision, offline=offline, progress=tqdm)
    write(encoder, adapter, folder, layout, overwrite)
    print(f"{folder}: {model} with {adapter} in its weights", file=sys.stderr)
