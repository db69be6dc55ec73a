"""`python -m benchmarks.store_cost MODEL PHOTOS`: a folder into a store beside the encoder alone.

Both in one process, in turn; then the store with vectors that cost nothing, which is its own share.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np

import aim_mlx
from aim_mlx.embedding.job import embed_files
from aim_mlx.embedding.selection import Job, Selection
from aim_mlx.encoder.encoder import Embedded, EmbedOptions, Encoder
from aim_mlx.encoder.pipeline import block_size
from aim_mlx.images import discover
from aim_mlx.images.contents import read_content
from benchmarks.workers import Silent, check_computed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_cost", description=__doc__)
    parser.add_argument("model", help="a checkpoint's folder or a name")
    parser.add_argument("photos", help="a folder of good photographs")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    encoder = aim_mlx.load(options.model)
    digest = timed(lambda: encoder.weights_digest)
    runs = [lambda: alone(encoder, options.photos), lambda: store(encoder, options.photos)]
    alone(encoder, options.photos)
    pairs = []
    for number in range(options.rounds):
        first = number % 2
        seconds = {first: timed(runs[first])}
        seconds[1 - first] = timed(runs[1 - first])
        pairs.append((seconds[0], seconds[1]))
    setattr(encoder, "embed_stream", free)  # noqa: B010
    share = [timed(runs[1]) for _ in range(options.rounds)]
    result = {
        "alone": [a for a, _ in pairs],
        "store": [b for _, b in pairs],
        "ratio": median(b / a for a, b in pairs),
        "store_without_encoder": share,
        "share": median(share) / median(a for a, _ in pairs),
        "weights_digest_once": digest,
    }
    print(json.dumps(result, indent=1))


def alone(encoder: Encoder, folder: str) -> None:
    """Every vector of a folder, kept nowhere."""
    files, block = discover([folder]).files, block_size(encoder.model, None)
    with closing(encoder.embed_stream(files, EmbedOptions(), block)) as rows:
        done = [row.failure is None for row in rows]
    if not files or done != [True] * len(files):
        raise SystemExit(f"{sum(done)} of {len(files)} photos have a vector: give good ones")


def store(encoder: Encoder, folder: str) -> None:
    """The same into a new store."""
    with tempfile.TemporaryDirectory() as place:
        job = Job(Selection((folder,)), Path(place) / "store", EmbedOptions())
        summary = embed_files(job, lambda: encoder, Silent())
    check_computed(summary.computed, folder)


def free(images, options=None, block=None, stop=None, known=None):
    """Rows of photos that are read, with vectors that cost nothing."""
    vector = np.full(1024, 1 / 32, np.float32)
    for index, path in enumerate(images):
        yield Embedded(index, path, read_content(path), width=1, height=1, output=vector)


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
