"""`aim-mlx doctor --self-test`: the machine's numbers against those that the package carries."""

import re
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aim_mlx import self_test
from aim_mlx.backend import mx
from aim_mlx.cli import main as cli
from aim_mlx.self_test import Difference


@pytest.fixture(scope="module", autouse=True)
def computed_once():
    """The networks run once for the whole file: some seconds on two cores."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("outputs", "gradients"):
            patch.setattr(self_test, name, cache(getattr(self_test, name)))
        yield


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return load_file(self_test.EXPECTED)


def test_this_machine_passes_and_says_so_in_one_line(capsys):
    assert cli._run(["doctor", "--self-test"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"aim-mlx .*, MLX .*: float32 \S+, float16 .*, pixels \S+: passed", line)


def test_a_number_of_a_hundredth_beside_the_reference_fails(
    capsys, monkeypatch, tmp_path, expected
):
    wrong = {name: value.copy() for name, value in expected.items()}
    wrong["tokens"][0, 3, 5] += 1e-2
    save_file(wrong, tmp_path / "wrong.safetensors")
    monkeypatch.setattr(self_test, "EXPECTED", tmp_path / "wrong.safetensors")
    assert cli._run(["doctor", "--self-test"]) == 1
    line = capsys.readouterr().out
    assert re.search(r"FAILED: float32 differs by \S+ in tokens, at most 6e-05$", line.strip())


@pytest.mark.parametrize("name", ["tokens", "logits", "native tokens", "vector of the photo"])
def test_each_output_is_compared(expected, name):
    wrong = expected | {name: expected[name] * np.float32(1.01)}
    outputs = self_test.outputs(mx.float32, expected["photo"].tobytes())
    found = self_test._largest("float32", outputs, wrong)
    assert (found.output, found.passed) == (name, False)


def test_every_parameter_has_a_gradient_that_is_compared(expected):
    gradients = self_test.gradients()
    assert gradients.keys() == self_test.weights(self_test.LIT).keys()
    assert self_test._largest("gradients", gradients, expected).passed
    for name in gradients:
        wrong = gradients | {name: gradients[name] * np.float32(1.01)}
        assert not self_test._largest("gradients", wrong, expected).passed, name


def test_a_number_that_is_none_fails(expected):
    outputs = self_test.outputs(mx.float32, expected["photo"].tobytes())
    outputs = outputs | {"logits": np.full_like(outputs["logits"], np.nan)}
    found = self_test._largest("float32", outputs, expected)
    assert (found.output, found.passed) == ("logits", False)


def test_the_noise_has_the_bits_that_it_had():
    """Other bits would be other networks than those that the reference computed."""
    values = self_test.noise("name", (4,)) * 2**23
    assert values.tolist() == [6414663, 3435434, 1410692, 7110718]


def test_the_line_says_what_failed():
    line = self_test.line([Difference("float16", "logits", 0.5, 0.02)])
    assert line.endswith(
        "float16 5.0e-01: FAILED: float16 differs by 5.0e-01 in logits, at most 2e-02"
    )
