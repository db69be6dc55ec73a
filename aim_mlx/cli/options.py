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
    str | None, typer.Option(help=f"A LiT model's name, repo or folder.  [default: {DEFAULT_LIT}]")
]
Revision = Annotated[str | None, typer.Option(help="A commit, branch or tag of a Hub repo.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images at a time.  [default: fitted to the device]")
]
MeanLayers = Annotated[str, typer.Option(help="Average these blocks' outputs, such as -1,-2,-3.")]
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
    typer.Option("--multi-label", help="An image may have several classes; in a table sky;sea."),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Leave classes without images out.")
]
PathColumn = Annotated[str, typer.Option(help="In a table, the column with the images.")]
LabelColumn = Annotated[str, typer.Option(help="In a table, the column with the classes.")]
SplitColumn = Annotated[
    str | None,
    typer.Option(help="In a table, the column with train, val and test.  [default: split]"),
]
Gone = Annotated[bool, typer.Option("--gone", help="Also photos whose files are gone.")]
Follow = Annotated[bool, typer.Option("--follow", help="Follow links to folders.")]
Hidden = Annotated[bool, typer.Option("--hidden", help="Enter hidden folders (.name) too.")]

# What is written

Table = Annotated[
    Path | None, typer.Option("-o", "--output", help="A .csv or .jsonl file to write.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON lines, with a summary as the last.")
]
