"""Rows of Parquet files, whose columns may hold images, and numbers that stand for classes.

Images are bytes, or structs with a field "bytes". What the package `datasets` knows of a column it
writes, as JSON, into the schema's metadata under "huggingface": which is of images, and the names
of the classes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from aim_mlx.data.columns import actual, check_columns
from aim_mlx.errors import UsageError
from aim_mlx.images.parquet_images import ImageColumn

# What a file may hold grows with its own size, so that a small one cannot fill the memory.
ROWS = 200_000  # and one for each byte of the file
_TEXT = 2**26  # bytes of its columns of text, and 16 for each byte of the file
_NO_CLASS = -1
_BATCH = 64  # rows at a time: each may be a copy of one text of a few megabytes


def parquet_rows(
    path: Path,
    wanted: Sequence[str],
    extra: Sequence[str],
    images: str | None,
    unlabelled: list[str] | None,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row stands, and its values, as long as they keep to what such a file may hold.

    The column `images` may hold images in place of their paths. Rows of no class are left out where
    there is a list `unlabelled`, which then says where they stand.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            layout = _layout(path, file, wanted, extra, images)
            texts = [name for name in layout.columns if name not in layout.images]
            room = _room(path, file.metadata, texts)
            first = 0
            for batch in file.iter_batches(_BATCH, columns=texts):
                values = [_dense(batch.column(name)) for name in texts]
                room -= sum(array.nbytes for array in values)
                if room < 0:
                    raise too_much(path, f"more than {_TEXT:,} bytes of text")
                lists = [array.to_pylist() for array in values]
                rows = zip(*lists, strict=True) if lists else repeat((), batch.num_rows)
                for number, row in enumerate(rows, first):
                    place = f"row {number + 1} of {path.name}"
                    if unlabelled is not None and layout.has_no_label(texts, row):
                        unlabelled.append(place)
                    else:
                        yield place, layout.row(place, number, texts, row)
                first += batch.num_rows
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UsageError(
            f"{path.name} is not a sound Parquet file ({' '.join(str(error).split())[:80]}): "
            "write it again"
        ) from error


@dataclass(frozen=True)
class _Layout:
    """The columns that are read, with what they are asked for as; images, and names of classes."""

    columns: dict[str, str]
    images: dict[str, ImageColumn] = field(default_factory=dict)
    classes: dict[str, Sequence[str]] = field(default_factory=dict)

    def row(
        self, place: str, number: int, names: Sequence[str], values: Sequence[Any]
    ) -> Mapping[str, Any]:
        """A row of texts, with what else stands in it."""
        row = dict(zip(map(self.columns.__getitem__, names), values, strict=True))
        for name, column in self.images.items():
            row[self.columns[name]] = column[number]
        for name, classes in self.classes.items():
            asked = self.columns[name]
            row[asked] = _named(f"{place}: {name!r}", row[asked], classes)
        return row

    def has_no_label(self, names: Sequence[str], values: Sequence[Any]) -> bool:
        """Whether a number stands for no class, as `datasets` has it."""
        given = zip(names, values, strict=True)
        return any(name in self.classes and value == _NO_CLASS for name, value in given)


def _layout(
    path: Path, file: Any, wanted: Sequence[str], extra: Sequence[str], images: str | None
) -> _Layout:
    schema, metadata = file.schema_arrow, file.metadata
    features = _features(path, schema.metadata or {})
    layout = _Layout({})
    for asked in (*wanted, *extra):
        kind = {images: "Image", "label": "ClassLabel"}.get(asked)
        name = _by_feature(asked, kind, schema.names, features)
        check_columns(path.name, schema.names, [name] if asked in wanted else [], [name])
        if name not in schema.names:
            continue
        layout.columns[name] = asked if name != actual(asked, schema.names) else name
        type_ = schema.field(name).type
        leaf = _image_leaf(name, type_) if asked == images else None
        if leaf is not None:
            groups = range(metadata.num_row_groups)
            rows = [metadata.row_group(group).num_rows for group in groups]
            layout.images[name] = ImageColumn(str(path), leaf, rows)
            continue
        _check_type(path, name, type_)
        if classes := _classes(path, name, features.get(name)):
            layout.classes[name] = classes
    return layout


def _features(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What `datasets` says of the columns; nothing where another program wrote the file."""
    try:
        said = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path.name}: what its schema says under 'huggingface' is not JSON: write it again"
        ) from error
    for name in ("info", "features"):
        said = said.get(name) if isinstance(said, dict) else None
    return said if isinstance(said, dict) else {}


