"""Files to a file of vectors: discover, embed, record, and account for every file."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from aim_mlx.backend import device_name
from aim_mlx.config import to_dict
from aim_mlx.embed import Embedded, EmbedOptions, Encoder
from aim_mlx.errors import AimError
from aim_mlx.images import Listing, Skip, discover
from aim_mlx.store.onefile import OneFile, check_target, sidecar

_PACKAGES = ("aim-mlx", "mlx", "mlx-data", "numpy", "pillow")


@dataclass(frozen=True)
class Summary:
    """The account of a run: listed == embedded + skipped + ignored."""

    output: str
    listed: int
    embedded: int
    skipped: int
    ignored: int
    seconds: float

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


class Report(Protocol):
    """What a run tells while it goes on."""

    def listed(self, listing: Listing) -> None: ...
    def skipped(self, skip: Skip) -> None: ...
    def embedded(self, path: str) -> None: ...
    def noted(self, note: str) -> None: ...


def embed_files(
    sources: Sequence[str | Path],
    output: str | Path,
    load: Callable[[], Encoder],
    options: EmbedOptions,
    report: Report,
    *,
    follow: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Embeds every image under `sources` into the file `output`; the model is loaded last.

    Raises UsageError, OutputError or CheckpointError before any work, and AimError if there is no
    image, or none that could be embedded.
    """
    output = Path(output)
    check_target(output, overwrite)
    listing = discover(sources, follow=follow, exclude=[output, sidecar(output)])
    report.listed(listing)
    if not listing.files and not listing.skipped:
        raise AimError(
            f"0 images, {listing.ignored} other files under {', '.join(map(str, sources))}: "
            "give a folder with images"
        )
    started = time.monotonic()
    skipped = list(listing.skipped)
    for skip in skipped:
        report.skipped(skip)
    encoder = load()
    encoder.check(options)
    paths = [os.fsdecode(path) for path in listing.files]
    first_frames: list[str] = []
    with OneFile(output, encoder.dim(options), overwrite) as file:
        with closing(encoder.embed_stream(paths, options)) as rows:
            for row in rows:
                _record(row, paths[row.index], file, skipped, report)
                if row.multi_frame:
                    first_frames.append(paths[row.index])
        embedded = len(paths) + len(listing.skipped) - len(skipped)
        if not embedded:
            raise AimError(f"none of {len(skipped)} images could be embedded: nothing was written")
        file.commit({**manifest(encoder, options, skipped), "first_frame_only": first_frames})
    if first_frames:
        report.noted(f"of {len(first_frames)} images with several frames the first was embedded")
    seconds = time.monotonic() - started
    return Summary(
        str(output), listing.listed, embedded, len(skipped), listing.ignored, round(seconds, 3)
    )


def _record(row: Embedded, path: str, file: OneFile, skipped: list[Skip], report: Report) -> None:
    if row.vector is not None:
        file.add(path, row.vector)
        report.embedded(path)
    elif row.failure is not None:
        skip = Skip(path, row.failure.reason, row.failure.detail)
        skipped.append(skip)
        report.skipped(skip)


def manifest(encoder: Encoder, options: EmbedOptions, skipped: Sequence[Skip]) -> dict[str, Any]:
    """All that is needed to compute the same vectors again, as JSON values."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": encoder.identity,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "pooling": encoder.pooling(options),
        "layers": list(options.layers),
        "normalized": options.normalize,
        "dtype": str(encoder.dtype).removeprefix("mlx.core."),
        "device": device_name(),
        "versions": {package: version(package) for package in _PACKAGES},
        "skipped": [
            {"path": str(skip.path), "reason": skip.reason, "detail": skip.detail}
            for skip in skipped
        ],
    }
