"""Every kind of damage to a file of a training's folder."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

OUTSIDE = b"what lies outside the folder"


def damages(path: Path, other: Path, outside: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and functions that damage the file at `path`; `other` is that file of another run."""
    data = path.read_bytes()
    rng = np.random.default_rng(len(data))
    middle = len(data) // 2

    def replaced(make: Callable[[Path], object]) -> Callable[[], object]:
        return lambda: (path.unlink(), make(path))

    yield "gone", path.unlink
    for size in sorted({0, 1, 9, middle, max(0, len(data) - 1)}):
        yield f"cut at {size}", lambda size=size: path.write_bytes(data[:size])
    for place in sorted({0, 8, *rng.integers(0, max(1, len(data)), 6).tolist()}):
        if place < len(data):
            flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
            yield f"flipped at {place}", lambda flipped=flipped: path.write_bytes(flipped)
    yield "longer", lambda: path.write_bytes(data + b"\0" * 100)
    yield "zeros", lambda: path.write_bytes(bytes(len(data)))
    yield "another's", lambda: shutil.copy(other, path)
    yield "a list", lambda: path.write_bytes(b"[]\n")
    yield "numbers", lambda: path.write_bytes(b"{" + b'"a": 1e999, ' * 3 + b'"b": NaN}\n')
    yield "deep", lambda: path.write_bytes(b"[" * 100_000)
    yield "a link out", replaced(lambda p: p.symlink_to(outside))
    yield "a link to nothing", replaced(lambda p: p.symlink_to(p.parent / "gone"))
    yield "a link to itself", replaced(lambda p: p.symlink_to(p.name))
    yield "a device", replaced(lambda p: p.symlink_to("/dev/zero"))
    yield "a pipe", replaced(os.mkfifo)
    yield "a folder", replaced(os.mkdir)
