"""The MLX back end: device, dtype, and a fast BLAS on Linux. `mx`, `nn`, `optim` come from here.

MLX's Linux CPU wheel bundles the reference BLAS; OpenBLAS, loaded into the process before MLX,
takes its place and multiplies matrices 17 to 35 times faster. The order matters, so this is the
only module that imports `mlx.core` by name.
"""

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from aim_mlx import openblas
from aim_mlx.errors import BackendError, UsageError


def _require_mlx() -> None:
    """Raises BackendError where MLX has no back end: bare `mlx` on Linux lacks its own library."""
    extra = "" if sys.platform == "darwin" else "[cpu]"
    advice = f"install it with: pip install 'aim-mlx{extra}'"
    if sys.platform == "linux":
        advice += " (or [cuda12], [cuda13] for an NVIDIA GPU)"
    if importlib.util.find_spec("mlx") is None:
        raise BackendError(f"MLX is not installed; {advice}")
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise BackendError(f"MLX has no back end on this machine ({error}); {advice}") from error


BLAS = openblas.load()
# On CUDA and M5, MLX rounds the factors of float32 products to 11 bits unless this says otherwise.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
_require_mlx()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402
from mlx.utils import tree_flatten, tree_map, tree_unflatten  # noqa: E402

__all__ = [
    "BLAS",
    "DTYPES",
    "FAST_DTYPES",
    "TF32",
    "check_not_forked",
    "concurrency",
    "cpu_streams",
    "device_name",
    "dtype_name",
    "dtype_named",
    "evaluate_on_cpu",
    "in_parallel",
    "machine_bytes",
    "memory_used",
    "mx",
    "nn",
    "on_gpu",
    "optim",
    "return_memory",
    "tree_flatten",
    "tree_map",
    "tree_unflatten",
    "within_memory",
]

T = TypeVar("T")
_KEPT_OF_MEMORY = 16  # the part that MLX keeps of freed memory, for arrays of the same size
TF32 = os.environ["MLX_ENABLE_TF32"] != "0"
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# By device: M1 and M2 have no bfloat16 of their own, and a CPU neither of the two.
FAST_DTYPES = {"metal": "float16", "cuda": "bfloat16", "cpu": "float32"}


# Whether MLX had been used before the last fork, as its memory shows; and whether this process is
# the child of such a fork.
_used = _forked = False


def _before_fork() -> None:
    global _used
    _used = _used or mx.get_peak_memory() > 0 or mx.get_active_memory() > 0


def _in_child() -> None:
    global _forked
    _forked = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def return_memory() -> None:
    """Gives the system back what freed arrays took, of which MLX and on Linux malloc keep some."""
    mx.clear_cache()
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library that is not GNU's
            _trim(ctypes.CDLL(None))


def _trim(libc: ctypes.CDLL) -> None:
    """What malloc_trim does, and the end of this thread's heap, up to 64 MB, which it leaves.

    That end goes when something before it is freed while it is above the threshold.
    """
    threshold = -1  # M_TRIM_THRESHOLD in malloc.h
    libc.malloc_trim(0)
    libc.malloc.restype = ctypes.c_void_p
    libc.mallopt(threshold, 2**17)
    libc.free(ctypes.c_void_p(libc.malloc(2**16)))
    libc.mallopt(threshold, 2**26)  # the largest that malloc chooses by itself


