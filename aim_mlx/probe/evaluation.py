"""A trained probe on labelled images: figures, and a warning where it has seen them before."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from aim_mlx.data.labelled import SPLITS, Data, Labelled
from aim_mlx.data.parts import Image, Part, as_part, read_images
from aim_mlx.encoder.encoder import vectors_and_skips
from aim_mlx.errors import AimError, OutputError, UsageError
from aim_mlx.images import Skip
from aim_mlx.probe.outcome import SPLITS_FILE
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.summary import Measured
from aim_mlx.training.report import Advanced
from aim_mlx.wording import counted

ALL = "all"  # in place of a split


@dataclass(frozen=True)
class Evaluation:
    """How good a probe is on labelled images."""

    measured: Measured
    skips: tuple[Skip, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def evaluate_probe(
    probe: AttentiveProbe,
    folder: Path,
    data: Data,
    split: str | None = None,
    progress: Advanced = lambda what, done, total: None,
) -> Evaluation:
    """Measures the probe of a folder on the images of a split, or on "all".

    By default that is test: where the data has no splits of its own, what was in test when the
    probe was trained; all of it where none of it was. Images are read once each and nothing is
    kept. Raises UsageError for a class or split that is not known, AimError where no image can be
    read.
    """
    if split not in (None, ALL, *SPLITS):
        raise UsageError(f"a split is train, val, test or all, got {split!r}")
    labelled = data.labelled(folder)
    seen = read_splits(folder / SPLITS_FILE)
    if labelled.has_splits:
        labelled, split = _own(labelled, split)
    elif not seen and split not in (None, ALL):
        raise UsageError(
            f"{str(folder / SPLITS_FILE)!r}, which would say what was in {split}, is not there: "
            "leave out --split, or give images with splits of their own"
        )
    images, skips, notes = read_images(labelled, partial(progress, "reading images"))
    if not labelled.has_splits:
        images, split, more = _recorded(images, split, seen)
        notes += more
    part = as_part(images, probe.classes, probe.multi_label)
    looking = partial(progress, "looking at")
    rows = probe.predict_stream(part.paths)
    vectors, failed = vectors_and_skips(rows, part.paths, looking)
    if not vectors:
        raise AimError(f"none of the {len(part)} images can be decoded: {failed[0].detail}")
    part = part.without({skip.path for skip in failed})
    measured = Measured.of(split or ALL, part, np.stack(vectors), probe.classes)
    warnings = (*leaks(part, seen), *measured.warnings)
    return Evaluation(measured, (*skips, *failed), notes, warnings)


def _own(labelled: Labelled, split: str | None) -> tuple[Labelled, str]:
    """The images of a split that the data itself names."""
    there = {item.split for item in labelled.items}
    if split is None:
        split = "test" if "test" in there else "val"
    if split == ALL:
        return labelled, split
    if split not in there:
        names = ", ".join(sorted(str(name) for name in there))
        raise UsageError(f"these images have no split {split!r}: choose one of {names} by --split")
    return replace(labelled, items=tuple(i for i in labelled.items if i.split == split)), split


def _recorded(
    images: Sequence[Image], split: str | None, seen: Mapping[str, str]
) -> tuple[Sequence[Image], str, tuple[str, ...]]:
    """The images that were in a split when the probe was trained, its name, and notes."""
    wanted = split or "test"
    chosen = [each for each in images if seen.get(each.content.digest) == wanted]
    if split == ALL or (split is None and not chosen):
        return images, ALL, ()
    if not chosen:
        raise UsageError(f"none of these images was in {split} when the probe was trained")
    if split is None and len(chosen) < len(images):
        left = counted(len(images) - len(chosen), "image was", "images were")
        return chosen, wanted, (f"{left} not in test: --split all measures them too",)
    return chosen, wanted, ()


def read_splits(path: Path) -> dict[str, str]:
    """The split that each content had when the probe was trained; none where that is not known."""
    if not os.path.lexists(path):
        return {}
    try:
        if not path.is_file():
            raise ValueError("not a regular file")
        with open(path, encoding="utf-8") as file:
            rows = map(json.loads, file)
            return {row["digest"]: row["split"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(f"{str(path)!r} cannot be read ({error!s:.80}): remove it") from error


def leaks(part: Part, seen: Mapping[str, str]) -> list[str]:
    """A warning for each split, of those that images had then, that gives them away now."""
    splits = [seen.get(digest) for digest in part.digests]
    warnings = []
    for name, what in (("train", "trained on"), ("val", "used to choose the head")):
        if count := splits.count(name):
            warnings.append(
                f"leak: {count:,} of the {len(part):,} images were {what}: the figures are too good"
            )
    return warnings
