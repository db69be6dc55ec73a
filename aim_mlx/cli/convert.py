"""`aim-mlx convert`: a checkpoint of any layout to a folder of our format, cast or quantised."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.cli.options import AsJson, Overwrite


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint folder or file.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16.  [default: as stored]")
    ] = None,
    quantize: Annotated[
        bool, typer.Option("-q", "--quantize", help="Quantise the trunk's weights.")
    ] = False,
    bits: Annotated[
        int | None, typer.Option("--q-bits", help="2, 3, 4, 5, 6 or 8 (affine only).")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option("--q-group-size", help="32, 64 or 128 (affine only).")
    ] = None,
    mode: Annotated[str | None, typer.Option("--q-mode", help="affine, mxfp4 or mxfp8.")] = None,
    compare: Annotated[
        bool, typer.Option(help="Embed four pictures before and after, and say how they agree.")
    ] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Cast, quantise or rewrite a checkpoint.

    DST is a folder that loads unchanged. SRC is never changed.
    """
    from aim_mlx.cli.reporter import Reporter
    from aim_mlx.errors import UsageError
    from aim_mlx.weights.convert import convert_checkpoint
    from aim_mlx.weights.quantize import Quantization
    from aim_mlx.weights.strict_json import at

    if not quantize and not (bits is group_size is mode is None):
        raise UsageError("--q-bits, --q-group-size and --q-mode need -q")
    quantization = Quantization.of(mode or "affine", bits, group_size) if quantize else None
    with Reporter(as_json) as report:
        done = convert_checkpoint(
            source,
            folder,
            dtype=dtype,
            quantization=quantization,
            overwrite=overwrite,
            compare=compare,
            progress=partial(report.advanced, "convert"),
        )
    report.emit("summary", {**asdict(done), "exit_code": 0})
    form = done.dtype
    if done.quantization is not None:
        form = "{mode} {bits} bits in groups of {group_size}".format(**done.quantization)
    line = f"{at(folder)}: {done.model or done.kind}, {form}, "
    line += f"{done.bytes_before:,} -> {done.bytes:,} bytes"
    if done.cosines is not None:
        low, mean = min(done.cosines), sum(done.cosines) / len(done.cosines)
        line += f"; cosine of {len(done.cosines)} embeddings: mean {mean:.6f}, lowest {low:.6f}"
    report.say(line)
