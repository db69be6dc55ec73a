"""An AIMv1 encoder wherever an AIMv2 encoder serves: the real command line."""

import json
from dataclasses import replace

import numpy as np
import pytest

import aim_mlx
from aim_mlx.bridge import Embedder
from aim_mlx.cli import main as cli
from tests.commands import run
from tests.digits import write_digits
from tests.small import AIMV1, SMALL_LIT, save, save_lit


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "model", AIMV1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits", 12)


@pytest.fixture(scope="module")
def tuned(model, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "tuned"
    given = ["finetune", digits, "-o", out, "--model", model, "--epochs", 2, "--batch-size", 30]
    given += ["--learning-rate", 0.003, "--no-flip", "--targets", "q,v,mlp", "--rank", 4]
    assert cli._run([str(each) for each in given]) == 0
    return out


def test_its_embeddings_are_searched(capsys, model, digits, tmp_path):
    store = tmp_path / "store"
    code, _, _ = run(capsys, "embed", digits / "3", "-o", store, "--model", model)
    assert code == 0
    photo = sorted((digits / "3").iterdir())[4]
    code, lines, _ = run(capsys, "search", store, "--image", photo, "-k", "3")
    assert code == 0 and len(lines.splitlines()) == 3 and photo.name not in lines
    encoder = json.loads((store / "manifest.json").read_text())["encoder"]
    assert encoder["family"] == "aimv1"


def test_the_mean_of_some_blocks_is_embedded(model, digits):
    encoder = aim_mlx.load(model)
    photos = sorted((digits / "3").iterdir())[:2]
    ours = encoder.embed(photos, layers=[0, 1])
    outputs = encoder.features(encoder.preprocess(photos), layers=[0, 1]).layers
    mean = sum(np.array(output).mean(axis=1) for output in outputs.values())
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, expected, atol=1e-5)  # float32 sums in another order


def test_its_neighbours_and_a_probe_on_its_blocks_know_digits(capsys, model, digits, tmp_path):
    code, lines, _ = run(capsys, "knn", digits, "--model", model, "--k", "3", "--json")
    assert code == 0
    probe = tmp_path / "probe"
    given = ["probe", "train", digits, "-o", probe, "--model", model, "--layers", "0,1"]
    assert run(capsys, *given, "--learning-rates", "0.01", "--epochs", "6")[0] == 0
    code, lines, _ = run(capsys, "probe", "eval", probe, digits, "--split", "all", "--json")
    assert (
        code == 0 and json.loads(lines.splitlines()[-1])["figures"]["accuracy"] > 0.3
    )  # chance: 0.1


def test_adapters_reach_both_products_of_its_feed_forward(tuned):
    from safetensors.numpy import load_file

    names = load_file(tuned / "adapters.safetensors")
    block = {name.split(".", 3)[3] for name in names if name.startswith("trunk.blocks.1.")}
    pairs = ("attn.qkv.q", "attn.qkv.v", "mlp.fc1", "mlp.fc2")
    assert block == {f"{pair}.lora_{letter}" for pair in pairs for letter in "ab"}


def test_what_is_fine_tuned_is_fused_but_not_for_transformers(
    capsys, model, tuned, digits, tmp_path
):
    fused = tmp_path / "fused"
    code, _, talk = run(capsys, "fuse", model, tuned, fused, "--layout", "transformers")
    assert code == 2 and "transformers has no AIMv1" in talk
    assert run(capsys, "fuse", model, tuned, fused)[0] == 0
    photos = sorted((digits / "3").iterdir())[:3]
    # The adapter in the weights, or added to them as they are loaded.
    ours, theirs = aim_mlx.load(fused), aim_mlx.load(model, adapter=tuned)
    np.testing.assert_allclose(ours.embed(photos), theirs.embed(photos), atol=1e-6)
    assert run(capsys, "probe", "predict", fused, digits / "3")[0] == 0


def test_it_is_quantised_inspected_and_loaded_again(capsys, model, digits, tmp_path):
    small = tmp_path / "small"
    code, _, talk = run(capsys, "convert", model, small, "-q", "--q-group-size", "32")
    assert code == 0 and "cosine" in talk
    code, lines, _ = run(capsys, "inspect", small, "--json")
    said = json.loads(lines)
    assert code == 0 and said["sizes"]["family"] == "aimv1"
    photos = sorted((digits / "5").iterdir())[:3]
    ours, whole = aim_mlx.load(small).embed(photos), aim_mlx.load(model).embed(photos)
    cosines = (ours * whole).sum(axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-7  # 8 bits in groups of 32


def test_it_is_exported_and_serves_a_host_app(capsys, model, digits, tmp_path):
    code, _, talk = run(capsys, "export-model", model, tmp_path / "a.mlxfn", "--dtype", "float32")
    assert code == 0, talk
    photos = [str(path) for path in sorted((digits / "5").iterdir())[:2]]
    answer = Embedder(str(model)).embed_files(photos)
    assert answer["ok"] and answer["shape"] == [2, 64]


def test_a_text_tower_can_stand_beside_it(tmp_path):
    config = replace(SMALL_LIT, vision=AIMV1)
    lit = aim_mlx.load_lit(save_lit(tmp_path / "lit", config))
    assert lit.model.config == AIMV1
    pixels = np.random.default_rng(0).normal(size=(2, 56, 56, 3)).astype(np.float32)
    assert lit.logits(pixels, ["a cat", "a dog"]).shape == (2, 2)


def test_a_name_of_aimv1_says_where_the_file_is_and_how_to_convert_it(capsys, tmp_path):
    code, _, talk = run(capsys, "download", "aim-600M-2B-imgs")
    assert code == 4 and talk.count("\n") == 1
    assert "resolve/main/aim_600m_2bimgs_attnprobe_backbone.pth" in talk
    assert "python -m convert aim_600m_2bimgs_attnprobe_backbone.pth FOLDER" in talk
