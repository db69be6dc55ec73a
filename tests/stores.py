"""Small stores, made through the writer itself, with rows that need no images."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.store.manifest import SCHEMA
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import Row
from aim_mlx.store.writer import writing


def manifest(dim: int, **changes: Any) -> dict[str, Any]:
    """A manifest as an encoder's would be."""
    facts = {
        "schema": SCHEMA,
        "model": {"model": "none", "path": "none"},
        "weights": "0" * 64,
        "encoder": {},
        "preprocessing": {},
        "pooling": "mean",
        "layers": [],
        "normalized": True,
        "dtype": "float32",
        "dim": dim,
        "block": 4,
    }
    return facts | changes


def row(path: str) -> Row:
    """A row whose digest follows from its path."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
    return Row(path, digest, size=len(path), mtime_ns=7, width=80, height=60)


def make_store(
    folder: Path, paths: list[str], vectors: np.ndarray, commit_every: int = 3
) -> EmbeddingStore:
    """A finished store of these rows, one skip and one image with several frames, the first."""
    with writing(folder) as store:
        store.begin(manifest(vectors.shape[1]))
        facts = {"size": 0, "mtime_ns": 1}
        skips = [{"path": "bad.jpg", "reason": "empty", "detail": "0 bytes"} | facts]
        listed = [*paths, "bad.jpg"]
        counts = {"listed": len(listed) + 1, "ignored": 1}
        header = {"folder": "", "sources": ["x"], "share": None, "all_files": ""}
        store.start_run(header | counts, listed, [])
        for i, (path, vector) in enumerate(zip(paths, vectors, strict=True)):
            store.add(row(path), vector, first_frame=i == 0)
            store.end_block()
            if (i + 1) % commit_every == 0:
                store.commit()
        store.skip(skips[0])
        store.end_block()
        store.commit()
        store.finish(counts | {"embedded": len(paths), "skipped": 1}, skips)
    return EmbeddingStore(folder)
