"""How many images are decoded at a time, and how large they may be meanwhile."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from aim_mlx.images import limits

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one of so many cores and so much memory."""

    def make(cores: int, memory: int, performance_cores: int | None = None) -> None:
        monkeypatch.setattr(limits, "_memory_bytes", lambda: memory)
        if performance_cores is None:
            monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
            return
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(sys, "platform", "darwin")
        system = SimpleNamespace(sysctlbyname=sysctl(performance_cores))
        monkeypatch.setattr(ctypes, "CDLL", {None: system}.__getitem__)

    return make


def sysctl(performance_cores: int):
    """macOS's sysctlbyname, for a processor with so many; none is Intel's, which lacks the name."""

    # int sysctlbyname(const char *, void *, size_t *, void *, size_t)
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *[ctypes.c_void_p] * 3, ctypes.c_size_t)
    def call(name, old, old_length, new, new_length):
        length = ctypes.c_size_t.from_address(old_length)
        assert (name, length.value, new, new_length) == (b"hw.perflevel0.physicalcpu", 4, None, 0)
        if not performance_cores:
            return -1
        ctypes.c_int32.from_address(old).value = performance_cores
        return 0

    return call


@pytest.mark.parametrize("cores, memory, threads", [(2, 8, 2), (64, 256, 64), (64, 16, 20)])
def test_each_core_decodes_an_image_if_there_is_memory_for_it(machine, cores, memory, threads):
    machine(cores, memory * GB)
    assert limits.decoding_threads() == threads


@pytest.mark.parametrize(
    "cores, performance_cores, threads",
    [(16, 12, 12), (32, 24, 24), (8, 4, 8), (10, 4, 8), (6, 0, 6)],
)
def test_of_a_mac_the_performance_cores_decode_and_others_up_to_eight_in_all(
    machine, cores, performance_cores, threads
):
    machine(cores, 128 * GB, performance_cores)
    assert limits.decoding_threads() == threads


@pytest.mark.skipif(sys.platform != "darwin", reason="asks macOS")
def test_the_performance_cores_are_those_that_macos_counts():
    command = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert limits._performance_cores() == int(done.stdout or 0)


@pytest.mark.parametrize("memory", [1, 4, 16, 64, 512])
@pytest.mark.parametrize("cores", [1, 4, 8, 24, 128])
def test_what_is_decoded_at_a_time_stays_within_half_of_the_memory(machine, cores, memory):
    machine(cores, memory * GB)
    threads = limits.decoding_threads()
    assert 1 <= threads <= cores and 14 * threads * limits.large() <= memory * GB // 2
    assert limits.large() >= 24_000_000
