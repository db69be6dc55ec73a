"""Labels in memory: names, or lists of names, beside images; as numbers; some of them held out."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from aim_mlx.errors import UsageError

_HELD_OUT = 0.2  # of each class
# Half a character, as JSON can hold. Those between stand for bytes of a file's name that are not
# UTF-8.
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_HALF_OR_BYTE = re.compile("[\ud800-\udfff]")


def paired(images: Iterable[Any], labels: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Images and their labels as lists, a label being a name or names as a sorted tuple.

    Raises UsageError for another number of labels than of images, and for labels of other kinds.
    """
    images, labels = list(images), [_label(each) for each in labels]
    if len(images) != len(labels):
        raise UsageError(f"expected a label for each of {len(images)} images, got {len(labels)}")
    if len({isinstance(each, str) for each in labels}) > 1:
        raise UsageError("labels must all be names, or all be lists of names")
    return images, labels


def classes_of(labels: Sequence[Any]) -> tuple[tuple[str, ...], bool]:
    """All names of paired() labels, sorted by bytes, and whether an image may have several.

    Raises UsageError for too few of them.
    """
    multi_label = bool(labels) and not isinstance(labels[0], str)
    names = {name for each in labels for name in (each if multi_label else (each,))}
    if len(names) < (1 if multi_label else 2):
        raise UsageError(f"a probe needs 2 classes or more, got {len(names)}")
    return tuple(sorted(names, key=os.fsencode)), multi_label


def as_labels(labels: Sequence[Any], classes: Sequence[str], multi_label: bool) -> np.ndarray:
    """Names as numbers: int64 (n,), or 0 and 1, float32 (n, C); UsageError for unknown names."""
    place = {name: number for number, name in enumerate(classes)}
    if multi_label and any(isinstance(each, str) for each in labels):
        raise UsageError("expected lists of names, as in training, got names")
    rows = [each if multi_label else (each,) for each in labels]
    if unknown := {name for row in rows for name in row} - set(place):
        raise UsageError(
            f"the classes {quoted(sorted(unknown))} are not among the {len(classes)} that are "
            f"known: {quoted(classes)}"
        )
    if not multi_label:
        return np.array([place[row[0]] for row in rows], np.int64)
    numbers = np.zeros((len(rows), len(classes)), np.float32)
    for number, row in enumerate(rows):
        numbers[number, [place[name] for name in row]] = 1
    return numbers


def held_out(labels: Sequence[Any], seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and a fifth, at least one, of each class to choose by."""
    groups: dict[Any, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
    rng, kept, held = np.random.default_rng(seed), [], []
    for rows in groups.values():
        aside = max(1, round(_HELD_OUT * len(rows))) if len(rows) > 1 else 0
        order = [rows[i] for i in rng.permutation(len(rows))]
        held += order[:aside]
        kept += order[aside:]
    if not held:
        raise UsageError("no class has two images: give images to choose by as validation=")
    return sorted(kept), sorted(held)


def _label(label: Any) -> str | tuple[str, ...]:
    """A label in one of its two kinds; NumPy's texts become Python's."""
    names = label if isinstance(label, (list, tuple, set, frozenset)) else [label]
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"a label is a name or a list of names, got {label!r:.80}: use str()")
        check_characters(f"the label {ascii(name):.80}", name)
    if isinstance(label, str):
        return str(label)
    return tuple(sorted(set(map(str, names))))


def check_characters(what: str, text: str, is_utf_8: bool = False) -> None:
    """Raises UsageError for half a character, with `is_utf_8` also for what stands for a byte."""
    if (_HALF_OR_BYTE if is_utf_8 else _HALF).search(text):
        raise UsageError(f"{what} holds half a character: fix it")


def quoted(names: Sequence[str]) -> str:
    """The first few names, for messages."""
    shown = ", ".join(f"{name!r:.300}" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
