"""`aim-mlx finetune` and `aim-mlx fuse`: the real command line."""

import json

import numpy as np
import pytest

from aim_mlx.cli import main as cli
from tests.commands import run
from tests.digits import write_digits
from tests.small import save

QUICK = ["--epochs", "2", "--batch-size", "30", "--learning-rate", "0.003", "--no-flip"]
QUICK += ["--targets", "q,v,mlp", "--rank", "4"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Digits, a model, and a classifier made of them."""
    folder = tmp_path_factory.mktemp("scene")
    digits, model = write_digits(folder / "digits", 8), save(folder / "model")
    out = folder / "out"
    given = ["finetune", digits, "-o", out, "--model", model, *QUICK]
    assert cli._run([str(each) for each in given]) == 0
    return digits, model, out


def test_fine_tuning_says_what_it_takes_and_gives_epochs_and_figures(capsys, scene, tmp_path):
    digits, model, _ = scene
    out = tmp_path / "out"
    code, lines, talk = run(
        capsys, "finetune", digits, "-o", out, "--model", model, "--json", *QUICK
    )
    events = [json.loads(line) for line in lines.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "warning"]
    assert code == 0 and kinds == ["epoch", "epoch", "summary"]
    assert events[-1]["figures"]["images"] == events[-1]["images"]["test"] == 10
    assert "weights are trained, in 4 steps" in talk and "MB of memory" in talk
    assert "epoch 2: loss" in talk and "report.html" in talk
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora" and config["num_layers"] == 3
    assert config["lora_parameters"] == {
        "rank": 4, "scale": 4.0, "dropout": 0.1, "keys": ["q", "v", "mlp"],
    }  # fmt: skip


def test_the_classifier_predicts_and_is_evaluated_as_a_probe(capsys, scene):
    digits, _, out = scene
    code, lines, _ = run(capsys, "probe", "predict", out, digits / "3")
    assert code == 0 and len(lines.splitlines()) == 8
    code, lines, _ = run(capsys, "probe", "eval", out, digits)
    figures = json.loads((out / "probe.json").read_text())["metrics"]["test"]
    assert code == 0 and lines.startswith(f"accuracy\t{figures['accuracy']:.2%}")


@pytest.mark.parametrize("layout", ["aim-mlx", "transformers"])
def test_a_fused_encoder_is_one_as_any_other(capsys, scene, tmp_path, layout):
    digits, model, out = scene
    code, _, talk = run(capsys, "fuse", model, out, tmp_path / "fused", "--layout", layout)
    assert code == 0 and "in its weights" in talk
    vectors = []
    for name in (tmp_path / "fused", model):
        target = tmp_path / f"{len(vectors)}.npy"
        assert run(capsys, "embed", digits / "1", "-o", target, "--model", name)[0] == 0
        vectors.append(np.load(target))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    code, lines, _ = run(capsys, "probe", "predict", tmp_path / "fused", digits / "3")
    assert code == 0 and len(lines.splitlines()) == 8
    code, _, talk = run(capsys, "fuse", model, out, tmp_path / "fused", "--layout", layout)
    assert code == 5 and "not empty" in talk


def test_a_classifier_is_exported_once_it_is_fused(capsys, scene, tmp_path):
    _, model, out = scene
    target = tmp_path / "digits.mlxfn"
    code, _, talk = run(capsys, "export-model", model, target, "--head", out)
    assert code == 2 and "write both as a model with aim-mlx fuse" in talk
    fused = tmp_path / "fused"
    assert run(capsys, "fuse", model, out, fused)[0] == 0
    assert run(capsys, "export-model", fused, target, "--head", fused)[0] == 0


@pytest.mark.parametrize(
    "options, words",
    [
        (["--targets", "q,x"], "targets must be one of q, k, v, proj, mlp, got 'x'"),
        (["--last-blocks", "4"], "this model has 3 blocks: --last-blocks must be at most that"),
        (["--head", "ep9"], "head must be one of"),
        (["--from-probe", "nowhere"], "'nowhere'|nowhere has no probe.json"),
        (["--memory-gb", "-1"], "--memory-gb must be from 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(capsys, scene, tmp_path, options, words):
    digits, model, _ = scene
    given = ["finetune", digits, "-o", tmp_path / "out", "--model", model, *options]
    code, lines, talk = run(capsys, *given)
    assert code == 2 and not lines and not (tmp_path / "out").exists()
    assert any(each in talk for each in words.split("|")) and talk.count("\n") == 1


def test_an_adapter_of_another_encoder_is_refused(capsys, scene, tmp_path):
    _, _, out = scene
    other = save(tmp_path / "other", trained=True)
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    code, _, talk = run(capsys, "fuse", other, out, tmp_path / "fused")
    assert code == 4 and "this adapter belongs to" in talk
