"""Options that several commands have: one name, one meaning, one help text."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from aim_mlx.errors import UsageError
from aim_mlx.registry import DEFAULT_LIT, DEFAULT_MODEL, MODELS, STAND_INS

# The model

EncoderModel = Annotated[
    str | None,
    typer.Option(
        help="The encoder: a model name, Hub repo, folder or file.  "
        f"[default: {DEFAULT_MODEL} if downloaded, else {STAND_INS[DEFAULT_MODEL]}]"
    ),
]
Adapter = Annotated[
    Path | None, typer.Option(help="What fine-tuning changed of it: the folder of finetune.")
]
LitModel = Annotated[
    str | None,
    typer.Option(
        help="A LiT model's name, repo or folder.  "
        f"[default: {DEFAULT_LIT} if downloaded, else {STAND_INS[DEFAULT_LIT]}]"
    ),
]
Revision = Annotated[str | None, typer.Option(help="A commit, branch or tag of a Hub repo.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, float16 or bfloat16.  [default: float16 on Metal, bfloat16 on CUDA, float32 "
        "on a CPU]"
    ),
]
Packed = Annotated[
    bool,
    typer.Option("--packed", help="Keep quantised weights packed: less memory, more time."),
]
TrainingDtype = Annotated[
    str | None,
    typer.Option(
        help="float32, float16 or bfloat16.  [default: float32 on a CPU, bfloat16 on a GPU]"
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Images at a time.  [default: fitted to the device]")
]
Pooling = Annotated[
    str | None, typer.Option(help="mean, max, gem, or attention where there is such a pool.")
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
        metavar="DATA",
        help="A folder of class folders, a table of path and label, or a Hugging Face data set.",
    ),
]
MultiLabel = Annotated[
    bool,
    typer.Option("--multi-label", help="An image may have several classes; in a table sky;sea."),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Leave out classes that have no images.")
]
Log = Annotated[
    str | None,
    typer.Option(help="tensorboard: also write the figures for it, into OUTPUT/training."),
]
PathColumn = Annotated[str, typer.Option(help="In a table, the column with the images.")]
LabelColumn = Annotated[str, typer.Option(help="In a table, the column with the classes.")]
SplitColumn = Annotated[
    str | None,
    typer.Option(help="In a table, the column with train, val and test.  [default: split]"),
]
MemoryGb = Annotated[
    float, typer.Option(help="What decoded pictures may take; others are decoded each time.")
]
Gone = Annotated[bool, typer.Option("--gone", help="Include photos whose files are gone.")]
Follow = Annotated[bool, typer.Option("--follow", help="Follow links to folders.")]
Hidden = Annotated[bool, typer.Option("--hidden", help="Also enter hidden folders (.name).")]

# What is written

Table = Annotated[
    Path | None, typer.Option("-o", "--output", help="A .csv or .jsonl file to write.")
]
Html = Annotated[Path | None, typer.Option(help="Also write the results as a web page.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON lines, with a summary as the last.")
]


def memory_bytes(gigabytes: float) -> int:
    """--memory-gb in bytes; raises UsageError for what cannot be."""
    if not 0 <= gigabytes <= 1e6:
        raise UsageError(f"--memory-gb must be from 0 to 1000000, got {gigabytes}")
    return round(gigabytes * 1e9)


def model_named(given: str | None, default: str = DEFAULT_MODEL) -> str:
    """The model of --model; without, the default where it is on this disk, else its stand-in."""
    if given is not None:
        return given
    from aim_mlx.weights.hub import cached

    spec = MODELS[default]
    if spec.repo is not None and cached(spec.repo, spec.revision):
        return default
    small = STAND_INS[default]
    print(
        f"note: no --model, and {default} is not downloaded: using {small}, which is for drawings "
        f"and for trying things out; for photos: --model {default}",
        file=sys.stderr,
    )
    return small


# Of labelled images that are divided: made into one argument


def _data(
    source: LabelledImages,
    *,
    val: Annotated[float, typer.Option(help="Fraction of each class to choose by.")] = 0.15,
    test: Annotated[
        float, typer.Option(help="Fraction of each class for the final figures.")
    ] = 0.15,
    multi_label: MultiLabel = False,
    allow_empty: AllowEmpty = False,
    follow: Follow = False,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    split_column: SplitColumn = None,
) -> Any:
    from aim_mlx.data.labelled import Columns, Data

    columns = Columns(path_column, label_column, split_column)
    return Data(source, columns, multi_label, allow_empty, follow, val, test)


def takes_data(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command DATA and its options, which it takes as its first parameter, a `Data`."""
    source, *options = inspect.signature(_data).parameters.values()
    signature = inspect.signature(command)
    own = list(signature.parameters.values())[1:]
    last = [each for each in own if each.kind is each.VAR_KEYWORD]

    @wraps(command)
    def with_data(**given: Any) -> int:
        data = _data(**{each.name: given.pop(each.name) for each in (source, *options)})
        return command(data, **given)

    parameters = [source, *[each for each in own if each not in last], *options, *last]
    with_data.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_data


# Of a training: made from the fields of its config


def options_of(config: type, defaults: bool = True) -> Callable[..., Any]:
    """Adds an option for each field of a config to a command, which takes them as **options.

    Without `defaults` an option that is not given is None. See `training.options.option`.
    """

    def add(command: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(command)
        given = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [_made_of(each, defaults) for each in fields(config)]
        command.__annotations__ |= {each.name: each.annotation for each in made}
        command.__signature__ = signature.replace(parameters=[*given, *made])  # type: ignore[attr-defined]
        return command

    return add


def _made_of(field: Field, defaults: bool) -> inspect.Parameter:
    kind: Any = field.type
    default, flag, names = field.default, f"--{field.name.replace('_', '-')}", []
    if kind is bool and not default:
        names = [flag]  # with no name, typer adds the negative
    elif kind is not bool and not defaults:
        default = None
    several: dict[str, Any] = {}
    if kind in _SEVERAL:
        parse, words = _SEVERAL[kind]
        several["metavar"] = words
        # A default passes through the parser too.
        several["parser"] = lambda text: parse(flag, text) if isinstance(text, str) else text
        kind = str
    annotation = Annotated[
        kind | None if default is None else kind,
        typer.Option(*names, help=field.metadata["help"], **several),
    ]
    where = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, where, default=default, annotation=annotation)


def numbers(flag: str, text: str, kind: type[int] | type[float] = float) -> tuple[Any, ...]:
    """ "1e-3,3e-3" -> (0.001, 0.003); raises UsageError for anything else."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        example = "whole numbers such as 1,2" if kind is int else "numbers such as 1,0.5"
        raise UsageError(f"{flag} must be {example}, got {text!r}") from None


def _names(flag: str, text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _off_or_on(flag: str, text: str) -> tuple[bool, ...]:
    kinds = {"off": (False,), "on": (True,), "both": (False, True)}
    if text not in kinds:
        raise UsageError(f"{flag} must be off, on or both, got {text!r}")
    return kinds[text]


_SEVERAL = {
    tuple[float, ...]: (numbers, "NUMBERS"),
    tuple[str, ...]: (_names, "NAMES"),
    tuple[bool, ...]: (_off_or_on, "off|on|both"),
}
