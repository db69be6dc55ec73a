"""The contenders of `benchmarks.search`, each run in a process of its own."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from aim_mlx.openblas import _CORETYPE, _better_kernels
from benchmarks.loading import peak
from benchmarks.workers import processor

_K = 10
_REPEATS = 5
_QUERIES = 100
_CHUNK = 16384
_SPACE = 1.2  # of the matrix, to be free

Search = Callable[[np.ndarray], np.ndarray]  # queries (q, D) -> rows (q, k)


def make(path: str, rows: int, dim: int) -> dict[str, Any]:
    """Writes unit vectors of Gaussian noise; says what the machine is."""
    status = os.statvfs(os.path.dirname(path))
    if status.f_bavail * status.f_frsize < _SPACE * 4 * rows * dim:
        raise SystemExit(f"no room for {4 * rows * dim / 1e9:.1f} GB: give another --folder")
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, rows, _CHUNK):
            file.write(_noise(random, min(_CHUNK, rows - start), dim).data)
    return {"processor": processor(), "cores": os.cpu_count()}


def ours(path: str, rows: int, dim: int) -> dict[str, Any]:
    def prepare() -> Search:
        from aim_mlx.search.nearest import top_k

        matrix = np.memmap(path, np.float32, "r", shape=(rows, dim))
        return lambda queries: top_k(matrix, queries, _K, normalized=True)[0]

    return _measured(prepare, dim)


def numpy(path: str, rows: int, dim: int) -> dict[str, Any]:
    """One product and argpartition."""

    def prepare() -> Search:
        matrix = np.asarray(np.memmap(path, np.float32, "r", shape=(rows, dim)))

        def search(queries: np.ndarray) -> np.ndarray:
            scores = queries @ matrix.T if len(queries) > 1 else (matrix @ queries[0])[None]
            best = np.argpartition(-scores, _K, axis=1)[:, :_K]
            order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
            return np.take_along_axis(best, order, 1)

        return search

    return _measured(prepare, dim)


def faiss(path: str, rows: int, dim: int, tuned: bool = False) -> dict[str, Any]:
    """IndexFlatIP as it comes; it holds the matrix in its own memory."""

    def prepare() -> Search:
        kernels = _better_kernels("Prescott") if tuned else None
        if kernels:  # read when the library is loaded
            os.environ[_CORETYPE] = kernels
        import faiss  # type: ignore[import-not-found]

        if tuned:
            faiss.cvar.distance_compute_blas_database_bs = 65536
        index = faiss.IndexFlatIP(dim)
        matrix = np.memmap(path, np.float32, "r", shape=(rows, dim))
        index.add(np.asarray(matrix))  # type: ignore[call-arg]
        return lambda queries: index.search(queries, _K)[1]  # type: ignore[call-arg]

    return _measured(prepare, dim)


def faiss_tuned(path: str, rows: int, dim: int) -> dict[str, Any]:
    """With larger blocks, and the kernels named that the OpenBLAS of its wheel cannot choose."""
    return faiss(path, rows, dim, tuned=True)


def _measured(prepare: Callable[[], Search], dim: int) -> dict[str, Any]:
    """Seconds until a search can begin, of the first query, of later ones and of 100 at once."""
    queries = _noise(np.random.default_rng(1), _QUERIES, dim)
    loads = [os.getloadavg()[0]]
    seconds, search = _timed(prepare)
    result: dict[str, Any] = {"ready": [seconds]}
    result["first"] = [_timed(lambda: search(queries[:1]))[0]]
    single = [_timed(lambda at=at: search(queries[at : at + 1])) for at in range(1, 1 + _REPEATS)]
    result["one"] = [seconds for seconds, _ in single]
    seconds, rows = _timed(lambda: search(queries))
    result["hundred"] = [seconds, _timed(lambda: search(queries))[0]]
    assert all((found == rows[at]).all() for at, (_, found) in enumerate(single, 1))
    loads.append(os.getloadavg()[0])
    return result | {"rows": rows.tolist(), "peak_bytes": peak(), "load": loads}


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _noise(random: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    noise = random.standard_normal((rows, dim), np.float32)
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


WORKERS = {each.__name__: each for each in (make, ours, numpy, faiss, faiss_tuned)}

if __name__ == "__main__":
    print(json.dumps(WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))))
