"""Ctrl-C once: finish in order. Twice: stop now."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_asked = _raised = _gentle = False


def watch() -> None:
    """Counts each Ctrl-C in a thread: a second one ends the process at once.

    Python's own handler waits until the main thread is back from compiled code, which may be
    waiting minutes for a decoder.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _raise_once)
    sys.unraisablehook = _unraisable
    threading.Thread(target=_count, args=(reader,), name="Ctrl-C", daemon=True).start()


def asked() -> bool:
    """Whether there was a Ctrl-C."""
    return _asked


@contextmanager
def gently() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the given function return True."""
    global _gentle
    _gentle = True
    try:
        yield asked
    finally:
        _gentle = False


def _raise_once(*_: object) -> None:
    global _raised
    if not (_gentle or _raised):
        _raised = True
        raise KeyboardInterrupt


def _unraisable(problem: "sys.UnraisableHookArgs") -> None:
    """Ends the process where Ctrl-C came in a finalizer, which Python would only print."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        _stop_now()
    sys.__unraisablehook__(problem)


def _count(reader: int) -> None:
    global _asked
    while True:
        for number in os.read(reader, 64):  # each signal that Python handles writes its number
            if number == signal.SIGINT:
                if _asked:
                    _stop_now()
                _asked = True
                if _gentle:
                    _say("finishing what is under way; Ctrl-C again stops now")


def _stop_now() -> None:
    """Ends the process without waiting for its threads, of which some may be in a decoder.

    Whatever the commands write may be killed at any time. An exception could come anywhere, also
    while threads end, which would crash the process.
    """
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h")  # a bar hides the cursor
    _say("error: interrupted")
    os._exit(130)


def _say(text: str) -> None:
    """Past Python's streams, whose locks the main thread may hold."""
    with suppress(OSError):
        start = "\n" if os.isatty(2) else ""  # below a bar
        os.write(2, f"{start}aim-mlx: {text}\n".encode())
