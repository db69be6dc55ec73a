"""Ovis2's visual tokens: what its language model is given of an image, and when it is loaded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.encoder.ovis2 import Ovis2
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.weights.hub import fetch
from tests.hub_server import serving
from tests.small import photo
from tests.towers import INDICATORS, TOWER, Rest, config_json, save, tensors
from tests.weights_files import (
    copy_case,
    edit_json,
    read_tensors,
    weight_file,
    write_index,
    write_tensors,
)

LAYOUTS = ("ovis2", "ovis2-transformers")
REST = Rest()


@pytest.fixture(scope="module", params=LAYOUTS)
def published(tmp_path_factory, request) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("ovis2") / request.param
    return request.param, save(folder, request.param)


@pytest.fixture(scope="module")
def encoder(published) -> Ovis2:
    loaded = aim_mlx.load(published[1], visual_tokens=True)
    assert isinstance(loaded, Ovis2)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in one shard, for tests that change it."""
    return save(tmp_path / "m", "ovis2", shards=1)


def pixels(count: int = 2, side: int = 70) -> mx.array:
    noise = np.random.default_rng(9).normal(0, 1, (count, side, side, 3))
    return mx.array(noise.astype(np.float32))


def in_numpy(layout: str, features: np.ndarray, hard: bool = False) -> np.ndarray:
    """Visual tokens of features (B, N, D) in float64, place by place."""
    beside = {name: values.astype(np.float64) for name, values in tensors(layout, TOWER, REST)}
    own = ["visual_tokenizer.head.0.weight", "visual_tokenizer.head.1.weight"]
    own += ["visual_tokenizer.head.1.bias", "vte.weight"]
    theirs = ["model.vision_tower.head_linear.weight", "model.vision_tower.head_norm.weight"]
    theirs += ["model.vision_tower.head_norm.bias", "model.visual_embeddings_table.weight"]
    linear, gain, bias, table = (beside[n] for n in (own if layout == "ovis2" else theirs))
    grid, dim, results = TOWER.grid or 0, TOWER.embed_dim, []
    for image in features.astype(np.float64).reshape(-1, grid, grid, dim):
        for row in range(0, grid, 2):
            for column in range(0, grid, 2):
                near = [(row + i, column + j) for i in (0, 1) for j in (0, 1)]
                parts = [image[p] if max(p) < grid else np.zeros(dim) for p in near]
                scores = linear @ np.concatenate(parts)
                scores = (scores - scores.mean()) / np.sqrt(scores.var() + 1e-5) * gain + bias
                weights = np.exp(scores) / np.exp(scores).sum()
                results.append(table[scores.argmax()] if hard else weights @ table[:-INDICATORS])
    return np.reshape(results, (len(features), -1, REST.width))


def assert_close(ours: mx.array | None, wanted: np.ndarray) -> None:
    difference = np.abs(np.array(ours) - wanted)
    # float32 against float64 over sums of 256 terms, of values up to one.
    assert difference.max() < 1e-5, f"{difference.max():.1e}, mean {difference.mean():.1e}"


def test_visual_tokens_are_the_mean_of_the_words_of_four_patches(published, encoder):
    layout, _ = published
    features = encoder.features(pixels(), layers=[-1])
    # Ovis2's own code takes the last block's output, transformers' the final tokens.
    source = features.layers[-1] if layout == "ovis2" else features.tokens
    assert np.shape(features.visual_tokens) == (2, 9, REST.width)
    assert_close(features.visual_tokens, in_numpy(layout, np.array(source)))


def test_the_best_word_is_taken_where_the_config_says_so(tmp_path: Path):
    folder = save(tmp_path / "m", "ovis2")
    values = config_json("ovis2")["visual_tokenizer_config"] | {"tokenize_function": "st_argmax"}
    edit_json(folder / "config.json", visual_tokenizer_config=values)
    features = aim_mlx.load(folder, visual_tokens=True).features(pixels(), layers=[-1])
    wanted = in_numpy("ovis2", np.array(features.layers[-1]), hard=True)
    assert_close(features.visual_tokens, wanted)


def test_the_rows_that_stand_around_an_image_are_the_last_of_the_table(published, encoder):
    layout, _ = published
    name = "vte.weight" if layout == "ovis2" else "model.visual_embeddings_table.weight"
    table = dict(tensors(layout, TOWER, REST))[name]
    assert (np.array(encoder.visual.indicators) == table[-INDICATORS:]).all()


