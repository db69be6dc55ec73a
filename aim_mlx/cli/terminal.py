"""Text from files and their names, made safe for a terminal."""

from typing import TextIO

from aim_mlx.wording import escaped as escaped


def on_terminal(stream: TextIO | None) -> bool:
    """Whether what is written goes to a screen; a process may have been given no stream at all."""
    return stream is not None and stream.isatty()