def _by_feature(
    asked: str, kind: str | None, names: Sequence[str], features: Mapping[str, Any]
) -> str:
    """What a column is called: as `actual` says, else by the only feature of its kind."""
    name = actual(asked, names)
    if name in names or kind is None:
        return name
    of_kind = [each for each, said in features.items() if _is_feature(said, kind)]
    return of_kind[0] if len(of_kind) == 1 else name


def _is_feature(said: Any, kind: str) -> bool:
    return isinstance(said, dict) and said.get("_type") == kind


def _classes(path: Path, name: str, said: Any) -> Sequence[str]:
    """The names of the classes that the numbers in a column, or in its lists, stand for, or ()."""
    feature: Any = said
    if isinstance(said, list) and len(said) == 1:
        feature = said[0]
    elif isinstance(said, dict) and "feature" in said:
        feature = said["feature"]
    if not _is_feature(feature, "ClassLabel"):
        return ()
    classes = feature.get("names")
    if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
        raise UsageError(f"{path.name}: the classes of {name!r} are not named: write it again")
    return classes


def _named(place: str, value: Any, classes: Sequence[str]) -> Any:
    """Numbers of classes as their names; what are no numbers stay as they are."""
    if isinstance(value, list):
        return [_named(place, each, classes) for each in value]
    if type(value) is not int:
        return value
    if not 0 <= value < len(classes):
        raise UsageError(
            f"{place} is {value}, expected the number of a class, from 0 to {len(classes) - 1}: "
            "give it one, or leave out the row, or the file if none of it has labels"
        )
    return classes[value]


def _image_leaf(name: str, kind: Any) -> str | None:
    """The name of the bytes in a column of images; None where it has none."""
    from pyarrow import types

    def are_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    if are_bytes(kind):
        return name
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{name}.bytes" if are_bytes(kind.field("bytes").type) else None
    return None


def _check_type(path: Path, column: str, kind: Any) -> None:
    """Raises UsageError for a column of neither texts nor whole numbers, nor lists of them."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    inner = inner.value_type if types.is_dictionary(inner) else inner
    passing = (types.is_string, types.is_large_string, types.is_integer, types.is_null)
    if not any(passes(inner) for passes in passing):
        raise UsageError(f"{path.name}: expected text as {column!r}, got a column of {kind!s:.80}")


def _room(path: Path, metadata: Any, columns: Sequence[str]) -> int:
    """Bytes that the columns may take; UsageError where they claim more than a file of its size."""
    size = path.stat().st_size
    room, values, unpacked = _TEXT + 16 * size, 0, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.split(".")[0] in columns:
                values += chunk.num_values
                unpacked += chunk.total_uncompressed_size
    if values > len(columns) * (ROWS + size) or unpacked > room:
        raise too_much(path, f"{values:,} values and {unpacked:,} bytes, unpacked,")
    return room


def too_much(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path.name} holds {what} in a file of {path.stat().st_size:,} bytes: divide it, or "
        "write it without compression"
    )


def _dense(array: Any) -> Any:
    """An Arrow array, or the lists in one, with every value in full and none in a dictionary."""
    if hasattr(array, "dictionary"):
        return array.dictionary_decode()
    if hasattr(array, "offsets") and hasattr(array.values, "dictionary"):
        return type(array).from_arrays(array.offsets, array.values.dictionary_decode())
    return array
