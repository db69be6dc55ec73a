"""`aim-mlx embed`: folders of photos to a file of vectors."""

from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.registry import DEFAULT_MODEL


def embed(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help="Images and folders.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The file to write: .npz, .npy or .safetensors.")
    ],
    model: Annotated[
        str, typer.Option(help="A model name, Hub repo, folder or file.")
    ] = DEFAULT_MODEL,
    revision: Annotated[
        str | None, typer.Option(help="A commit, branch or tag of a Hub repo.")
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(help="mean, max, gem, or attention where there is such a pool."),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Blocks to average instead of the last norm: -1,-2,-3")
    ] = "",
    normalize: Annotated[bool, typer.Option(help="Scale vectors to length 1.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time; fitted to the device if absent.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Follow links to folders.")] = False,
    max_megapixels: Annotated[
        float | None, typer.Option(help="Skip larger images; from the memory if absent.")
    ] = None,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Embed what is left of cut files.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report skips and a summary as JSON lines on stdout.")
    ] = False,
) -> int:
    """Embed every image under SRC, one vector each, in the order of their paths."""
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.progress import Progress
    from aim_mlx.embed import EmbedOptions
    from aim_mlx.embed_files import embed_files
    from aim_mlx.errors import Interrupted
    from aim_mlx.loading import load

    options = EmbedOptions(
        pooling,
        parse_layers(layers),
        normalize,
        batch_size,
        _pixels(max_megapixels),
        allow_truncated,
    )
    progress = Progress(as_json)
    try:
        with progress:
            summary = embed_files(
                sources,
                output,
                lambda: load(model, dtype=dtype, revision=revision, offline=offline, progress=tqdm),
                options,
                progress,
                follow=follow,
                overwrite=overwrite,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {progress.done} images: {output} was not written"
        ) from None
    progress.summary(summary)
    return summary.exit_code


def parse_layers(text: str) -> tuple[int, ...]:
    """ "0,-1" -> (0, -1); raises UsageError for anything else."""
    from aim_mlx.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UsageError(f"layers must be whole numbers such as 0,-1, got {text!r}") from None


def _pixels(megapixels: float | None) -> int | None:
    from aim_mlx.errors import UsageError

    if megapixels is None:
        return None
    if not 0 < megapixels < 1e6:
        raise UsageError(f"--max-megapixels must be above 0, got {megapixels}")
    return round(megapixels * 1e6)
