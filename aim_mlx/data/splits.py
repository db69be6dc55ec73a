"""Labelled images, as a command is given them, to the parts that train, choose and test a head.

No content is in two parts unnoticed.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from aim_mlx.data.labelled import SPLITS, Data, Labelled
from aim_mlx.data.labels import quoted
from aim_mlx.data.parts import Image, Part, Progress, as_part, read_images
from aim_mlx.errors import UsageError
from aim_mlx.images import Skip
from aim_mlx.wording import counted

_IMBALANCE = 20  # times as many images as the smallest class has


@dataclass(frozen=True)
class DataSet:
    """The parts by the names of SPLITS; "test" may be missing. Reports state the warnings."""

    classes: tuple[str, ...]
    multi_label: bool
    parts: Mapping[str, Part]
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    allow_empty: bool = False

    def digest(self) -> str:
        """SHA-256 in hex over classes, images and labels of all parts."""
        total = hashlib.sha256("\0".join(map(ascii, self.classes)).encode())
        for name, part in self.parts.items():
            total.update(name.encode())
            total.update(bytes.fromhex("".join(part.digests)))
            total.update(np.ascontiguousarray(part.labels).tobytes())
        return total.hexdigest()

    def without(self, skips: Sequence[Skip]) -> "DataSet":
        """The data set without images that cannot be decoded; raises UsageError as divided()."""
        if not skips:
            return self
        bad = {skip.path for skip in skips}
        parts = {name: part.without(bad) for name, part in self.parts.items()}
        rest = replace(self, parts=parts, skips=(*self.skips, *skips))
        _check_present(rest)
        return rest


def divided(
    data: Data, seed: int = 0, progress: Progress | None = None, *exclude: str | Path
) -> DataSet:
    """Reads every file and divides the images: by their own splits, or by class, content and seed.

    Without splits of their own at least one image of each class is for choosing and one for the
    figures at the end; with splits but no val, val is cut from train. Nothing below `exclude`
    counts. Raises UsageError for fewer than two classes, too few images, and splits whose classes
    differ (with `allow_empty`, val and test may lack some).
    """
    labelled, val, test = data.labelled(*exclude), data.val, data.test
    for name, value, least in (("val", val, 0.001), ("test", test, 0.0)):
        if not least <= value <= 0.8 or not math.isfinite(value):
            raise UsageError(f"--{name} must be from {least:g} to 0.8, got {value!r}")
    if val + test > 0.9:
        raise UsageError(f"--val and --test together must leave 0.1 to train, got {val + test:g}")
    _check_classes(labelled)
    images, skips, notes = read_images(labelled, progress)
    if labelled.has_splits:
        if "train" not in {image.split for image in images}:
            raise UsageError("no image is in train: the splits are train, val and test")
        parts = {name: [each for each in images if each.split == name] for name in SPLITS}
        if not parts["val"]:
            parts["train"], parts["val"], _ = _cut(parts["train"], labelled, val, 0.0, seed, skips)
    else:
        parts = dict(zip(SPLITS, _cut(images, labelled, val, test, seed, skips), strict=True))
    built = {
        name: as_part(group, labelled.classes, labelled.multi_label)
        for name, group in parts.items()
        if group
    }
    data_set = DataSet(
        labelled.classes, labelled.multi_label, built, skips, notes, (), data.allow_empty
    )
    _check_present(data_set)
    return replace(data_set, warnings=(*_leaks(data_set), *_imbalance(data_set)))


def _cut(
    images: Sequence[Image],
    labelled: Labelled,
    val: float,
    test: float,
    seed: int,
    skips: Sequence[Skip],
) -> tuple[list[Image], list[Image], list[Image]]:
    """Train, val and test of each stratum, by seed and content alone.

    A stratum is a class; an image of several counts as one of its rarest.
    """
    counts = Counter(label for image in images for label in image.labels)
    strata: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        strata[min(image.labels, key=lambda name: (counts[name], name), default="")].append(image)
    train, chosen, tested = [], [], []
    least = 3 if test else 2
    for name, members in strata.items():
        if len(members) < least:
            if labelled.multi_label:
                train += members
                continue
            raise UsageError(
                f"class {name!r} has {counted(len(members), 'image')} that can be read: at least "
                f"{least} are needed to split; add some, or give splits of your own"
                f"{', or --test 0' * (len(members) == least - 1 and test > 0)}{_left_out(skips)}"
            )
        members.sort(key=lambda image: _rank(seed, image))
        aside = max(1, round(val * len(members)))
        tests = max(1, round(test * len(members))) if test else 0
        chosen += members[:aside]
        tested += members[aside : aside + tests]
        train += members[aside + tests :]
    parts = (train, chosen, tested)
    for part in parts:
        part.sort(key=lambda image: os.fsencode(image.path))
    return parts


def _rank(seed: int, image: Image) -> bytes:
    return hashlib.sha256(f"{seed} {image.content.digest}".encode()).digest()


def _check_classes(labelled: Labelled) -> None:
    """Raises UsageError for fewer than two classes."""
    if len(labelled.classes) > 1:
        return
    if labelled.multi_label and any(not item.labels for item in labelled.items):
        return
    there = f"{len(labelled.classes)} ({quoted(labelled.classes)})" if labelled.classes else "none"
    raise UsageError(
        f"expected at least two classes, got {there}: put the images of each into a "
        "folder of its own"
    )


def _check_present(data_set: DataSet) -> None:
    """Raises UsageError where a split lacks a class."""
    counts = {name: part.counts(len(data_set.classes)) for name, part in data_set.parts.items()}
    for name in ("train", "val"):
        if name not in counts:
            raise UsageError(f"no image of {name} can be read: put some there")
    for name, numbers in counts.items():
        lacking = [each for each, n in zip(data_set.classes, numbers, strict=True) if not n]
        if lacking and not (data_set.allow_empty and name != "train"):
            hint = "" if name == "train" else ", or allow that with --allow-empty"
            raise UsageError(
                f"{name} has no images of {quoted(lacking)} that can be read: every split needs "
                f"the same classes; add some{hint}{_left_out(data_set.skips)}"
            )


def _left_out(skips: Sequence[Skip]) -> str:
    """What to add to a complaint about too few images."""
    if not skips:
        return ""
    return f" ({len(skips)} cannot be used, the first {skips[0].path!r}: {skips[0].detail})"


def _leaks(data_set: DataSet) -> list[str]:
    """A warning for each two splits that share contents."""
    digests = {name: set(part.digests) for name, part in data_set.parts.items()}
    return [
        f"leak: {counted(len(shared), 'image is', 'images are')} in {one} and in {other} with "
        f"the same content; figures of {other} are too good"
        for one, other in combinations(digests, 2)
        if (shared := digests[one] & digests[other])
    ]


def _imbalance(data_set: DataSet) -> list[str]:
    counts = data_set.parts["train"].counts(len(data_set.classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] <= _IMBALANCE * counts[least]:
        return []
    return [
        f"imbalance: class {data_set.classes[most]!r} has {counts[most]:,} images to train on and "
        f"{data_set.classes[least]!r} {counts[least]:,}: look at the balanced accuracy"
    ]
