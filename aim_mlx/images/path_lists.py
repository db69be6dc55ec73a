"""Lists of paths: read from a stream, and divided among machines."""

import os
import re
from typing import BinaryIO
from zlib import crc32

from aim_mlx.errors import UsageError

_BOM = b"\xef\xbb\xbf"


def read_paths(stream: BinaryIO, null: bool) -> list[str]:
    """The paths in a stream, in their order, each once; the names are kept exactly.

    They are separated by newlines (LF or CRLF), with `null` by NUL bytes. Blank entries do not
    count. Raises UsageError for a NUL byte within a line.
    """
    data = stream.read()
    if null:
        entries = data.split(b"\0")
    elif b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UsageError(f"expected a path a line, but line {line} has a NUL byte: pass -0")
    else:
        lines = data.removeprefix(_BOM).split(b"\n")
        entries = (line.removesuffix(b"\r") for line in lines if not line.isspace())
    return list(dict.fromkeys(os.fsdecode(entry) for entry in entries if entry))


def parse_share(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4), the second of four shares; raises UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    share, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= share <= count:
        raise UsageError(f"a share must be i/n with i from 1 to n, such as 2/4, got {text!r}")
    return share, count


def in_share(path: str | os.PathLike[str], share: tuple[int, int]) -> bool:
    """Whether a path belongs to share (i, n), with i from 1.

    The bytes of the path alone decide, so that no path moves when others come or go. All machines
    must therefore name the files alike.
    """
    number, count = share
    return crc32(os.fsencode(path)) % count == number - 1
