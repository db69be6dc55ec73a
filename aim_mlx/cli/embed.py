"""`aim-mlx embed`: folders of photos to a store, or a file, of vectors."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from aim_mlx.cli.options import (
    Adapter,
    AsJson,
    BatchSize,
    Dtype,
    EncoderModel,
    Follow,
    Hidden,
    MeanLayers,
    Offline,
    Overwrite,
    Packed,
    Pooling,
    Revision,
    model_named,
    numbers,
)


def embed(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC...", help="Images and folders; - reads a list from stdin."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="A folder, kept up to date by running again; or one file: .npz, .npy, "
            ".safetensors, .parquet or .jsonl.",
        ),
    ],
    model: EncoderModel = None,
    adapter: Adapter = None,
    revision: Revision = None,
    pooling: Pooling = None,
    layers: MeanLayers = "",
    normalize: Annotated[bool, typer.Option(help="Scale vectors to length 1.")] = True,
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    packed: Packed = False,
    offline: Offline = False,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Only what matches: '*.jpg', or '2024/*' for a path. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Nothing that matches: 'drafts', '*.png'. Repeatable."),
    ] = None,
    follow: Follow = False,
    hidden: Hidden = False,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="The list on stdin is separated by NUL bytes.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="Only the i-th of n parts, as 2/4; see aim-mlx merge.")
    ] = None,
    max_megapixels: Annotated[
        float | None, typer.Option(help="Skip larger images.  [default: by the memory]")
    ] = None,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Embed what is left of cut files.")
    ] = False,
    retry_skipped: Annotated[
        bool, typer.Option("--retry-skipped", help="Try what failed before and did not change.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the rows of deleted files.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Turn every photo under SRC into a vector.

    With a folder as OUT the same command, run again, goes on where it was interrupted and embeds
    what is new or changed. Ctrl-C keeps what is done.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.interrupt import asked, gently
    from aim_mlx.cli.reporter import Progress
    from aim_mlx.embedding.job import embed_files, plan_files
    from aim_mlx.embedding.selection import Job, Rules, Selection
    from aim_mlx.encoder.encoder import EmbedOptions, Encoder
    from aim_mlx.images import parse_share
    from aim_mlx.loading import load

    options = EmbedOptions(
        pooling,
        numbers("--layers", layers, int) if layers else (),
        normalize,
        batch_size,
        _pixels(max_megapixels),
        allow_truncated,
    )
    selection = Selection(
        tuple(source for source in sources if source != "-"),
        _listed("-" in sources, null),
        follow,
        hidden,
        tuple(include or ()),
        tuple(exclude or ()),
        parse_share(shard) if shard else None,
    )
    rules = Rules(overwrite, retry_skipped, prune)
    progress = Progress(as_json)
    job = Job(selection, output, options, rules, asked)
    if dry_run:
        progress.planned(*plan_files(job), output)
        return 0
    name = model_named(model)
    with ExitStack() as until_the_end, progress:

        def loaded() -> Encoder:
            encoder = load(
                name,
                dtype=dtype,
                revision=revision,
                adapter=adapter,
                packed=packed or None,
                offline=offline,
                progress=tqdm,
            )
            until_the_end.enter_context(gently())  # before, there is nothing worth finishing
            return encoder

        summary = embed_files(job, loaded, progress)
    progress.summary(summary)
    return summary.exit_code


def _listed(wanted: bool, null: bool) -> tuple[str, ...]:
    """The paths on stdin, if they are asked for."""
    from aim_mlx.errors import UsageError
    from aim_mlx.images import read_paths

    if not wanted:
        if null:
            raise UsageError("-0 is about a list on stdin: give - as a source to read one")
        return ()
    if sys.stdin is None:
        raise UsageError("expected a list of paths on stdin, but it is closed")
    return tuple(read_paths(sys.stdin.buffer, null))


def _pixels(megapixels: float | None) -> int | None:
    from aim_mlx.errors import UsageError

    if megapixels is None:
        return None
    if not 0 < megapixels < 1e6:
        raise UsageError(f"--max-megapixels must be above 0, got {megapixels}")
    return round(megapixels * 1e6)
