"""A store as one file: .npz, .npy, .safetensors, .parquet or .jsonl, published by one rename.

Rows are read and written part by part, so memory does not grow with their number.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aim_mlx.errors import ImageError, OutputError, UsageError
from aim_mlx.files import disk_errors, leftovers, locked, publish, remove_leftovers
from aim_mlx.images import KnownFile, decoding_threads, thumbnail
from aim_mlx.store import journal
from aim_mlx.store.folder import hidden_beside, remove
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import exact_paths, table_schema
from aim_mlx.store.shards import PARQUET, Summed, vectors_of
from aim_mlx.weights.safetensors_writer import SafetensorsWriter

_PART_ROWS = 4096
_AS_BEFORE = "it is as it was"
# Endings that promise a kind of file that is not written here; any other name is a folder's.
_OTHER_FILES = frozenset(
    ".csv .tsv .txt .json .h5 .hdf5 .pkl .pickle .pt .pth .bin .zip .gz .feather .arrow .db .sqlite"
    " .duckdb .mat .html .jpg .jpeg .png .webp .gif .tif .tiff .bmp .heic .avif".split()
)


class Rows:
    """The rows of a store that go into a file: all, or those of the paths in `wanted`, in order."""

    def __init__(self, store: EmbeddingStore, wanted: Sequence[str] | None = None):
        self._store = store
        self._rows = None
        self.paths = store.paths
        if wanted is not None:
            row_of = {path: row for row, path in enumerate(store.paths)}
            self.paths = [path for path in wanted if path in row_of]
            if self.paths != store.paths:
                self._rows = np.array([row_of[path] for path in self.paths], np.int64)
        self.shape = len(self.paths), store.dim
        self.schema = table_schema(store.dim)

    @property
    def manifest(self) -> dict[str, Any]:
        """The store's manifest, with what the last run skipped, or embedded the first frame of."""
        names = ("path", "reason", "detail")
        frames = self._store._state.first_frames
        return {
            **self._store.manifest,
            "skipped": [{name: skip[name] for name in names} for skip in self._store.skipped],
            "first_frame_only": [path for path in self.paths if path in frames],
        }

    def tables(self) -> Iterator[pa.Table]:
        """All columns, part by part."""
        if self._rows is None:
            yield from self._store.tables()
            return
        columns, embedding = self._store.table(), self.schema.field("embedding")
        for start in range(0, len(self._rows), _PART_ROWS):
            rows = self._rows[start : start + _PART_ROWS]
            flat = pa.array(self._store.vectors[rows].reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, type=embedding.type)
            yield columns.take(pa.array(rows)).append_column(embedding, vectors)

    def vectors(self) -> Iterator[np.ndarray]:
        """The vectors, float32 (rows, D), part by part."""
        return (np.ascontiguousarray(vectors_of(table)) for table in self.tables())


def write_file(rows: Rows, target: Path, overwrite: bool = False) -> None:
    """Writes rows to a file of the kind that its suffix says.

    .npz: `embeddings` float32 (n, D), `paths` (n,), and `manifest` as JSON text.
    .safetensors: `embeddings`, `paths_json` uint8 (a JSON list), the manifest as metadata.
    .npy: the embeddings alone; in TARGET.json beside it paths, manifest, and the file's sha256.
    .parquet: the columns of a store, the manifest as metadata `aim_mlx`.
    .jsonl: an object a row; manifest and sha256 in TARGET.json beside it.
    Raises UsageError for another suffix, OutputError where it cannot write.
    """
    clear_up(target, overwrite)
    check_target(target, overwrite)
    write_rows = partial(_WRITERS[target.suffix], rows)
    with disk_errors("write", target, _AS_BEFORE):
        if target.suffix not in _WITH_SIDECAR:
            publish({target: write_rows})
            return
        beside: dict[str, Any] = {"sha256": "", "manifest": rows.manifest}
        if target.suffix == ".npy":
            beside["paths"] = rows.paths

        def write(file: BinaryIO) -> None:
            summed = Summed(file)
            write_rows(summed)  # pyright: ignore[reportArgumentType]
            beside["sha256"] = summed.digest.hexdigest()

        def write_sidecar(file: BinaryIO) -> None:
            file.write(json.dumps(beside, indent=1).encode() + b"\n")

        publish({target: write, sidecar(target): write_sidecar}, last=target)


def clear_up(target: Path, overwrite: bool) -> None:
    """Removes what runs that were killed in their last steps left beside a file.

    That is what they had not finished, a sidecar whose rows still have another name, and the hidden
    store of a file that is all there, unless it is to be replaced. Raises OutputError.
    """
    with disk_errors("write", target, _AS_BEFORE):
        if not target.parent.is_dir():
            return
        beside = sidecar(target)
        if target.suffix in _WITH_SIDECAR and leftovers(target) and not os.path.lexists(target):
            beside.unlink(missing_ok=True)
        store = hidden_beside(target)
        for path in (target, beside, store):
            remove_leftovers(path)
        if not overwrite and store.is_dir() and target.is_file():
            _remove_if_done(store, target)


