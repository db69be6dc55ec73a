"""AIMv1's encoder and its head become one folder for `aim-mlx probe`; without torch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.encoder.digest import streamed_digest
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.registry import MODELS
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.inspect import describe
from aim_mlx.weights.load import iter_weights
from convert.__main__ import run
from convert.classifier import read_classifier
from tests.commands import run as aim_mlx_run
from tests.small import AIMV1, SMALL, photo, save
from tests.test_weights_checkpoint import ML_AIM
from tests.weights_files import DATA, copy_case, read_tensors, write_tensors

CASE = DATA / "aimv1_probe"
HEAD = CASE / "head.safetensors"


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    folder = copy_case(tmp_path, "aimv1_probe", "ml_aim_torch")
    (folder / "config.json").write_text(json.dumps(ML_AIM))
    return folder


def converted(*given) -> int:
    return run([str(each) for each in given])


def check_logits(probe: AttentiveProbe) -> None:
    case = load_file(CASE / "io.safetensors")
    tokens = probe.encoder.tokens(mx.array(case["pixels_nchw"].transpose(0, 2, 3, 1)), probe.layers)
    # float32 sums in another order than PyTorch's; 2e-6 measured.
    np.testing.assert_allclose(np.array(probe.head(tokens)), case["logits"], atol=5e-5)


def test_the_folder_is_a_probe_that_gives_the_references_logits(backbone, tmp_path, capsys):
    out = tmp_path / "out"
    assert converted(backbone, HEAD, out, "--layers", "1,2") == 0
    said = capsys.readouterr()
    assert said.out == "" and "a probe of 7 classes on the mean of blocks 1, 2" in said.err
    check_logits(AttentiveProbe.load(out))
    record = json.loads((out / "probe.json").read_text())
    assert record["training"]["head"]["name"] == "head.safetensors"
    assert record["classes"] == list("0123456")


def test_it_predicts_wherever_it_is_moved_to(backbone, tmp_path, capsys):
    assert converted(backbone, HEAD, tmp_path / "out", "--layers", "1,2") == 0
    moved = shutil.move(tmp_path / "out", tmp_path / "moved")
    Image.fromarray(photo(0)).save(tmp_path / "photo.png")
    code, lines, _ = aim_mlx_run(capsys, "probe", "predict", moved, tmp_path / "photo.png")
    assert code == 0 and lines.split("\t")[1] in "0123456"


def test_the_dtype_that_was_asked_for_is_what_the_probe_computes_in(backbone, tmp_path):
    out = tmp_path / "out"
    given = [backbone, HEAD, out, "--layers", "1,2", "--dtype", "bfloat16"]
    assert converted(*given) == 0
    assert AttentiveProbe.load(out).encoder.dtype == mx.bfloat16


def test_an_encoder_and_head_in_one_file_are_taken_apart(backbone, tmp_path):
    file = backbone / "model.safetensors"
    write_tensors(file, read_tensors(file) | read_tensors(HEAD))
    assert describe(backbone)["beside"] == {"head": 6}
    whole = aim_mlx.load(backbone)
    assert (
        whole.weights_digest
        == aim_mlx.load(CASE / "ml_aim_torch", config=whole.model.config).weights_digest
    )
    assert converted(backbone, tmp_path / "unknown") == 2  # which blocks it takes
    assert not (tmp_path / "unknown").exists()
    (backbone / "config.json").write_text(json.dumps(ML_AIM | {"probe_layers": [1, 2]}))
    assert converted(backbone, tmp_path / "out") == 0
    check_logits(AttentiveProbe.load(tmp_path / "out"))


def test_the_head_that_is_saved_with_an_encoder_must_be_one(backbone, capsys):
    file = backbone / "model.safetensors"
    odd = {"head.extra": ("F32", np.zeros(3, np.float32))}
    write_tensors(file, read_tensors(file) | read_tensors(HEAD) | odd)
    assert converted(backbone, backbone.parent / "out") == 4
    assert "unexpected tensor 'head.extra'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "blocks"),
    [
        ("aim_600m_2bimgs_attnprobe_head_last_layers", [], (2, 3, 4, 5, 6, 7)),
        ("aim_600m_2bimgs_attnprobe_head_best_layers", [], (1, 2, 3)),
        ("aim_600m_2bimgs_attnprobe_head_best_layers", ["last"], (2, 3, 4, 5, 6, 7)),
        ("mine", ["best"], (1, 2, 3)),
        ("mine", ["0,-1"], (0, -1)),
    ],
)
def test_the_published_name_or_the_option_says_which_blocks(
    name, options, blocks, tmp_path, monkeypatch
):
    config = replace(AIMV1, num_blocks=8)
    spec = replace(MODELS["aim-600M-2B-imgs"], config=config, best_layers=(1, 2, 3))
    monkeypatch.setattr("convert.classifier.MODELS", {spec.name: spec})
    folder = save(tmp_path / "m", config)
    head = Path(shutil.copy(HEAD, tmp_path / f"{name}.safetensors"))
    option = options[0] if options else None
    probe = read_classifier(head, folder, open_checkpoint(folder), option, None, tmp_path)
    assert probe.layers == blocks


def test_classes_have_the_names_of_a_file(backbone, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg") + "\n")
    given = [backbone, HEAD, tmp_path / "out", "--layers", "1,2", "--classes", names]
    assert converted(*given) == 0
    assert json.loads((tmp_path / "out/probe.json").read_text())["classes"] == list("abcdefg")
    names.write_text("a\nb\n")
    assert converted(*given, "--overwrite") == 2
    assert "this head has 7 outputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["m", "head.safetensors", "out"], 2, "which blocks head.safetensors takes"),
        (["m", "head.safetensors", "out", "--layers", "best"], 2, "best blocks"),
        (["m", "head.safetensors", "out", "--layers", "last"], 2, "has 3"),
        (["m", "head.safetensors", "out", "--layers", "a"], 2, "--layers must be best, last"),
        (["m", "head.safetensors", "out", "--layers", "9"], 2, "from -3 to 2"),
        (["m", "out", "--layers", "1"], 2, "are for the head of a probe"),
        (["m", "head.safetensors", "m", "out"], 2, "got 3 sources"),
        (["m", "head.safetensors", "out.safetensors", "--layers", "1"], 2, "become a folder"),
        (["narrow", "head.safetensors", "out", "--layers", "1"], 4, "64 channels"),
        (["m", "m/model.safetensors", "out", "--layers", "1"], 4, "unexpected tensor"),
        (["m", "nothing.pth", "out", "--layers", "1"], 2, "does not exist"),
    ],
)
def test_what_makes_no_probe_is_refused_before_anything_is_written(
    given, code, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "m", SMALL)
    save(tmp_path / "narrow", replace(SMALL, embed_dim=32, num_heads=1))
    shutil.copy(HEAD, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert converted(*given) == code
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_digest_over_streamed_weights_is_that_of_the_loaded_network(tmp_path):
    for config in (SMALL, AIMV1):
        folder = save(tmp_path / config.family, config)
        streamed = streamed_digest(iter_weights(open_checkpoint(folder)))
        assert streamed == aim_mlx.load(folder).weights_digest
