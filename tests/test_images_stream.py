"""Samples in order, decoded ahead, with failures as data and threads that end."""

import gc
import io
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images import decode, preprocess, stream

CONFIG = PreprocessConfig.hub(28)
module = sys.modules["aim_mlx.images.stream"]


# In the threads of mlx-data, and in Python's.
both = pytest.mark.parametrize("in_host", [False, True], ids=["mlx-data", "plain"])


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(height, width, seed=0):
    file = io.BytesIO()
    Image.fromarray(noise(height, width, seed)).save(file, "PNG")
    return file.getvalue()


def pipeline_threads():
    """Threads of this process that Python does not know: those of mlx-data."""
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


def settled_threads() -> int:
    """Their number once it stands still."""
    count, before = pipeline_threads(), -1
    while count != before:
        time.sleep(0.1)
        count, before = pipeline_threads(), count
    return count


def test_every_kind_of_source_gives_the_pixels_of_decode_and_preprocess(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png(40, 50))
    array = noise(40, 50)
    sources = [path, str(path), path.read_bytes(), Image.fromarray(array), array]
    samples = list(stream(sources, CONFIG, threads=2))
    assert [sample.index for sample in samples] == [0, 1, 2, 3, 4]
    for sample in samples:
        assert sample.failure is None and (sample.width, sample.height) == (50, 40)
        assert sample.pixels is not None
        assert (sample.pixels == preprocess(decode(path), CONFIG)).all()
        assert sample.pixels.flags.writeable


@both
def test_the_order_is_that_of_the_sources_whatever_takes_longer(monkeypatch, in_host):
    def slow(source, *_):
        time.sleep(0.02 if source.shape[0] % 3 else 0)
        return original(source, *_)

    original = module.decoded
    monkeypatch.setattr(module, "decoded", slow)
    sources = [np.zeros((30 + i, 31, 3), np.uint8) for i in range(40)]
    samples = list(stream(sources, CONFIG, threads=4, in_host=in_host))
    assert [(s.index, s.height) for s in samples] == [(i, 30 + i) for i in range(40)]


@both
def test_a_bad_image_is_a_sample_with_its_failure_and_costs_no_other(tmp_path, in_host):
    good = png(30, 30)
    sources = [good, b"", tmp_path / "gone.jpg", b"<html>", None, good[:200], good]
    given: Any = sources
    samples = list(stream(given, CONFIG, threads=2, in_host=in_host))
    reasons = [sample.failure.reason if sample.failure else "" for sample in samples]
    assert reasons == ["", "empty", "vanished", "not_image", "not_image", "truncated", ""]
    failed = samples[1]
    assert (failed.pixels, failed.width, failed.height) == (None, 0, 0)
    assert isinstance(failed.failure, ImageError)


def test_native_samples_have_their_own_shapes_and_upright_sizes():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(noise(200, 300)).save(file, "JPEG", exif=exif)
    sources = [noise(210, 160), file.getvalue()]
    samples = list(stream(sources, PreprocessConfig.hub(None)))
    assert [s.pixels.shape for s in samples if s.pixels is not None] == [
        (210, 154, 3),
        (294, 196, 3),
    ]
    assert [(s.width, s.height) for s in samples] == [(160, 210), (200, 300)]


def test_the_limits_reach_the_decoder():
    data = png(30, 30)
    (sample,) = stream([data], CONFIG, max_pixels=899)
    assert sample.failure is not None and sample.failure.reason == "too_large"
    (sample,) = stream([data[:-40]], CONFIG, allow_truncated=True)
    assert sample.failure is None


