"""What holds for all tests."""

import os
import signal
from dataclasses import replace

import pytest

# Else each of OpenBLAS's threads spins for 25 ms after a product, on the core that another process
# of `-n 2` could use. Read as OpenBLAS is loaded.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from aim_mlx import backend  # noqa: E402

# The tolerances are those of float32, which a GPU does not take by itself.
backend.FAST_DTYPES.update(metal="float32", cuda="float32")

# No power fails during a test of this process: nothing need wait for the disk itself.
os.fsync = lambda _: None

# A shell that runs them in the background has them ignore Ctrl-C, and with them every process that
# they start in order to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Few tests each, of many seconds. They come first: begun last, one would keep one process of
# `-n 2 --dist loadfile` at work while the other has nothing left to do.
LONG = ("training_kill", "store_kill", "training_parallel", "cli_embed_killed", "training_damage")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pretend-gpu",
        action="store_true",
        help="take the paths of a GPU, though the numbers are computed by what is there",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # by which xdist puts files of few tests last
    if config.option.pretend_gpu:
        # Before any other module asks: they import both by their names.
        backend.on_gpu = lambda: True
        # With more threads, mlx-data's would change how many OpenBLAS uses, and so the bits.
        backend.BLAS = replace(backend.BLAS, threads=1)
        backend.BLAS.use(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)
