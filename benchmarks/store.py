"""`python -m benchmarks.store`: what a store costs as the number of files grows, without a model.

Every number comes from a fresh process; memory is what the process has at most above what it had
when everything was imported.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.processes import fresh

_FOLDER = 1000  # files in a folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the store to be opened")
    parser.add_argument("--folder", help="where to measure; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = [_files(Path(folder) / str(count), count) for count in options.files]
        worker("make_rows", folder=f"{folder}/rows", rows=options.rows)
        opened = worker("open_store", folder=f"{folder}/rows", rows=options.rows)
    print(json.dumps({"files": results, "rows": {"rows": options.rows, **opened}}, indent=1))


def _files(folder: Path, count: int) -> dict[str, Any]:
    photos = str(folder / "photos")
    worker("make_files", folder=photos, count=count)
    first, again = (worker("embed", folder=photos, output=str(folder / "out")) for _ in range(2))
    if (first["computed"], again["computed"], again["unchanged"]) != (count, 0, count):
        raise SystemExit(f"{count} files, but the runs computed {first} and {again}")
    return {"files": count, "first": first, "again": again}


def worker(name: str, **arguments: Any) -> dict[str, Any]:
    """Runs one function of this module in a fresh process and tells of it on stderr."""
    result = fresh("benchmarks.store", name, **arguments)
    print(name, json.dumps(result), file=sys.stderr)
    return result


def make_files(folder: str, count: int) -> dict[str, Any]:
    """Small files, each with content of its own, a thousand to a folder."""
    for number in range(count):
        part = Path(folder, f"{number // _FOLDER:04}")
        part.mkdir(parents=True, exist_ok=True)
        (part / f"IMG_{number:08}.jpg").write_bytes(f"photo {number}".encode() * 100)
    return {"count": count}


def embed(folder: str, output: str) -> dict[str, Any]:
    """Seconds of the stages of a run, and the memory that it took."""
    from aim_mlx.embedding.job import embed_files
    from aim_mlx.embedding.selection import Job, Selection
    from aim_mlx.encoder.encoder import EmbedOptions

    stub, times = _stub(), _Times()
    before, cpu = _peak(), time.process_time()
    started = time.perf_counter()
    job = Job(Selection((folder,)), Path(output), EmbedOptions())
    summary = embed_files(job, lambda: stub, times)
    ended = time.perf_counter()
    last = times.last or times.planned
    return {
        "seconds": ended - started,
        "listing": times.found - started,
        "opening": times.planned - times.found,
        "embedding": last - times.planned,
        "closing": ended - last,
        "processor_seconds": time.process_time() - cpu,
        "computed": summary.computed,
        "unchanged": summary.unchanged,
        "peak_bytes": _peak() - before,
    }


def make_rows(folder: str, rows: int) -> dict[str, Any]:
    """A store of as many vectors of length 1024."""
    import numpy as np

    from aim_mlx.encoder.encoder import EmbedOptions
    from aim_mlx.store.manifest import describe
    from aim_mlx.store.rows import Row
    from aim_mlx.store.writer import writing

    rng = np.random.default_rng(0)
    with writing(Path(folder)) as store:
        store.begin(describe(_stub(), EmbedOptions()) | {"block": 1024})
        store.start_run({"folder": "", "sources": []}, [], [])
        for number in range(rows):
            if number % 1024 == 0:
                part = rng.standard_normal((1024, 1024), np.float32)
            digest = f"{number:064x}"
            store.add(Row(f"photos/{number:08}.jpg", digest, 1, 1, 1, 1), part[number % 1024])
            if number % 1024 == 1023 or number == rows - 1:
                store.end_block()
        store.commit()
        store.compact(())
        store.finish({}, [])
    return {"rows": rows}


def open_store(folder: str, rows: int) -> dict[str, Any]:
    """Seconds to check and read a store as the next run does, and to have its vectors in memory."""
    from aim_mlx.encoder.encoder import EmbedOptions
    from aim_mlx.store.manifest import describe
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.store.writer import writing

    manifest = describe(_stub(), EmbedOptions())
    before, cpu = _peak(), time.process_time()
    seconds = {}
    started = time.perf_counter()
    with writing(Path(folder)) as writer:
        writer.begin(manifest)
    seconds["begin"] = time.perf_counter() - started
    seconds["begin_processor"] = time.process_time() - cpu
    seconds["begin_peak_bytes"] = _peak() - before
    for name in ("vectors_first", "vectors_again"):
        started = time.perf_counter()
        store = EmbeddingStore(folder)
        seconds[name] = time.perf_counter() - started
        _ = store.vectors[0]
        seconds[name] = time.perf_counter() - started
        if len(store.vectors) != rows:
            raise SystemExit(f"{len(store.vectors)} of {rows} rows")
    return seconds


class _Times:
    """A report that looks at the clock."""

    def __init__(self):
        self.found = self.planned = self.last = 0.0

    def listed(self, listing: Any) -> None:
        self.found = time.perf_counter()

    def unchanged(self, count: int) -> None:
        self.planned = time.perf_counter()

    def embedded(self, path: str) -> None:
        self.last = time.perf_counter()

    def noted(self, note: str) -> None: ...

    def skipped(self, skip: Any) -> None:
        raise SystemExit(f"a file was skipped: {skip}")


def _stub() -> Any:
    """An encoder of no cost with vectors of length 1024."""
    import numpy as np

    from aim_mlx.backend import mx
    from aim_mlx.config import PreprocessConfig
    from aim_mlx.encoder.encoder import Embedded, Encoder
    from aim_mlx.images.contents import read_content
    from aim_mlx.registry import MODELS

    class Stub(Encoder):
        @property
        def dtype(self):
            return mx.float32

        def embed_stream(self, images: Any, options=None, block=None, stop=None, known=None):
            vector = np.ones(1024, np.float32)
            for index, path in enumerate(images):
                content = read_content(path)
                row = Embedded(index, path, content, repeats=bool(known and known(content.digest)))
                row.output = None if row.repeats else vector
                row.width = row.height = 1
                yield row

    model: Any = SimpleNamespace(config=MODELS["aimv2-large-patch14-224"].config)
    stub = Stub(model, PreprocessConfig.hub(224), identity={"model": "stub", "path": "-"})
    stub.weights_digest = "0" * 64
    return stub


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


WORKERS = {each.__name__: each for each in (make_files, embed, make_rows, open_store)}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WORKERS:
        print(json.dumps(WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))))
    else:
        main()
