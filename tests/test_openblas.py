"""OpenBLAS is loaded before MLX, and with kernels that suit the processor."""

import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from aim_mlx import backend, openblas
from aim_mlx.backend import mx

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")


class FakeLibrary:
    def __init__(self):
        self.calls = []

    def openblas_set_num_threads(self, count):
        self.calls.append(count)


def test_threads_are_given_back_after_the_block():
    library = FakeLibrary()
    with openblas.Blas("loaded", "Zen", 8, library).limited_to(2):  # type: ignore[arg-type]
        pass
    assert library.calls == [2, 8]


@linux_only
@pytest.mark.parametrize(
    ("core", "flags", "expected"),
    [
        ("Prescott", "sse2 avx2 avx512vl", "SkylakeX"),
        ("Prescott", "sse2 avx2", "Haswell"),
        ("Prescott", "sse2", None),
        ("Zen", "sse2 avx2", None),
    ],
)
def test_better_kernels_are_asked_for_only_where_openblas_fell_back(
    monkeypatch, tmp_path, core, flags, expected
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(openblas, "Path", lambda _: cpuinfo)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert openblas._better_kernels(core) == expected


@linux_only
def test_a_choice_made_by_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert openblas._better_kernels("Prescott") is None


@linux_only
def test_a_missing_library_is_reported_and_not_fatal(monkeypatch):
    monkeypatch.delitem(sys.modules, "mlx.core")
    monkeypatch.setattr(openblas, "LIBRARY", "libmissing.so.0")
    assert openblas.load().state == "missing"


@linux_only
def test_mlx_imported_first_is_reported():
    code = "import mlx.core; from aim_mlx import backend; print(backend.BLAS.state)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "too late"


def test_no_more_streams_than_work_or_threads(monkeypatch):
    monkeypatch.setattr(backend, "BLAS", openblas.Blas("missing", threads=3))
    monkeypatch.setattr(backend, "on_gpu", lambda: False)
    for work, expected in ((1, 1), (2, 2), (9, 3)):
        with backend.cpu_streams(work) as streams:
            assert len(streams) == expected


def test_a_gpu_has_one_stream(monkeypatch):
    monkeypatch.setattr(backend, "on_gpu", lambda: True)
    with backend.cpu_streams(8) as streams:
        assert len(streams) == 1


def test_tasks_in_parallel_share_the_cores_and_give_their_results_in_order():
    def task(number):
        values = mx.full((64, 64), number) @ mx.eye(64)
        mx.eval(values)
        return float(values[0, 0]), threading.get_ident(), str(mx.default_stream(mx.cpu))

    done = backend.in_parallel([partial(task, number) for number in range(5)])
    assert [number for number, _, _ in done] == [0, 1, 2, 3, 4]
    ours = threading.get_ident(), str(mx.default_stream(mx.cpu))
    assert all(thread != ours[0] and stream != ours[1] for _, thread, stream in done)
    assert backend.in_parallel([lambda: task(7)])[0][:2] == (7, ours[0])  # one needs no thread
    # None is joined when the process ends: its end would meet the interpreter's.
    workers = [thread for thread in threading.enumerate() if thread.name == "aim_mlx-part"]
    assert workers and all(thread.daemon for thread in workers)


def test_an_error_in_parallel_is_raised_once_all_tasks_have_ended():
    ended = []

    def fail():
        raise ValueError("no")

    def late():
        time.sleep(0.05)
        ended.append(True)

    with pytest.raises(ValueError, match="no"):
        backend.in_parallel([fail, late])
    assert ended
