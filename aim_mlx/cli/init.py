"""`aim-mlx init`: random weights of a published size."""

from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.cli.options import Overwrite


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A published model's name.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write an untrained model, to try things out.

    Its weights are random numbers, so its results mean nothing.
    """
    from aim_mlx.config import LiTConfig
    from aim_mlx.registry import find_model
    from aim_mlx.weights.initial import initial_weights
    from aim_mlx.weights.save import provenance, save_checkpoint
    from aim_mlx.words.tokenizer import Tokenizer

    spec = find_model(name)
    history = provenance(source=f"random initialisation of {name}", trained=False, seed=seed)
    weights = initial_weights(spec.config, seed)
    files = {}
    if isinstance(spec.config, LiTConfig):
        files = Tokenizer.of_bytes(spec.config.text).files()
    save_checkpoint(
        folder,
        weights,
        spec.config,
        spec.preprocess,
        history,
        extra_files=files,
        overwrite=overwrite,
    )
    typer.echo(f"{folder}: {name} with random weights, seed {seed}: UNTRAINED", err=True)
