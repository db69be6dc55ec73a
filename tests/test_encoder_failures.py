"""Memory or a GPU that fails while images are computed, and numbers beyond half precision."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from aim_mlx import backend
from aim_mlx.backend import mx, on_gpu
from aim_mlx.embedding import job
from aim_mlx.encoder import pipeline
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.errors import AimError, OverflowWarning
from tests.bad_images import encoded
from tests.embed_runs import embed, make, vectors_of
from tests.small import encoder, photo, save

IMAGES = [photo(seed) for seed in range(12)]
SAME = 1e-5  # float32 sums in another order, as the images of a batch change

FAILURES = [
    "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:kIOGPU).",
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPU).",
    "[METAL] Command buffer execution failed: Invalid Resource (00000009:kIOGPU).",
    "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU).",
    "[malloc] Unable to allocate 99 bytes.",
]


def failing(monkeypatch, place: str, message: str, fails: Callable[[int], bool]) -> list[int]:
    """Has the n-th call of a function of the pipeline fail, from 1, where `fails` says so.

    Gives the number of images in each batch that is computed.
    """
    owner = pipeline.mx if place == "async_eval" else pipeline
    real, compute = getattr(owner, place), Encoder._vectors
    calls, sizes = [], []

    def failing_now_and_then(given):
        calls.append(1)
        if fails(len(calls)):
            raise RuntimeError(message)
        return real(given)

    def counting(self, pixels, options):
        sizes.append(len(pixels))
        return compute(self, pixels, options)

    monkeypatch.setattr(owner, place, failing_now_and_then)
    monkeypatch.setattr(Encoder, "_vectors", counting)
    return sizes


@pytest.mark.parametrize("place", ["async_eval", "_read"])
@pytest.mark.parametrize("message", FAILURES)
def test_after_a_failure_all_at_work_is_computed_again_in_smaller_batches(
    monkeypatch, place, message
):
    """One error may stand for several batches, so that none of them is to be trusted."""
    expected = encoder().embed(IMAGES)
    sizes = failing(monkeypatch, place, message, lambda call: call == 2)
    vectors = encoder().embed(IMAGES, batch_size=4)
    np.testing.assert_allclose(vectors, expected, atol=SAME)
    begun = sizes.index(2)  # with the first smaller one all begins again that was begun before
    read = 4 if on_gpu() and place == "_read" else 0  # a GPU has one batch at work at a time
    assert max(sizes[begun:]) == 2 and sum(sizes[begun:]) == len(IMAGES) - read


def test_a_batch_that_is_still_too_large_is_halved_again(monkeypatch):
    compute, expected = Encoder._vectors, encoder().embed(IMAGES)

    def too_large(self, pixels, options):
        if len(pixels) > 1:
            raise RuntimeError(FAILURES[-1])
        return compute(self, pixels, options)

    monkeypatch.setattr(Encoder, "_vectors", too_large)
    vectors = encoder().embed(IMAGES, batch_size=8)
    np.testing.assert_allclose(vectors, expected, atol=SAME)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (FAILURES[0], r"the GPU failed with 1 image at a time \(.*Impacting Interactivity"),
        (FAILURES[3], "out of memory with 1 image at a time: close other programs"),
        (FAILURES[4], "out of memory with 1 image at a time: close other programs"),
    ],
)
def test_one_image_that_fails_alone_is_one_sentence(monkeypatch, message, said):
    def always(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(Encoder, "_vectors", always)
    with pytest.raises(AimError, match=said):
        encoder().embed(IMAGES)


def test_an_error_of_the_program_stays_what_it_is(monkeypatch):
    failing(monkeypatch, "async_eval", "[reshape] Cannot reshape", lambda call: True)
    with pytest.raises(RuntimeError, match="Cannot reshape"):
        encoder().embed(IMAGES)


def test_blocks_finished_before_a_failure_are_kept_and_the_next_run_goes_on(tmp_path, monkeypatch):
    photos = make(
        tmp_path / "in", {f"{i}.png": encoded(Image.fromarray(IMAGES[i])) for i in range(9)}
    )
    command = photos, "--model", save(tmp_path / "model"), "--batch-size", 1, "-o"
    compute, calls = Encoder._vectors, []

    def failing_later(self, pixels, options):
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError(FAILURES[0])
        return compute(self, pixels, options)

    monkeypatch.setattr(job, "block_size", lambda *_: 2)
    with monkeypatch.context() as during:
        during.setattr(Encoder, "_vectors", failing_later)
        run = embed(*command, tmp_path / "store")
    assert run.code == 1 and "Impacting Interactivity" in run.stderr
    again = embed(*command, tmp_path / "store")
    kept = again.summary["unchanged"]
    assert kept in (2, 4) and again.summary["computed"] == 9 - kept  # by the number of cores
    embed(*command, tmp_path / "whole")
    expected, vectors = vectors_of(tmp_path / "whole"), vectors_of(tmp_path / "store")
    assert all(np.array_equal(expected[name], vectors[name]) for name in expected)


@pytest.fixture
def overflowing() -> Encoder:
    """An encoder in which one of the images passes 65,504 between two products."""
    model = encoder()
    for block in model.model.trunk.blocks:
        assert block.mlp.fc3 is not None
        block.mlp.fc3.weight = block.mlp.fc3.weight * 1.4e4
        block.mlp.fc2.weight = block.mlp.fc2.weight / 1.4e4
    return model


def test_an_image_that_overflows_float16_is_computed_again_in_float32(overflowing):
    expected = overflowing.embed(IMAGES)
    overflowing.model.set_dtype(mx.float16)
    with pytest.warns(OverflowWarning) as caught:
        rows = list(overflowing.embed_stream(IMAGES, EmbedOptions(batch_size=4)))
    overflowed = [row.index for row in rows if row.overflowed]
    assert 0 < len(overflowed) < len(IMAGES) and len(caught) == 1
    cosines = [float(row.vector @ expected[row.index]) for row in rows]
    # Rounding of the weights to float16, with which all of them differ, is 2e-6 of the cosine.
    assert min(cosines) > 1 - 1e-4, cosines


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_other_dtypes_reach_further(overflowing, dtype, recwarn):
    overflowing.model.set_dtype(dtype)
    rows = list(overflowing.embed_stream(IMAGES))
    assert not any(row.overflowed for row in rows) and not recwarn.list


def test_memory_that_a_gpu_keeps_is_bounded_while_it_embeds(monkeypatch):
    limits, compute = [], Encoder._vectors

    def looking(self, pixels, options):
        limits.append(mx.set_cache_limit(0))
        mx.set_cache_limit(limits[-1])
        return compute(self, pixels, options)

    monkeypatch.setattr(Encoder, "_vectors", looking)
    monkeypatch.setattr(backend, "on_gpu", lambda: True)
    before = mx.set_cache_limit(2**50)
    try:
        encoder().embed(IMAGES)
        assert mx.set_cache_limit(before) == 2**50
        assert set(limits) == {backend.machine_bytes() // 16}
    finally:
        mx.set_cache_limit(before)


def test_a_smaller_bound_of_the_users_stays(monkeypatch):
    monkeypatch.setattr(backend, "on_gpu", lambda: True)
    before = mx.set_cache_limit(12345)
    try:
        with backend.within_memory():
            assert mx.set_cache_limit(12345) == 12345
    finally:
        mx.set_cache_limit(before)
