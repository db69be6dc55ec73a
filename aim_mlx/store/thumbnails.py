"""Rows with small pictures of their photos, for programs that show both."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from aim_mlx.errors import ImageError
from aim_mlx.images import KnownFile
from aim_mlx.images import decode as thumbnail
from aim_mlx.store.export import Rows
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import exact_paths

SIDE = 256
_SHOWN = ["path", "size", "width", "height", "embedding"]
_AT_ONCE = 256  # rows whose pictures are in memory, 10 KB each
# As Hugging Face's datasets keep images, which embedding-atlas shows.
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class IllustratedRows(Rows):
    """All rows of a store, with a column `image`: {bytes: JPEG, path}, upright, null if missing.

    Of the other columns only those that say something to the eye. A photo that is gone, cannot be
    read or has other content than was embedded has no image; `missing` counts them once the rows
    were read.
    """

    def __init__(self, store: EmbeddingStore):
        super().__init__(store)
        self.missing = 0

    @property
    def schema(self) -> pa.Schema:
        whole = super().schema
        return pa.schema([*map(whole.field, _SHOWN), pa.field("image", _IMAGE)])

    def tables(self) -> Iterator[pa.Table]:
        """These columns, part by part."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for table in super().tables():
                for start in range(0, len(table), _AT_ONCE):
                    yield self._illustrated(table.slice(start, _AT_ONCE), threads)

    def _illustrated(self, rows: pa.Table, threads: ThreadPoolExecutor) -> pa.Table:
        digests, sizes, shown = (rows[name].to_pylist() for name in ("digest", "size", "path"))
        pictures = threads.map(partial(_picture, self._store), exact_paths(rows), digests, sizes)
        images = [
            None if picture is None else {"bytes": picture, "path": path}
            for path, picture in zip(shown, pictures, strict=True)
        ]
        self.missing += images.count(None)
        return rows.select(_SHOWN).append_column("image", pa.array(images, _IMAGE))


def _picture(store: EmbeddingStore, path: str, digest: str, size: int) -> bytes | None:
    try:
        return thumbnail(KnownFile(str(store.locate_path(path)), digest, size), SIDE)
    except ImageError:
        return None
