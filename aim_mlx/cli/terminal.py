"""Text from files and their names, made safe for a terminal."""


def escaped(text: str) -> str:
    """Control characters and undecodable bytes become escapes; the result is one line."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )
