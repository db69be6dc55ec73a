"""What the records of a store must hold: JSON that may come from elsewhere, checked before use.

A form is a Kind; [form], a list of such values; or {name: form}, an object with these members and
maybe others. A name that ends with "?" may be missing.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.strict_json import parse_object, show

_ABSENT = object()


class Damaged(ValueError):
    """A record that is not as it was written; the message says where."""


@dataclass(frozen=True)
class Kind:
    """The values of a field: in words, and whether a value is one."""

    words: str
    holds: Callable[[Any], bool]


def whole(low: int = 0, high: int = 2**63 - 1) -> Kind:
    """Whole numbers of a range."""
    words = f"a whole number from {low} to {high}"
    return Kind(words, lambda value: type(value) is int and low <= value <= high)


def maybe(kind: Kind) -> Kind:
    """These values, or null."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


def matching(pattern: str, words: str) -> Kind:
    """Texts that match a pattern from end to end."""
    found = re.compile(pattern)
    return Kind(words, lambda value: isinstance(value, str) and found.fullmatch(value) is not None)


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # half a pair of surrogates: no name of a file
        return False


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
PATH = Kind("the path of a file", _is_path)
SHA256 = matching("[0-9a-f]{64}", "a SHA-256 in hex")


def check(value: Any, form: Any, name: str = "") -> None:
    """Raises Damaged, with the name of the field, for a value that is not of a form."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise _wrong(value, "an object", name)
        for key, inner in form.items():
            member = value.get(key.removesuffix("?"), _ABSENT)
            if member is not _ABSENT:
                check(member, inner, f"{name}.{key}".strip(".?"))
            elif not key.endswith("?"):
                raise Damaged(f"it lacks {f'{name}.{key}'.strip('.')}")
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise _wrong(value, "a list", name)
        for number, each in enumerate(value):
            check(each, form[0], f"{name}[{number}]")
    elif not form.holds(value):
        raise _wrong(value, form.words, name)


def parse(data: bytes, form: Any) -> dict[str, Any]:
    """The one JSON object of this form in `data`; raises Damaged."""
    try:
        record = parse_object(data, "it")
    except CheckpointError as error:
        raise Damaged("it is no plain JSON object") from error
    check(record, form)
    return record


def _wrong(value: Any, words: str, name: str) -> Damaged:
    return Damaged(f"its {name or 'content'} must be {words}, not {_short(value)}")


def _short(value: Any) -> str:
    """A value for a message, never as long or as deep as it may be."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return show(value)
