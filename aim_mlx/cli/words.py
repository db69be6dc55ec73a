"""What the commands share that take labels in words."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_mlx.registry import DEFAULT_LIT

if TYPE_CHECKING:
    from aim_mlx.cli.progress import Progress
    from aim_mlx.images import Listing
    from aim_mlx.words.lit import LiT
    from aim_mlx.words.zeroshot import ZeroShotHead


def given_labels(labels: str | None, labels_file: Path | None, single: bool) -> tuple[str, ...]:
    """The labels of --labels or --labels-file, checked before any work."""
    from aim_mlx.words.prompts import as_labels, read_labels

    if labels_file is not None:
        return as_labels(read_labels(labels_file), single)
    return as_labels([part for part in (labels or "").split(",") if part.strip()], single)


def list_images(
    sources: list[str],
    follow: bool,
    hidden: bool,
    exclude: list[Path | None],
    progress: "Progress",
) -> "Listing":
    """The image files under the sources; raises AimError where there are none."""
    from aim_mlx.errors import AimError
    from aim_mlx.images import discover
    from aim_mlx.wording import counted

    listing = discover(
        sources, follow=follow, hidden=hidden, exclude=[path for path in exclude if path]
    )
    progress.listed(listing)
    if not listing.files and not listing.skipped:
        raise AimError(
            f"0 images, {counted(listing.ignored, 'other file')} under {', '.join(sources)}: "
            "give a folder with images"
        )
    return listing


def load_lit(model: str | None, **options: Any) -> "LiT":
    """The model, which must have a text tower."""
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx import loading

    return loading.load_lit(model or DEFAULT_LIT, progress=tqdm, **options)


def build_head(
    lit: "LiT", labels: tuple[str, ...], templates: tuple[str, ...], single: bool
) -> "ZeroShotHead":
    """The head of these labels, with a bar on a terminal and a warning of prompts that were cut."""
    from rich.console import Console
    from rich.progress import Progress

    from aim_mlx.words.lit import warn_of_cut
    from aim_mlx.words.zeroshot import ZeroShotHead

    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(console=console, disable=hidden, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("labels", total=None)
        head = ZeroShotHead.build(
            lit,
            labels,
            templates,
            single=single,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if head.cut:
        warn_of_cut(head.cut, lit.lit.config.text.context_length)
    return head