def machine_bytes() -> int:
    """The memory of the device that computes; of a Mac the machine's, which its GPU shares."""
    info = mx.device_info() if on_gpu() else {}
    total = info.get("memory_size") or info.get("total_memory")
    return int(total or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def memory_used() -> dict[str, int]:
    """What MLX held at most until now, and what it keeps of freed memory, in bytes."""
    return {"peak_memory": mx.get_peak_memory(), "cache_memory": mx.get_cache_memory()}


@contextmanager
def within_memory() -> Iterator[None]:
    """Bounds the freed memory that MLX keeps on a GPU inside the block, and wires a Mac's in use.

    MLX would keep up to all there is: buffers of sizes that never come again, where the images
    differ in size.
    """
    if not on_gpu():
        yield
        return
    limit = machine_bytes() // _KEPT_OF_MEMORY
    before = mx.set_cache_limit(limit)
    mx.set_cache_limit(min(limit, before))
    wired = None
    if mx.metal.is_available():
        wired = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.set_cache_limit(before)
        if wired is not None:
            mx.set_wired_limit(wired)


def check_not_forked() -> None:
    """Raises BackendError in a child forked after MLX was used, which lacks MLX's threads.

    MLX would wait for them for ever. Everything that computes checks this first.
    """
    if _forked:
        raise BackendError(
            "MLX was used before this process was forked, and cannot go on in it: start processes "
            'with multiprocessing.get_context("spawn"), or use aim_mlx only after the fork'
        )


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) rather than on the CPU."""
    return mx.default_device().type == mx.DeviceType.gpu


def device_name() -> str:
    """ "metal", "cuda" or "cpu": where MLX computes."""
    if not on_gpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def dtype_named(name: str | None) -> mx.Dtype:
    """The MLX dtype for a name; None is the device's fast one.

    Raises UsageError for other names.
    """
    try:
        return DTYPES[name or FAST_DTYPES[device_name()]]
    except (KeyError, TypeError):  # what cannot be a key is no name either
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}") from None


def dtype_name(dtype: mx.Dtype) -> str:
    """The name that `dtype_named` takes."""
    return str(dtype).removeprefix("mlx.core.")


def concurrency(most: int) -> int:
    """How many parts, at most so many, the work is cut into: one on a GPU, else one a core."""
    return 1 if on_gpu() else max(1, min(most, BLAS.threads))


def evaluate_on_cpu(*trees: Any) -> None:
    """Computes arrays now, while the caches hold what they are made of; on a GPU, nothing.

    There they wait to be computed with what comes after them, as every evaluation takes its time.
    """
    if not on_gpu():
        mx.eval(*trees)


@contextmanager
def cpu_streams(count: int) -> Iterator[list[mx.Stream]]:
    """At most `count` MLX streams that share the cores between them; one on a GPU.

    Only matrix products use several cores of their own accord; everything else in MLX's CPU back
    end is one thread a stream. Independent work in as many streams as there are cores, each with
    a single-threaded BLAS, keeps all of them busy.
    """
    check_not_forked()
    count = concurrency(count)
    if count == 1:
        yield [mx.default_stream(mx.default_device())]
        return
    streams = _streams.__dict__.setdefault("cpu", [])
    streams += [mx.new_stream(mx.cpu) for _ in range(count - len(streams))]
    with BLAS.limited_to(BLAS.threads // count):
        yield streams[:count]


# A stream belongs to the thread that made it, and lives as long as the process: kept for reuse.
_streams = threading.local()


def in_parallel(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """What the tasks return, each run in a thread with a stream and a share of the cores.

    A task evaluates all that it returns. For graphs of many outputs this is faster than streams of
    one thread: MLX queues ten operations ahead, and those of one stream before the next one's.
    """
    check_not_forked()
    if len(tasks) == 1:
        return [tasks[0]()]
    with BLAS.limited_to(max(1, BLAS.threads // len(tasks))):
        futures = [_workers.submit(task) for task in tasks]
        wait(futures)
        return [future.result() for future in futures]


class _Workers:
    """As many threads as cores, which compute with MLX, each in a stream of its own.

    They wait, idle, until the process ends: when a thread that used MLX ends, MLX asks for Python's
    lock, and where that meets the interpreter's own end, the process aborts.
    """

    def __init__(self):
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._started = 0

    def submit(self, task: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        self._tasks.put((future, task))
        if self._started < BLAS.threads:
            self._started += 1
            threading.Thread(target=self._serve, name="aim_mlx-part", daemon=True).start()
        return future

    def _serve(self) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            while True:
                future, task = self._tasks.get()
                try:
                    future.set_result(task())
                except BaseException as error:  # for whoever waits
                    future.set_exception(error)
                del future, task  # and with them what they hold


_workers = _Workers()
