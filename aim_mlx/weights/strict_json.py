"""JSON that came with a checkpoint: one object, read without surprises or not at all."""

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from aim_mlx.errors import CheckpointError

LARGEST_JSON = 4 * 2**20  # bytes; an index of a hundred thousand tensors is smaller
LARGEST_DEPTH = 64  # of objects and lists; a published config.json has four
LARGEST_NUMBER = 300  # digits: whatever is computed with it, it still is a finite float


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The one JSON object in `data`, which `what` names in messages.

    Raises CheckpointError for what is not plain UTF-8 JSON, and for duplicate keys, NaN, infinity,
    numbers too large and nesting too deep, which other parsers read differently.
    """
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise CheckpointError(
            f"{what} starts with a byte-order mark: save it as plain UTF-8 without one"
        )
    try:
        values = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_whole,
            parse_float=_real,
        )
    except RecursionError:
        raise _too_deep(what) from None
    except ValueError as error:  # also UnicodeDecodeError
        raise CheckpointError(
            f"{what} is not valid JSON ({error!s:.150}): download it again"
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} must be a JSON object, got {type(values).__name__}")
    _check_depth(values, what)
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"it states the key {show(twice)} twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name} where a finite number is expected")


def _whole(digits: str) -> int:
    if len(digits) > LARGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{show(digits)} is too large a number")
    return value


def _check_depth(values: dict[str, Any], what: str) -> None:
    """Raises CheckpointError for nesting that could exhaust the stack of whoever walks through it.

    Python's own limit depends on its version and on how deep the caller already is.
    """
    level: list[Any] = [values]
    for _ in range(LARGEST_DEPTH):
        children = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for each in children for v in each if isinstance(v, (dict, list))]
        if not level:
            return
    raise _too_deep(what)


def _too_deep(what: str) -> CheckpointError:
    return CheckpointError(f"{what} is nested too deeply: not a checkpoint's JSON")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; its size is checked before a byte is read.

    Raises CheckpointError.
    """
    data = read_bytes(path, LARGEST_JSON)
    return parse_object(data, at(path))


def read_bytes(path: Path, largest: int) -> bytes:
    """The bytes of a regular file of at most `largest` bytes; raises CheckpointError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{at(path)} is not a regular file")
        if status.st_size > largest:
            raise CheckpointError(
                f"{at(path)} has {status.st_size} bytes, expected at most {largest}: "
                "not a checkpoint's JSON"
            )
        with open(path, "rb") as file:
            # Its size now, as another may have replaced it; `largest` would take that much memory.
            return file.read(min(os.fstat(file.fileno()).st_size, largest))
    except OSError as error:
        raise CheckpointError(f"{at(path)} cannot be read: {error.strerror or error}") from error


def at(path: Path) -> str:
    """A path for one line of a message: as it is, or escaped where it has odd characters."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def show(name: object) -> str:
    """A name from an untrusted file, quoted, escaped and cut for one line of a message."""
    text = ascii(name)
    return text if len(text) <= 120 else f"{text[:117]}..."
