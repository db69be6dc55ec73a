"""The small models that the package brings, on drawings in a style that they never saw."""

import json
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

import aim_mlx
from aim_mlx.cli import main as cli
from aim_mlx.config import LiTConfig
from aim_mlx.data.labelled import Data
from aim_mlx.data.pairs import read_pairs
from aim_mlx.lit_training.config import TEXT_SIZES
from aim_mlx.registry import DEFAULT_LIT, DEFAULT_MODEL, MODELS, STAND_INS
from tests import small

EXAMPLES = Path(__file__).parent.parent / "examples"
TABLE = EXAMPLES / "drawings.csv"
sys.path.insert(0, str(EXAMPLES / "nano"))
import measures  # noqa: E402

NANO, LIT = STAND_INS.values()
# Of the 288 drawings in examples/, as measured when the weights were made.
RECORDED = {
    "recall@1": 0.340,
    "recall@10": 0.726,
    "subgroup": 0.253,
    "subgroup, by its members": 0.347,
}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_words_find_drawings_as_often_as_recorded():
    lit = aim_mlx.load_lit(LIT)
    vectors = measures.embedder(lit, "attention")
    pairs, skips = read_pairs(TABLE)
    drawings = Data(TABLE).labelled()
    assert not skips and len(pairs.paths) == len(drawings.items) == 288
    found = measures.words(lit, pairs, vectors)
    kinds = measures.kinds_of(pairs, drawings)
    found |= measures.zero_shot(lit, drawings, kinds, len(pairs.paths), vectors)
    for figure, recorded in RECORDED.items():
        low, high = found[figure].interval
        assert low <= recorded <= high, (figure, found[figure])


def test_both_tell_drawings_apart_and_began_as_one_encoder():
    paths = [str(path) for path in sorted((EXAMPLES / "drawings").glob("*.png"))[:4]]
    told = []
    for name in (NANO, LIT):
        vectors = aim_mlx.load(name).embed(paths, pooling="mean")
        # It has learned: without weights of use, all pictures are nearly alike.
        assert (vectors @ vectors.T)[~np.eye(4, dtype=bool)].max() < 0.98
        folder = MODELS[name].folder
        assert folder
        told.append((folder / "config.json").read_text())
    (pretrained,) = json.loads(told[0])["provenance"]["files"]
    assert pretrained["sha256"] in told[1] and '"aim-mlx fuse"' in told[1]


def test_they_are_small_and_name_no_place_on_a_disk():
    for name, most in ((NANO, 6e6), (LIT, 9e6)):
        folder = MODELS[name].folder
        assert folder and sum(path.stat().st_size for path in folder.iterdir()) < most
        assert (folder / "model.safetensors").stat().st_size < 8e6
        told = (folder / "config.json").read_text()
        assert '"source": "' in told and '"/' not in told


def test_the_text_tower_has_the_sizes_that_a_training_can_ask_for():
    config = MODELS[LIT].config
    assert isinstance(config, LiTConfig)
    text = config.text
    sizes = (text.embed_dim, text.mlp_hidden_dim, text.num_blocks, text.num_heads, text.vocab_size)
    assert (*sizes, config.projection_dim) == astuple(TEXT_SIZES["nano"])


def test_without_a_name_commands_take_the_small_model_and_say_so(tmp_path, capsys):
    assert cli._run(["embed", str(EXAMPLES / "drawings"), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert f"{DEFAULT_MODEL} is not downloaded: using {NANO}" in said
    assert f"for photos: --model {DEFAULT_MODEL}" in said
    assert aim_mlx.EmbeddingStore(tmp_path / "out").manifest["model"]["model"] == NANO
    options = ["--labels", "a face,a flag"]
    assert cli._run(["classify", str(EXAMPLES / "drawings"), *options]) == 0
    said = capsys.readouterr()
    assert f"{DEFAULT_LIT} is not downloaded: using {LIT}" in said.err
    assert len(said.out.splitlines()) == 288


def test_without_a_name_a_downloaded_model_comes_first(tmp_path, monkeypatch, capsys):
    small.save(tmp_path / "large")
    monkeypatch.setattr("aim_mlx.weights.hub.cached", lambda *_: tmp_path / "large")
    monkeypatch.setattr("aim_mlx.loading.locate", lambda *_, **__: tmp_path / "large")
    assert cli._run(["embed", str(EXAMPLES / "photos"), "-o", str(tmp_path / "out")]) == 0
    assert NANO not in capsys.readouterr().err
    assert aim_mlx.EmbeddingStore(tmp_path / "out").manifest["model"]["model"] == DEFAULT_MODEL


def test_a_revision_of_what_the_package_brings_is_refused():
    with pytest.raises(aim_mlx.UsageError, match="comes with this package: leave out the revision"):
        aim_mlx.load(NANO, revision="main")
