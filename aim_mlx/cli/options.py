"""Options that several commands have: one name, one meaning, one help text."""

from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.registry import DEFAULT_LIT

# The model

EncoderModel = Annotated[
    str, typer.Option(help="The encoder: a model name, Hub repo, folder or file.")
]
LitModel = Annotated[
    str | None, typer.Option(help=f"A LiT model's name, repo or folder [{DEFAULT_LIT}].")
]
Revision = Annotated[str | None, typer.Option(help="A commit, branch or tag of a Hub repo.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images at a time; fitted to the device if absent.")
]
MeanLayers = Annotated[
    str, typer.Option(help="Blocks to average instead of the last norm: -1,-2,-3")
]
Templates = Annotated[
    str, typer.Option(help="plain, varied, or a file of sentences with {} for the label.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]

# The data

Store = Annotated[Path, typer.Argument(metavar="OUT", help="The folder that embed made.")]
LabelledImages = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A folder of class folders, or a table with columns path and label."
    ),
]
MultiLabel = Annotated[
    bool,
    typer.Option("--multi-label", help="Any number of classes an image; in a table sky;sea."),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Leave classes without images out.")
]
PathColumn = Annotated[str, typer.Option(help="The column of the images in a table.")]
LabelColumn = Annotated[str, typer.Option(help="The column of the classes.")]
SplitColumn = Annotated[
    str | None, typer.Option(help="The column of train, val and test; if absent split, if any.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Follow links to folders.")]

# What is written

Table = Annotated[
    Path | None, typer.Option("-o", "--output", help="A .csv or .jsonl file to write.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON lines, the last of them a summary.")
]
