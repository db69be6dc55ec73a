"""Counts in words, and text from files made safe to show, for messages and pages."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """ "1 photo", "1,000 photos"; `many` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def megabytes(count: int) -> str:
    """Bytes, as "0.21 MB" or "1.50 GB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def escaped(text: str) -> str:
    """Control characters and undecodable bytes become escapes; the result is one line."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )
