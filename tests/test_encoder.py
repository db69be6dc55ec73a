"""Images to vectors: order, batches, failures."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aim_mlx.backend import BLAS, mx, on_gpu
from aim_mlx.encoder import pipeline
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.encoder.pipeline import Pipeline
from aim_mlx.errors import CheckpointError, ImageError, Interrupted, UsageError
from aim_mlx.openblas import Blas
from aim_mlx.registry import MODELS
from tests.small import NATIVE, SMALL, encoder, photo

# float32 sums in another order: batches are split over streams and multiplied together.
SAME = 1e-5


def native_photos() -> list[np.ndarray]:
    """Three grids, mixed, so that batches are not consecutive images."""
    sizes = [(160, 210), (210, 160), (160, 210), (300, 160), (210, 160), (160, 210), (300, 160)]
    return [photo(seed, *size) for seed, size in enumerate(sizes)]


def reference(model, image) -> np.ndarray:
    """One image alone, spelled out: pixels, tokens, mean, length one."""
    tokens = np.array(model.features(model.preprocess([image])).tokens)[0]
    mean = tokens.astype(np.float64).mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 100])
def test_vectors_do_not_depend_on_the_batch_size(batch_size):
    model, images = encoder(), [photo(seed) for seed in range(7)]
    expected = np.stack([reference(model, image) for image in images])
    vectors = model.embed(images, batch_size=batch_size)
    assert vectors.dtype == np.float32 and vectors.shape == (7, SMALL.embed_dim)
    np.testing.assert_allclose(vectors, expected, atol=SAME)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_rows_stay_in_order_when_native_sizes_are_mixed(batch_size):
    model, images = encoder(NATIVE), native_photos()
    expected = np.stack([reference(model, image) for image in images])
    np.testing.assert_allclose(model.embed(images, batch_size=batch_size), expected, atol=SAME)


@pytest.mark.skipif(
    BLAS.threads < 2 or BLAS.library is None or on_gpu(), reason="one core, no OpenBLAS, or a GPU"
)
@pytest.mark.parametrize(("block", "threads"), [(1, BLAS.threads), (BLAS.threads, 1)])
def test_products_have_their_threads_whatever_the_decoders_do(monkeypatch, block, threads):
    """mlx-data takes OpenBLAS's threads while it decodes, and gives back what it found."""
    library: Any = BLAS.library
    counts = []
    compute = Encoder._vectors

    def watched(self, pixels, options):
        vectors = compute(self, pixels, options)
        counts.append(library.openblas_get_num_threads())
        mx.eval(vectors)
        counts.append(library.openblas_get_num_threads())
        return vectors

    monkeypatch.setattr(Encoder, "_vectors", watched)
    images = [photo(seed) for seed in range(24)]
    assert len(list(encoder().embed_stream(images, block=block))) == 24
    assert set(counts) == {threads}
    assert library.openblas_get_num_threads() == BLAS.threads


def test_reversed_input_gives_reversed_rows():
    model, images = encoder(), [photo(seed) for seed in range(5)]
    np.testing.assert_allclose(model.embed(images[::-1])[::-1], model.embed(images), atol=SAME)


def test_paths_bytes_pictures_and_arrays_give_the_same_vector(tmp_path):
    array = photo(0)
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    vectors = encoder().embed([path, str(path), path.read_bytes(), Image.open(path), array])
    np.testing.assert_allclose(vectors, np.repeat(vectors[:1], 5, axis=0), atol=SAME)


def test_an_image_that_fails_leaves_the_other_rows_unharmed():
    model, good = encoder(), [photo(seed) for seed in range(4)]
    images = [b"", good[0], good[1], b"not an image", good[2], good[3], b""]
    rows = list(model.embed_stream(images, EmbedOptions(batch_size=2)))
    assert [row.index for row in rows] == list(range(7))
    assert [row.failure.reason if row.failure else None for row in rows] == [
        "empty", None, None, "not_image", None, None, "empty",
    ]  # fmt: skip
    vectors = [row.vector for row in rows if row.failure is None]
    np.testing.assert_allclose(np.stack(vectors), model.embed(good), atol=SAME)


def test_embed_names_the_image_that_failed():
    with pytest.raises(ImageError, match="image 1: "):
        encoder().embed([photo(0), b"not an image"])


def test_a_row_without_a_vector_raises_its_failure_where_one_is_read():
    rows = list(encoder().embed_stream([b"", b"x"]))
    for row, reason in zip(rows, ("empty", "not_image"), strict=True):
        with pytest.raises(ImageError) as raised:
            _ = row.vector
        assert raised.value.reason == reason and row.failure is not None
        assert raised.value.detail == row.failure.detail


def test_no_image_gives_no_row():
    assert encoder().embed([]).shape == (0, SMALL.embed_dim)


def test_the_original_size_is_reported():
    row = next(iter(encoder().embed_stream([photo(0, height=61, width=83)])))
    assert (row.height, row.width) == (61, 83)


def test_unnormalised_vectors_point_the_same_way():
    model, images = encoder(), [photo(0), photo(1)]
    raw = model.embed(images, normalize=False)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.01
    np.testing.assert_allclose(raw / lengths, model.embed(images), atol=SAME)


def test_layers_are_averaged_before_pooling():
    model = encoder()
    layers = model.features(model.preprocess([photo(0)]), layers=[0, -1]).layers
    mean = ((np.array(layers[0]) + np.array(layers[-1])) / 2).mean(axis=1)
    vectors = model.embed([photo(0)], layers=[0, -1], normalize=False)
    np.testing.assert_allclose(vectors, mean, atol=SAME)


