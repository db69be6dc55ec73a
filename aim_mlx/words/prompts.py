"""Labels and templates for zero-shot classification: given in Python, as a preset, or in a file.

A template is a text with one `{}`, whose place the label takes. It is replaced, never formatted:
other braces, in a template or a label, stay the characters they are.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from aim_mlx.errors import UsageError

PRESETS = {
    "plain": ("a photo of a {}.",),
    "varied": (
        "a photo of a {}.",
        "a picture that shows a {}.",
        "a close-up of a {}.",
        "a {} seen from far away.",
        "a {} that fills the frame.",
        "a cropped photo with a part of a {}.",
        "a {} half hidden by something else.",
        "a {} among other things.",
        "a bright photo of a {}.",
        "a {} in dim light.",
        "a {} against the light.",
        "a blurred photo of a {}.",
        "a grainy, low-resolution image of a {}.",
        "a badly framed snapshot of a {}.",
        "a black and white photo of a {}.",
        "a {} indoors.",
        "a {} outdoors.",
        "a small {}.",
        "a large {}.",
        "a drawing of a {}.",
        "a painting of a {}.",
        "a toy or a model of a {}.",
    ),
}
PLACE = "{}"
_LARGEST = 2 * 2**20  # bytes of a file of labels or templates
_LONGEST = 2000  # characters of a label or template, of which the text tower reads 77 tokens
# A line of a list as it stands in Python or JSON, such as the published lists of CLIP's templates:
# one quoted text, which may be a function of the label c.
_QUOTED = re.compile(r"""(lambda c: f)?(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"),?""")
# What stands before and behind such lines.
_AROUND = re.compile(r"[\w.]*\s*(=\s*)?[\[(]|[\])],?|#.*")


def as_labels(labels: Sequence[str], single: bool = False) -> tuple[str, ...]:
    """The labels, stripped; one alone only where `single` says so.

    Raises UsageError for none, for an empty one, and for two that the text tower reads alike.
    """
    if isinstance(labels, str):
        raise UsageError("expected a list of labels, got a single text: put it in [ ]")
    unique: dict[str, str] = {}  # as the tokenizer reads it -> as it was given
    for number, label in enumerate(labels, 1):
        if not isinstance(label, str) or not _is_unicode(label):
            raise UsageError(f"expected labels as texts in Unicode, got {label!a:.80}")
        label = label.strip()
        if not 0 < len(label) <= _LONGEST:
            raise UsageError(
                f"label {number} is empty or over {_LONGEST:,} characters: expected a word or a "
                "phrase"
            )
        read = " ".join(unicodedata.normalize("NFC", label).lower().split())
        if read in unique:
            raise UsageError(f"label {label!r:.80} is there twice: leave one out")
        unique[read] = label
    if not unique:
        raise UsageError("expected labels, got none: name the classes to choose from")
    stripped = tuple(unique.values())
    if len(stripped) == 1 and not single:
        raise UsageError(
            f"one label, {stripped[0]!r:.80}, leaves nothing to choose from: give another, such as "
            "'something else', or have labels judged independently (--multi-label)"
        )
    return stripped


def as_templates(templates: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """A preset's name, a file or a list -> templates, each with one `{}`.

    Raises UsageError for none, or one with another number of places for the label.
    """
    if isinstance(templates, (str, os.PathLike)):
        name = os.fspath(templates)
        templates = PRESETS[name] if name in PRESETS else read_templates(name)
    templates = tuple(templates)
    if not templates:
        raise UsageError("expected templates, got none: give texts such as 'a photo of a {}.'")
    for template in templates:
        text = template if isinstance(template, str) and _is_unicode(template) else ""
        if text.count(PLACE) != 1 or len(text) > _LONGEST:
            raise UsageError(
                f"template {template!a:.100} must have one {PLACE} in the place of the label, and "
                f"{_LONGEST:,} characters at most"
            )
    return templates


def filled(template: str, label: str) -> str:
    """The template with the label in its place."""
    return template.replace(PLACE, label)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The labels of a file, one a line; blank lines, a byte-order mark and CRLF do not matter."""
    lines = _lines(Path(path))
    if not lines:
        raise UsageError(f"{os.fspath(path)!r} has no labels: expected one a line")
    return tuple(lines)


def read_templates(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The templates of a file, one a line, bare or as lines of a list in Python or JSON.

    Raises UsageError for a file that cannot be read or has no template.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no templates {str(path)!r}: expected {', '.join(PRESETS)} or a file")
    lines = _lines(path)
    if any(_QUOTED.fullmatch(line) for line in lines):
        lines = [_unquoted(line) for line in lines if not _AROUND.fullmatch(line)]
    if not lines:
        raise UsageError(f"{str(path)!r} has no templates: expected one a line, with {PLACE}")
    return tuple(lines)


def _unquoted(line: str) -> str:
    """The text of a quoted line; a line that is none stays as it is."""
    quoted = _QUOTED.fullmatch(line)
    if quoted is None:
        return line
    text = re.sub(r"\\(.)", r"\1", quoted["text"][1:-1])
    return text.replace("{c}", PLACE) if quoted[1] else text


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded; what a terminal gives that is not UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, stripped; raises UsageError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise UsageError(
                f"{str(path)!r} must be a text file of at most {_LARGEST} bytes: check the path"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise UsageError(f"cannot read {str(path)!r}: {reason}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
