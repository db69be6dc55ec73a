"""Rows of a store computed again from their photos, to see that they still are those vectors."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from aim_mlx.encoder.encoder import Embedded, Encoder
from aim_mlx.images import KnownFile, default_max_pixels
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.verify import SampledRow

# How far the cosine of two computations of one photo may be below 1. Another device or another
# batch sums in another order: the vectors then differ by the rounding of the dtype, some 24 blocks
# deep (relative 1e-5 in float32, 1e-2 and 8e-2 in the half precisions), and the cosine by half the
# square of that. TF32, which some GPUs take for float32, is as coarse as float16.
_MARGIN = {"float32": 1e-4, "float16": 5e-4, "bfloat16": 5e-3}


@dataclass(frozen=True)
class Recomputed:
    """What became of one row: "same" or "differs" with the cosine of old and new vector.

    Or why it could not be compared: "changed" or another reason of a photo that is not what it was,
    with a sentence.
    """

    path: str
    outcome: str
    cosine: float | None = None
    detail: str = ""


def recompute(
    store: EmbeddingStore, encoder: Encoder, rows: Sequence[SampledRow]
) -> Iterator[Recomputed]:
    """Embeds the photos of these rows and compares, in the order of the rows."""
    photos = [KnownFile(str(store.locate_path(r.path)), r.digest, r.size) for r in rows]
    # Whatever was allowed then is allowed now; photos that are whole give the same pixels.
    most = max([default_max_pixels(), *(row.pixels for row in rows)])
    options = replace(store.options, allow_truncated=True, max_pixels=most)
    least = 1 - _MARGIN[store.manifest["dtype"]]
    with closing(encoder.embed_stream(photos, options)) as embedded:
        for row, again in zip(rows, embedded, strict=True):
            yield _compared(row, again, least)


def _compared(row: SampledRow, again: Embedded, least: float) -> Recomputed:
    failure = again.failure
    if failure is not None:
        return Recomputed(row.path, failure.reason, detail=failure.detail)
    old, new = row.vector.astype(np.float64), again.vector.astype(np.float64)
    cosine = float(old @ new / (np.linalg.norm(old) * np.linalg.norm(new) or 1.0))
    outcome = "same" if cosine >= least else "differs"
    return Recomputed(row.path, outcome, round(cosine, 6))