def _remove_if_done(store: Path, target: Path) -> None:
    """Removes a hidden store whose rows all went to its file, unless a process writes there."""
    record = store / journal.NAME
    if not record.is_file() or record.stat().st_mtime_ns > target.stat().st_mtime_ns:
        return  # of a run that was to replace the file
    with suppress(OutputError), locked(store):
        if journal.read(record)[0].finished is not None:
            remove(store)


def _write_npy_header(file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    kind = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, kind)


def _write_npy(rows: Rows, file: BinaryIO) -> None:
    _write_npy_header(file, np.dtype(np.float32), rows.shape)
    for vectors in rows.vectors():
        file.write(vectors.data)


def _write_npz(rows: Rows, file: BinaryIO) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            _write_npy(rows, member)  # pyright: ignore[reportArgumentType]
        kind = np.dtype(f"<U{max(1, max(map(len, rows.paths), default=1))}")
        with archive.open("paths.npy", "w", force_zip64=True) as member:
            _write_npy_header(member, kind, (len(rows.paths),))
            for start in range(0, len(rows.paths), _PART_ROWS):
                member.write(np.array(rows.paths[start : start + _PART_ROWS], kind).tobytes())
        text = np.array(json.dumps(rows.manifest))
        with archive.open("manifest.npy", "w") as member:  # without the time, unlike writestr()
            _write_npy_header(member, text.dtype, ())
            member.write(text.tobytes())


def _write_safetensors(rows: Rows, file: BinaryIO) -> None:
    paths = json.dumps(rows.paths).encode()
    specs = {"embeddings": ("F32", rows.shape), "paths_json": ("U8", (len(paths),))}
    writer = SafetensorsWriter(file, specs, {"manifest": json.dumps(rows.manifest)})
    writer.write_parts("embeddings", rows.vectors())
    writer.write("paths_json", np.frombuffer(paths, np.uint8))
    writer.finish()


def _write_parquet(rows: Rows, file: BinaryIO) -> None:
    kind = rows.schema.with_metadata({"aim_mlx": json.dumps(rows.manifest)})
    with pq.ParquetWriter(file, kind, **PARQUET) as writer:
        for table in rows.tables():
            writer.write_table(table.cast(kind))


def _write_jsonl(rows: Rows, file: BinaryIO) -> None:
    for table in rows.tables():
        records = table.drop_columns(["raw_path", "embedding"]).to_pylist()
        for record, vector in zip(records, vectors_of(table).tolist(), strict=True):
            file.write(json.dumps({**record, "embedding": vector}).encode() + b"\n")


_WRITERS: Mapping[str, Callable[[Rows, BinaryIO], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
_WITH_SIDECAR = (".npy", ".jsonl")
SUFFIXES = tuple(_WRITERS)


def is_file_target(target: Path) -> bool:
    """Whether an output is a single file by its name; raises UsageError for an unknown kind."""
    if target.is_dir():
        return False
    if target.suffix.lower() in _OTHER_FILES:
        raise UsageError(
            f"output must end in {', '.join(SUFFIXES)}, or be a folder, got {target.name!r}"
        )
    return target.suffix in SUFFIXES


def check_target(target: Path, overwrite: bool) -> None:
    """Raises UsageError or OutputError for a target that cannot be written, before any work."""
    if target.suffix not in SUFFIXES:
        raise UsageError(f"output must end in {', '.join(SUFFIXES)}, got {target.name!r}")
    with disk_errors("write", target, _AS_BEFORE):  # a name may be too long to look for
        if not target.parent.is_dir():
            raise OutputError(f"folder {str(target.parent)!r} does not exist: create it first")
        beside = (sidecar(target),) if target.suffix in _WITH_SIDECAR else ()
        for path in (target, *beside):
            if path.is_dir():
                raise OutputError(f"{str(path)!r} is a folder: choose another output")
            if os.path.lexists(path) and not overwrite:
                raise OutputError(f"{str(path)!r} exists: pass --overwrite to replace it")
            if path.exists() and not path.is_file():
                raise OutputError(f"{str(path)!r} is a pipe or device: choose another output")


def sidecar(target: Path) -> Path:
    """Where that goes which has no place in a .npy or .jsonl file."""
    return target.with_name(target.name + ".json")


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
        shown = map(table_schema(store.dim).field, _SHOWN)
        self.schema = pa.schema([*shown, pa.field("image", _IMAGE)])
        self.missing = 0

    def tables(self) -> Iterator[pa.Table]:
        """These columns, part by part."""
        with ThreadPoolExecutor(decoding_threads()) as threads:
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
