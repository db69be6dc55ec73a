"""Options of a training: fields of a dataclass with their help and their bounds.

The command line's options are made from them (cli/options.py), and their values are checked here.
"""

import math
from collections.abc import Mapping
from dataclasses import field, fields
from types import NoneType
from typing import Any, get_args, get_origin

from aim_mlx.errors import UsageError


def option(
    default: Any,
    help: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    among: tuple[str, ...] = (),
) -> Any:
    """A field with a default, whose number, or each of several, is from `low` to `high`.

    A text is one of `among`.
    """
    return field(default=default, metadata={"help": help, "bounds": (low, high), "among": among})


def check_options(config: Any) -> None:
    """Raises UsageError for a value that cannot be; lists become tuples."""
    for each in fields(config):
        value, words = getattr(config, each.name), each.name.replace("_", " ")
        kinds = get_args(each.type) or (each.type,)
        if get_origin(each.type) is not tuple:
            if value is not None or NoneType not in kinds:
                _check(words, value, kinds[0], each.metadata)
            continue
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{words} must be a list, such as [{value!r:.40}], got no list")
        object.__setattr__(config, each.name, tuple(value))
        for one in value:
            _check(words, one, kinds[0], each.metadata)


def _check(words: str, value: Any, kind: Any, stated: Mapping[str, Any]) -> None:
    (low, high), among = stated["bounds"], stated["among"]
    if kind is str:
        sound, expected = value in among, f"one of {', '.join(among)}"
    elif kind is bool:
        sound, expected = isinstance(value, bool), "true or false"
    else:
        sound = isinstance(value, (int, kind)) and not isinstance(value, bool)
        sound = sound and math.isfinite(value) and low <= value <= high
        expected = f"{'a whole number ' if kind is int else ''}from {low:g} to {high:g}"
    if not sound:
        raise UsageError(f"{words} must be {expected}, got {value!r}")
