"""The columns of a table: by the names they are asked for, or those that others give them."""

from collections.abc import Collection, Iterable, Sequence

from aim_mlx.errors import UsageError

FILE_NAME = "file_name"  # of the metadata of an ImageFolder; such names stay below its folder
# Taken where a table has no column of the name on the left.
_ALSO = {"path": (FILE_NAME, "image_path", "image"), "caption": ("text",)}


class MissingColumn(UsageError):
    """A table without one of the columns that are asked for."""


def actual(column: str, names: Collection[str]) -> str:
    """What a column that is asked for is called among `names`."""
    return next((name for name in (column, *_ALSO.get(column, ())) if name in names), column)


def check_columns(
    table: str, names: Sequence[str], wanted: Sequence[str], extra: Sequence[str]
) -> None:
    """Raises UsageError for a column that is not there, or is there twice."""
    for column in wanted:
        if column not in names:
            raise missing(table, column, names)
    for column in (*wanted, *extra):
        if names.count(column) > 1:
            raise UsageError(f"{table} has the column {column!r} twice: expected it once")


def missing(place: str, column: str, names: Iterable[str]) -> MissingColumn:
    there = ", ".join(map(repr, names))
    there = there if len(there) <= 200 else f"{there[:197]}..."
    return MissingColumn(f"{place} has no column {column!r}: it has {there or 'none'}")


def short(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