def test_a_further_frame_is_said():
    file = io.BytesIO()
    frames = [Image.fromarray(noise(30, 30, seed)) for seed in (0, 1)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    assert [s.multi_frame for s in stream([file.getvalue(), png(30, 30)], CONFIG)] == [True, False]


def test_a_dark_16_bit_image_is_said():
    file = io.BytesIO()
    Image.fromarray(np.full((30, 30), 4095, np.uint16)).save(file, "PNG")
    assert [s.dark for s in stream([file.getvalue(), png(30, 30)], CONFIG)] == [True, False]


def test_no_sources_give_no_samples():
    assert list(stream([], CONFIG)) == []


@pytest.mark.parametrize("numbers", [{"threads": 0}, {"prefetch": -1}, {"threads": 1.5}], ids=repr)
def test_numbers_below_1_are_refused_at_once(numbers):
    with pytest.raises(UsageError, match="whole number"):
        stream([], CONFIG, **numbers)


def test_as_many_decode_as_the_machine_has_room_for(monkeypatch):
    started = []
    monkeypatch.setattr(module, "decoding_threads", lambda: 3)
    monkeypatch.setattr(module, "_PlainRun", lambda *given: started.append(given[2:]))
    with pytest.raises(AttributeError):  # of the run that is none
        next(stream([noise(30, 30)], CONFIG, in_host=True))
    assert started == [(3, 6)]


@both
def test_at_most_prefetch_samples_are_ahead(monkeypatch, in_host):
    started = []

    def counted(source, *_):
        started.append(1)
        return original(source, *_)

    original = module.decoded
    monkeypatch.setattr(module, "decoded", counted)
    sources = [noise(30, 30)] * 100
    samples = stream(sources, CONFIG, threads=2, prefetch=4, in_host=in_host)
    for taken in range(1, 6):
        next(samples)
        time.sleep(0.05)
        assert len(started) <= taken + 4 + 2  # and those that the threads hold
    samples.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_few_images_are_decoded_once_each_however_many_may_be_ahead(monkeypatch):
    started = []

    def counted(source, *_):
        started.append(1)
        return original(source, *_)

    original = module.decoded
    monkeypatch.setattr(module, "decoded", counted)
    assert len(list(stream([noise(30, 30)] * 3, CONFIG, threads=2, prefetch=50))) == 3
    assert len(started) == 3


def test_a_list_longer_than_a_part_is_one_stream(monkeypatch):
    monkeypatch.setattr(module, "_PART", 7)
    sources = [np.zeros((30 + i, 31, 3), np.uint8) for i in range(23)]
    assert [s.height for s in stream(sources, CONFIG, threads=3)] == [30 + i for i in range(23)]


@both
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_an_unexpected_error_is_raised_where_its_sample_is_due(monkeypatch, error, in_host):
    def broken(image, config):
        if image.width == 33:
            raise error("a fault of ours")
        return preprocess(image, config)

    monkeypatch.setattr(module, "preprocess", broken)
    sources = [noise(30, 30 + i) for i in range(9)]
    samples = stream(sources, CONFIG, threads=2, in_host=in_host)
    assert [next(samples).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(error, match="a fault of ours"):
        next(samples)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("end", ["close", "drop", "exhaust", "error"])
def test_no_thread_outlives_the_iterator(monkeypatch, end):
    before = settled_threads()
    samples = stream([noise(30, 30)] * 50, CONFIG, threads=3)
    next(samples)
    assert pipeline_threads() > before
    if end == "close":
        samples.close()  # pyright: ignore[reportAttributeAccessIssue]
    elif end == "drop":
        del samples
        gc.collect()
    elif end == "exhaust":
        assert len(list(samples)) == 49
    else:
        with pytest.raises(KeyboardInterrupt):
            samples.throw(KeyboardInterrupt)  # pyright: ignore[reportAttributeAccessIssue]
    deadline = time.monotonic() + 60
    while pipeline_threads() > before:  # one that was joined may be listed for a moment more
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_thread_of_the_pipeline_that_never_ends_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    woken, let_go = threading.Event(), threading.Event()

    class Stuck:
        def __del__(self):  # as mlx-data waits for a thread that has missed its signal to stop
            let_go.set()
            woken.wait(100)

    others = set(module._running)
    samples = stream([noise(30, 30)] * 3, CONFIG, threads=1)
    next(samples)
    (run,) = module._running - others
    stream_of_run, run._stream = run._stream, Stuck()
    begun = time.monotonic()
    samples.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert let_go.is_set() and time.monotonic() - begun < 60 and run not in module._running
    woken.set()
    del stream_of_run


@both
def test_closing_waits_for_a_sample_under_way_however_long_it_takes(monkeypatch, in_host):
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    begun, ended = [], []

    def slow(source, *_):
        begun.append(1)
        time.sleep(0.3)
        ended.append(1)
        return original(source, *_)

    original = module.decoded
    monkeypatch.setattr(module, "decoded", slow)
    samples = stream([noise(30, 30)] * 9, CONFIG, threads=2, in_host=in_host)
    next(samples)
    samples.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(begun) == len(ended)


def test_in_host_start_nothing_more_and_end_when_their_stream_is_closed(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.data", None)  # so they are used where it is missing
    started, before = [], threading.enumerate()

    def counted(source, *_):
        started.append(1)
        return original(source, *_)

    original = module.decoded
    monkeypatch.setattr(module, "decoded", counted)
    samples = stream([noise(30, 30)] * 99, CONFIG, threads=2, prefetch=5)
    next(samples)
    assert set(threading.enumerate()) - set(before)
    samples.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.enumerate() == before and len(started) <= 6


def test_a_closed_stream_starts_no_further_sample(monkeypatch):
    started, closing = [], threading.Event()

    def waiting(source, *_):
        started.append(1)
        if source.shape[0] == 31:
            closing.wait(60)
        return original(source, *_)

    def end(run):
        closing.set()
        original_end(run)

    original, original_end = module.decoded, module._Run._end
    monkeypatch.setattr(module, "decoded", waiting)
    monkeypatch.setattr(module._Run, "_end", end)
    samples = stream([noise(30, 30)] + [noise(31, 30)] * 99, CONFIG, threads=2, prefetch=50)
    next(samples)
    samples.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(started) <= 3  # the first, and one in each thread


@pytest.mark.parametrize("held", ["samples", "[samples, samples.gi_frame]"])
def test_a_program_that_ends_with_an_open_stream_ends_well(held):
    program = f"""if True:
        import numpy, aim_mlx.images
        from aim_mlx.config import PreprocessConfig
        sources = [numpy.zeros((400, 400, 3), numpy.uint8)] * 200
        samples = aim_mlx.images.stream(sources, PreprocessConfig.hub(224), threads=4)
        next(samples)
        held = {held}
        print("ended", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_ctrl_c_ends_a_program_in_the_middle_of_a_stream():
    program = """if True:
        import numpy, aim_mlx.images
        from aim_mlx.config import PreprocessConfig
        sources = [numpy.zeros((400, 400, 3), numpy.uint8)] * 1_000_000
        for sample in aim_mlx.images.stream(sources, PreprocessConfig.hub(224), threads=2):
            if sample.index == 20:
                print("started", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.strip().endswith("KeyboardInterrupt")


def test_two_streams_run_side_by_side():
    one = stream([noise(30, 30)] * 20, CONFIG, threads=2)
    two = stream([noise(31, 30)] * 20, CONFIG, threads=2)
    assert [(a.height, b.height) for a, b in zip(one, two, strict=True)] == [(30, 31)] * 20


def test_images_need_no_mlx_core():
    program = "import sys, aim_mlx.images as i; list(i.stream([b'x'], None)); "
    program += "sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
