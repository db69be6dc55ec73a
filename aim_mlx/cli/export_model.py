"""`aim-mlx export-model`: a model as a file for apps without Python."""

from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.cli.options import AsJson, Offline, Overwrite, Revision, numbers


def export_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model name, Hub repo, folder or file.")
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A name.aimodel (Core AI), name.mlpackage (Core ML) or name.mlxfn (MLX) to write.",
        ),
    ],
    head: Annotated[
        str,
        typer.Option(help="embedding, tokens, text, or the folder of a probe or of saved labels."),
    ] = "embedding",
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    batch: Annotated[
        str, typer.Option(help="Images or texts at a time; 1,8 writes a function for each.")
    ] = "1",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH", help="The pictures' size, for a native-resolution model."
        ),
    ] = None,
    bits: Annotated[
        int, typer.Option(help="8 packs the weights of a .mlpackage into half the bytes.")
    ] = 16,
    image_input: Annotated[
        bool, typer.Option("--image-input", help="Take Core ML's type of images in a .mlpackage.")
    ] = False,
    compare: Annotated[
        bool, typer.Option(help="Run what was written, and keep it only if it agrees with MLX.")
    ] = True,
    revision: Revision = None,
    offline: Offline = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a file that apps run without Python.

    It takes RGB pixels and gives vectors, the tokens of patches, or the scores of classes.
    """
    from huggingface_hub.utils import tqdm

    from aim_mlx.cli.reporter import Reporter
    from aim_mlx.graphs.export import export_model

    batches = numbers("--batch", batch, int)
    with Reporter(as_json) as report:
        done = export_model(
            model,
            output,
            head=head,
            dtype=dtype,
            batches=batches,
            size=None if size is None else _size(size),
            bits=bits,
            image_input=image_input,
            compare=compare,
            revision=revision,
            offline=offline,
            overwrite=overwrite,
            progress=tqdm,
            report=report,
        )
    functions = ", ".join(f"{name} ({batch})" for name, batch in done.functions.items())
    packed = ", 8-bit weights" if done.bits == 8 else ""
    line = f"{done.path}: {done.head}, {done.dtype}{packed}, {functions}, "
    line += f"{done.bytes:,} bytes in {done.seconds:.1f} s; "
    if not done.ran:
        line += "not run, as there is no Core ML here; " if compare else "not run; "
    if done.difference is not None:
        line += "" if done.ran else "MLX with its weights "
        line += f"differs from MLX by {done.difference:.1e}, lowest cosine {done.cosine:.6f}; "
    report.finished(line + done.note, done)


def _size(text: str) -> tuple[int, int]:
    """ "336x448" -> (336, 448); raises UsageError for anything else."""
    from aim_mlx.errors import UsageError

    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--size must be height x width, such as 336x448, got {text!r:.80}")
    return int(sides[0]), int(sides[1])
