"""Text from files and their names, made safe for a terminal."""

from typing import TextIO


def escaped(text: str) -> str:
    """Control characters and undecodable bytes become escapes; the result is one line."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def on_terminal(stream: TextIO | None) -> bool:
    """Whether what is written goes to a screen; a process may have been given no stream at all."""
    return stream is not None and stream.isatty()
