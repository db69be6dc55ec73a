"""Ctrl-C once: finish in order. Twice: stop now."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def gently() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the given function return True."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, _stop_now)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _stop_now(*_: object) -> None:
    """Ends the process without a word to its threads, of which some may be in a decoder.

    What runs under gently() may be killed at any time. An exception would come where it likes, also
    amid the ending of threads, which then crash the process.
    """
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")  # a bar hides the cursor
        os.write(2, b"aim-mlx: error: interrupted\n")
    os._exit(130)
