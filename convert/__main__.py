"""`python -m convert`: the command, and how it ends."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from aim_mlx.errors import AimError, CheckpointError, OutputError, UsageError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC",
            help="A .pth, .pt, .bin or .safetensors file, or a folder; then a probe's head",
        ),
    ],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DST", help="The folder to write; for the head of a probe, a .safetensors file."
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16; as it is stored unless given."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks whose mean the head takes: best, last, or 14,15,16."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="A file with the head's classes, one a line in order; else they are numbers."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with PyTorch, block by block.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint in DST.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Where --verify reports: FILE.md and FILE.json, else beside DST."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Convert PyTorch weights of AIMv2 and AIMv1 to the format of aim-mlx, and verify them.

    With its head an encoder becomes a probe, for `aim-mlx probe`; a head is converted by itself
    too. PyTorch files are read as weights only: nothing in them is run.
    """
    # Before MLX is imported, which reads it: TF32 would round the inputs of float32 products.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    from convert.classifier import read_classifier, write_classifier
    from convert.conversion import check_request, write
    from convert.report import report_paths
    from convert.source import open_source

    if report is not None and not verify:
        raise UsageError("--report is for --verify: give both or neither")
    if len(sources) > 2:
        raise UsageError(f"expected an encoder and a head at most, got {len(sources)} sources")
    source, head = sources[0], sources[1] if len(sources) == 2 else None
    if folder.suffix == ".safetensors":
        if head is not None:
            raise UsageError("an encoder and its head become a folder: name one as DST")
        if dtype is not None or verify:
            raise UsageError(
                "--dtype and --verify are for encoders: to convert one, name a folder as DST"
            )
        return _convert_head(source, folder, overwrite)
    check_request(source, folder, dtype, overwrite)
    paths = report_paths(folder, report)
    if verify:
        _check_reports(paths, overwrite)
    with open_source(source, folder.absolute().parent) as opened:
        head = head or opened.head
        if head is None and (layers is not None or classes is not None):
            raise UsageError("--layers and --classes are for the head of a probe: give its file")
        probe = None
        if head is not None:
            workplace = folder.absolute().parent
            probe = read_classifier(head, source, opened.checkpoint, layers, classes, workplace)
        write(source, opened, folder, dtype, overwrite)
        layout = f"{opened.checkpoint.kind}, from the {opened.checkpoint.layout} layout"
        typer.echo(f"{folder}: {opened.checkpoint.parameters:,} parameters, {layout}", err=True)
        if probe is not None:
            write_classifier(probe, folder, dtype or "float32")
            blocks = ", ".join(map(str, probe.layers))
            typer.echo(
                f"{folder}: a probe of {len(probe.classes)} classes on the mean of blocks {blocks}",
                err=True,
            )
        if verify:
            _verify(opened, folder, paths)


def _convert_head(source: Path, target: Path, overwrite: bool) -> None:
    from convert.head import convert_head

    head = convert_head(source, target, overwrite)
    normalised = " after batch norm" if head.batch_norm else ""
    typer.echo(
        f"{target}: the {head.kind} head of a probe, {head.dim} channels{normalised} to "
        f"{head.classes} classes",
        err=True,
    )


def _check_reports(paths: tuple[Path, Path], overwrite: bool) -> None:
    """What would stop the verification after a long conversion is said before it."""
    from convert.reference import require_reference

    require_reference()
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: choose another --report, or give --overwrite")
        if not path.parent.is_dir():
            raise OutputError(f"{path.parent} is not a folder: make it first")


def _verify(opened, folder: Path, paths: tuple[Path, Path]) -> None:
    """Writes the report; raises CheckpointError with its verdict if that is not a pass."""
    from convert.report import write_report
    from convert.verify import verify

    report = verify(opened, folder)
    write_report(report, paths)
    typer.echo(f"report: {paths[0]} and {paths[1].name}", err=True)
    if not report.passed:
        raise CheckpointError(f"{report.verdict}; do not use {folder}, see {paths[0]}")
    print(report.verdict)


def run(arguments: list[str]) -> int:
    """Runs the command; errors become one line on stderr and the exit code of their kind."""
    try:
        result = app(args=arguments, prog_name="python -m convert", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, Abort):
        return _fail("interrupted", 130)
    except Exception as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, TyperException):
            return _fail(error.format_message(), 2)
        if isinstance(error, AimError):
            return _fail(str(error), error.exit_code)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


def _fail(message: str, code: int) -> int:
    print(f"convert: error: {' '.join(message.split()) or 'failed'}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