@pytest.mark.parametrize("bad", ["photo.jpg", b"bytes", photo(0), Image.fromarray(photo(0))])
def test_a_single_image_in_place_of_a_list_is_refused(bad):
    with pytest.raises(UsageError, match="put it in"):
        encoder().embed(bad)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pooling": "cls"}, "no CLS token"),
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": True}, "batch size"),
        ({"layers": [3]}, "layer must be"),
    ],
)
def test_impossible_options_are_refused_before_any_image_is_read(options, reason):
    with pytest.raises(UsageError, match=reason):
        encoder().embed([b"never read"], **options)


def test_weights_that_give_no_number_stop_at_the_first_batch():
    model = encoder()
    model.model.trunk.post_trunk_norm.weight = mx.full((SMALL.embed_dim,), float("nan"))
    with pytest.raises(CheckpointError, match="no vector of the first 1 images is finite"):
        list(model.embed_stream([b"", photo(0), photo(1)], EmbedOptions(batch_size=1)))


def test_one_image_without_a_finite_vector_is_a_failure_of_its_own(monkeypatch):
    model, good = encoder(), [photo(0), photo(1)]
    compute = Encoder._vectors

    def overflow_on_black(self, pixels, options):
        black = pixels.max(axis=(1, 2, 3)) < 0
        return mx.where(black[:, None], mx.array(float("inf")), compute(self, pixels, options))

    expected = model.embed(good)
    monkeypatch.setattr(Encoder, "_vectors", overflow_on_black)
    rows = list(model.embed_stream([good[0], np.zeros((60, 80, 3), np.uint8), good[1]]))
    assert rows[1].failure is not None and rows[1].failure.reason == "non_finite"
    vectors = [row.vector for row in rows if row.failure is None]
    np.testing.assert_allclose(np.stack(vectors), expected, atol=SAME)


def test_rows_that_are_stopped_end_with_those_of_all_batches_that_have_begun(monkeypatch):
    asked, begun = [], []
    compute = Encoder._vectors

    def stop_during_the_second_round(self, pixels, options):
        begun.append(len(pixels))
        if len(begun) > 4:
            asked.append(True)
        return compute(self, pixels, options)

    monkeypatch.setattr(Encoder, "_vectors", stop_during_the_second_round)
    images, rows = [photo(seed) for seed in range(40)], []
    options = EmbedOptions(batch_size=1)
    with pytest.raises(Interrupted):
        for row in encoder().embed_stream(images, options, block=4, stop=lambda: bool(asked)):
            rows.append(row.index)
    assert rows == list(range(len(begun))) and 4 < len(rows) < 40


def test_rows_that_are_stopped_when_all_are_done_are_all_there():
    rows, images = [], [photo(0), photo(1)]
    for row in encoder().embed_stream(images, EmbedOptions(), stop=lambda: len(rows) > 0):
        rows.append(row.index)
    assert rows == [0, 1]


@pytest.mark.parametrize(
    ("model", "state", "threads", "batch_size", "images"),
    [
        ("aimv2-large-patch14-224", "loaded", 2, None, 4),  # 158 GFLOP each, 150 GFLOP/s
        ("aimv2-large-patch14-224", "loaded", 2, 3, 6),  # a whole batch on each core
        ("aimv2-large-patch14-224", "loaded", 2, 4, 8),
        ("aimv2-large-patch14-224", "missing", 2, None, 2),  # one on each core
        ("aimv2-large-patch14-224", "loaded", 16, None, 32),
        ("aimv2-3B-patch14-448", "loaded", 2, None, 2),
    ],
)
def test_a_block_is_a_few_seconds_of_work(monkeypatch, model, state, threads, batch_size, images):
    monkeypatch.setattr(pipeline, "BLAS", Blas(state, threads=threads))
    monkeypatch.setattr(pipeline, "on_gpu", lambda: False)
    network: Any = SimpleNamespace(config=MODELS[model].config)
    assert pipeline.block_size(network, batch_size) == images


def test_closing_the_rows_early_stops_the_work():
    rows = encoder().embed_stream([photo(seed) for seed in range(50)], EmbedOptions(batch_size=2))
    assert next(rows).index == 0
    rows.close()
    assert list(rows) == []


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_points_the_same_way(name):
    exact, half = encoder(), encoder()
    half.model.set_dtype(getattr(mx, name))
    images = [photo(seed) for seed in range(3)]
    cosines = (exact.embed(images) * half.embed(images)).sum(axis=1)
    assert half.dtype == getattr(mx, name) and (cosines > 0.999).all(), cosines


def test_the_samples_of_the_next_batches_are_decoded_ahead_within_bounds(monkeypatch):
    def ahead(block: int, streams: int, grid: int | None, patches: int | None = None) -> int | None:
        options = EmbedOptions() if patches else EmbedOptions(batch_size=block)
        monkeypatch.setattr(pipeline, "on_gpu", lambda: False)
        monkeypatch.setattr(pipeline, "_CPU_PATCHES", patches)
        preprocessing = encoder().preprocessing
        return Pipeline(abs, [], preprocessing, grid, options, block=block)._ahead(streams)

    assert ahead(4, 2, grid=4) == 8
    assert ahead(1000, 2, grid=4) == 64
    assert ahead(100, 2, grid=4, patches=64) == 8  # four images of 16 patches for each stream
    assert ahead(4, 2, grid=None) is None
