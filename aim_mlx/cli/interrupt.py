"""Ctrl-C once: finish in order. Twice: stop now."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def gently() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the given function return True."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
