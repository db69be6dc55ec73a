"""OpenBLAS on Linux: loaded so that MLX's CPU back end binds to it, with the right kernels."""

import _ctypes
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aim_mlx.errors import BackendError

LIBRARY = "libopenblas.so.0"
INSTALL = "sudo apt-get install libopenblas0-pthread"

# An OpenBLAS older than the processor does not know it and falls back to kernels of 2004, five
# times slower. The kernels that the processor's features allow are then asked for by name.
_FALLBACKS = ("Prescott", "Core2", "Penryn", "Nehalem", "generic")
_KERNELS = (("avx512vl", "SkylakeX"), ("avx2", "Haswell"))
_CORETYPE = "OPENBLAS_CORETYPE"
_BUFFER = 129 << 20  # bytes of addresses that a product takes, and a little
_ROOM = 1200 << 20  # what the libraries, the threads and a small model take besides


@dataclass(frozen=True)
class Blas:
    """The result of loading OpenBLAS: `state` is "loaded", "missing", "too late" or "not needed".

    `core` names the processor its kernels are for; `threads` is how many products it runs at once,
    within one call or, without OpenBLAS, in as many calls.
    """

    state: str
    core: str = ""
    threads: int = 1
    library: ctypes.CDLL | None = None

    def use(self, threads: int) -> None:
        """Has a matrix product use that many threads from now on."""
        if self.library is not None:
            self.library.openblas_set_num_threads(max(1, threads))

    @contextmanager
    def limited_to(self, threads: int) -> Iterator[None]:
        """Uses that many threads a matrix product inside the block."""
        self.use(threads)
        try:
            yield
        finally:
            self.use(self.threads)


def load() -> Blas:
    """Loads OpenBLAS for the symbols that MLX is about to bind.

    Raises BackendError where a limit on the process leaves no room for its buffers.
    """
    if sys.platform != "linux":
        return Blas("not needed")
    if "mlx.core" in sys.modules:
        return Blas("too late")
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return Blas("missing", threads=os.cpu_count() or 1)
    better = _better_kernels(_core(library))
    if better:
        # The kernels are chosen while the library loads, so it is loaded again.
        _ctypes.dlclose(library._handle)
        os.environ[_CORETYPE] = better
    try:
        library = ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    finally:
        if better:
            del os.environ[_CORETYPE]
    threads = library.openblas_get_num_threads()
    _take_buffers(library, 2 * threads)  # one for each of its threads, and for each that calls it
    return Blas("loaded", _core(library), threads, library)


def _take_buffers(library: ctypes.CDLL, count: int) -> None:
    """Has OpenBLAS take its buffers now where the address space is limited, as by `ulimit -v`.

    It takes them when it first needs them and, where there is no room, tries again for ever. Until
    they are used they cost addresses and no memory. Room for the rest is asked for too, as Python
    waits for ever for a thread that it started where there is none for the thread's first call.
    """
    import resource  # not there on every system, but on Linux

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    needed = count * _BUFFER + _ROOM
    try:
        mmap.mmap(-1, needed).close()
    except OSError as error:
        raise BackendError(
            f"this process may have {limit >> 20:,} MB of addresses (ulimit -v) and needs "
            f"{needed >> 20:,} MB more than it has taken, {count * _BUFFER >> 20:,} MB of them for "
            "OpenBLAS's buffers: raise the limit, or set OPENBLAS_NUM_THREADS=1"
        ) from error
    library.blas_memory_alloc.restype = ctypes.c_void_p
    library.blas_memory_free.argtypes = [ctypes.c_void_p]
    for buffer in [library.blas_memory_alloc(0) for _ in range(count)]:
        library.blas_memory_free(buffer)


def _core(library: ctypes.CDLL) -> str:
    library.openblas_get_corename.restype = ctypes.c_char_p
    return library.openblas_get_corename().decode()


def _better_kernels(core: str) -> str | None:
    """The kernels to ask for where OpenBLAS fell back although the processor can do more."""
    if core not in _FALLBACKS or _CORETYPE in os.environ:
        return None
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None
    return next((kernels for flag, kernels in _KERNELS if flag in flags), None)
