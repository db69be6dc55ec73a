"""Counts in words, for messages and pages."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """ "1 photo", "1,000 photos"; `many` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
