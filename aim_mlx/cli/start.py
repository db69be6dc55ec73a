"""Where `aim-mlx` starts: prepares the process, loads the commands, and ends it."""

import os
import sys
from contextlib import suppress
from typing import NoReturn


def main() -> NoReturn:
    """Loads the commands, runs one and ends the process; Ctrl-C ends it at any time with 130."""
    code = 130  # whatever follows, and how often, an interrupt ends with it
    try:
        _open_standard_streams()
        from aim_mlx.cli import interrupt

        interrupt.watch()
        from aim_mlx.cli.main import main as run

        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # also with --debug
        if is_interrupt(error):
            print("aim-mlx: error: interrupted", file=sys.stderr)
        else:
            code = 1
            import traceback

            traceback.print_exc()
    finally:
        _leave(code)


def is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: an import can turn it into an ImportError or another."""
    seen = []  # causes and contexts together may lead in a circle
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _open_standard_streams() -> None:
    """Where one is closed, the null device takes its place: else the next file opened would.

    Into that file C libraries would then write their messages. What an encoding cannot express is
    written as an escape.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Without a stream, print() to stderr would write to stdout. Stdin stays None: nothing is there.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def _leave(code: int) -> NoReturn:
    """Ends the process at once: as Python shuts down, OpenBLAS waits for its threads.

    After an interrupt one of them may never end; and a Ctrl-C meanwhile gives a traceback.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)
