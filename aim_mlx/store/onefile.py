"""Embeddings in one file: .npz, .npy or .safetensors, written by one rename at the end.

Rows are spooled to a temporary file beside the target as they come, so memory does not grow with
their number and the target is either complete or as it was.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aim_mlx.durable import publish, temporary
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.weights.writer import SafetensorsWriter

SUFFIXES = (".npz", ".npy", ".safetensors")
_CHUNK_ROWS = 4096


class OneFile:
    """Collects rows and writes them to `target` on commit(); a context manager that cleans up.

    .npz: `embeddings` float32 (n, D), `paths` (n,), and `manifest` as JSON text.
    .safetensors: `embeddings`, `paths_json` uint8 (a JSON list), the manifest as metadata.
    .npy: the embeddings alone; paths and manifest in TARGET.json beside it.
    Raises UsageError for another suffix, OutputError where it cannot write.
    """

    def __init__(self, target: Path, dim: int, overwrite: bool = False):
        check_target(target, overwrite)
        self.target = target
        self._dim = dim
        self._paths: list[str] = []
        self._spool_path = temporary(target.with_name(target.name + ".rows"))
        with _storage(target):
            self._spool: BinaryIO = open(self._spool_path, "xb")

    def __enter__(self) -> "OneFile":
        return self

    def __exit__(self, *_: object) -> None:
        # On a full disk closing fails again, on rows that nobody wants any more.
        with suppress(OSError):
            self._spool.close()
        self._spool_path.unlink(missing_ok=True)

    def add(self, path: str, vector: np.ndarray) -> None:
        """Appends one row: vector float32 (D,)."""
        with _storage(self.target):
            self._spool.write(np.ascontiguousarray(vector, np.float32).data)
        self._paths.append(path)

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Writes the file and its rename; `manifest` is stored as JSON."""
        write = {".npz": self._npz, ".npy": self._npy, ".safetensors": self._safetensors}
        files = {self.target: lambda file: write[self.target.suffix](file, manifest)}
        if self.target.suffix == ".npy":
            record = {"manifest": manifest, "paths": self._paths}
            text = json.dumps(record, indent=1).encode() + b"\n"
            files[sidecar(self.target)] = lambda file: file.write(text)
        with _storage(self.target):
            self._spool.flush()
            publish(files)

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self._paths), self._dim

    def _chunks(self) -> Iterator[bytes]:
        with open(self._spool_path, "rb") as spool:
            while chunk := spool.read(_CHUNK_ROWS * self._dim * 4):
                yield chunk

    def _npy(self, file: BinaryIO, manifest: Mapping[str, Any]) -> None:
        file.write(_npy_header(np.dtype(np.float32), self._shape))
        for chunk in self._chunks():
            file.write(chunk)

    def _npz(self, file: BinaryIO, manifest: Mapping[str, Any]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as member:
                member.write(_npy_header(np.dtype(np.float32), self._shape))
                for chunk in self._chunks():
                    member.write(chunk)
            longest = max(map(len, self._paths), default=1)
            kind = np.dtype(f"<U{max(longest, 1)}")
            with archive.open("paths.npy", "w", force_zip64=True) as member:
                member.write(_npy_header(kind, (len(self._paths),)))
                for start in range(0, len(self._paths), _CHUNK_ROWS):
                    member.write(np.array(self._paths[start : start + _CHUNK_ROWS], kind).tobytes())
            text = np.array(json.dumps(manifest))
            archive.writestr("manifest.npy", _npy_header(text.dtype, ()) + text.tobytes())

    def _safetensors(self, file: BinaryIO, manifest: Mapping[str, Any]) -> None:
        paths = json.dumps(self._paths).encode()
        specs = {"embeddings": ("F32", self._shape), "paths_json": ("U8", (len(paths),))}
        writer = SafetensorsWriter(file, specs, {"manifest": json.dumps(manifest)})
        writer.write("embeddings", np.memmap(self._spool_path, np.float32, "r", shape=self._shape))
        writer.write("paths_json", np.frombuffer(paths, np.uint8))
        writer.finish()


def check_target(target: Path, overwrite: bool) -> None:
    """Raises UsageError or OutputError for a target that cannot be written, before any work."""
    if target.suffix not in SUFFIXES:
        raise UsageError(f"output must end in {', '.join(SUFFIXES)}, got {target.name!r}")
    with _storage(target):  # a name may be too long to look for
        if not target.parent.is_dir():
            raise OutputError(f"folder {str(target.parent)!r} does not exist: create it first")
        for path in (target, sidecar(target)) if target.suffix == ".npy" else (target,):
            if path.is_dir():
                raise OutputError(f"{str(path)!r} is a folder: choose another output")
            if os.path.lexists(path) and not overwrite:
                raise OutputError(f"{str(path)!r} exists: pass --overwrite to replace it")
            if path.exists() and not path.is_file():
                raise OutputError(f"{str(path)!r} is a pipe or device: choose another output")


def sidecar(target: Path) -> Path:
    """Where the paths and the manifest of a .npy file go."""
    return target.with_name(target.name + ".json")


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    facts = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


@contextmanager
def _storage(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {str(target)!r}: {error.strerror or error}; nothing was kept"
        ) from error