def test_layers_are_those_asked_for(encoder):
    assert set(encoder.features(pixels(), layers=[0, 2]).layers) == {0, 2}
    assert encoder.features(pixels()).layers == {}


def test_vectors_and_digest_are_those_of_the_tower(published, encoder):
    tower = aim_mlx.load(published[1])
    assert tower.features(pixels()).visual_tokens is None
    assert tower.weights_digest == encoder.weights_digest
    assert (tower.embed([photo(0)]) == encoder.embed([photo(0)])).all()


def test_visual_tokens_are_in_the_dtype_that_was_asked_for(published):
    half = aim_mlx.load(published[1], visual_tokens=True, dtype="float16")
    tokens = half.features(pixels()).visual_tokens
    assert tokens is not None and tokens.dtype == mx.float16


def test_only_ovis2_has_visual_tokens(tmp_path: Path):
    sail = save(tmp_path / "sail", "sail-vl")
    with pytest.raises(UsageError, match="this is SAIL-VL: leave out visual_tokens"):
        aim_mlx.load(sail, visual_tokens=True)
    alone = copy_case(tmp_path, "vision_absolute", "transformers")
    with pytest.raises(UsageError, match="this is an encoder by itself"):
        aim_mlx.load(alone, visual_tokens=True)
    with pytest.raises(UsageError, match="fine-tuned tower has no visual tokens"):
        aim_mlx.load(alone, visual_tokens=True, adapter=tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("vte.weight", None, "missing tensor"),
        ("visual_tokenizer.head.0.weight", None, "missing tensor"),
        ("vte.weight", ("F16", np.ones((36, 24))), "wrong shape"),
        ("vte.weight", ("F16", np.ones(37)), "wrong shape"),
        ("visual_tokenizer.head.0.weight", ("F16", np.ones((32, 64 * 3))), "wrong shape"),
        ("visual_tokenizer.head.0.weight", ("F16", np.ones((32, 8))), "wrong shape"),
        ("visual_tokenizer.head.1.bias", ("F16", np.ones(31)), "wrong shape"),
        ("visual_tokenizer.head.1.bias", ("F64", np.ones(32)), "dtype F64"),
        ("visual_tokenizer.head.1.weight", ("F16", np.full(32, np.nan)), "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_named_and_does_not_matter_to_the_tower(folder, name, values, reason):
    changed = {n: t for n, t in (read_tensors(weight_file(folder)) | {name: values}).items() if t}
    weights = weight_file(folder)
    write_tensors(weights, changed)
    write_index(folder, dict.fromkeys(changed, weights.name))
    assert aim_mlx.load(folder).model.config == TOWER
    with pytest.raises(CheckpointError, match=reason) as error:
        aim_mlx.load(folder, visual_tokens=True)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "stated",
    [{"hidden_stride": 1}, {"vocab_size": 36}, {"tokenize_function": "gumbel_argmax"}],
    ids=repr,
)
def test_a_config_that_contradicts_the_head_is_refused(folder, stated):
    values = config_json("ovis2")["visual_tokenizer_config"] | stated
    edit_json(folder / "config.json", visual_tokenizer_config=values)
    with pytest.raises(CheckpointError, match=next(iter(stated))):
        aim_mlx.load(folder, visual_tokens=True)


def test_shards_with_the_head_are_downloaded_when_they_are_asked_for(monkeypatch, tmp_path: Path):
    rest = replace(REST, visual_vocabulary=4000)  # for a shard of its own
    folder = save(tmp_path / "m", "ovis2", rest=rest)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    last = "model-00004-of-00004.safetensors"
    assert "vte.weight" in read_tensors(folder / last)
    with serving(monkeypatch, tmp_path / "home") as hub:
        commit = hub.add("owner/model", files)
        tower = fetch("owner/model", commit)
        assert last not in hub.paths("GET") and aim_mlx.load(tower).model.config == TOWER
        with pytest.raises(CheckpointError, match="not complete on this disk"):
            fetch("owner/model", commit, offline=True, visual_tokens=True)
        assert fetch("owner/model", commit, visual_tokens=True) == tower
        assert hub.paths("GET")[-1] == last
        assert fetch("owner/model", commit, offline=True, visual_tokens=True) == tower
        assert isinstance(aim_mlx.load(tower, visual_tokens=True), Ovis2)
