"""MLX in this process, and in those that come of it."""

import os
import subprocess
import sys

import pytest

from tests.small import save, save_lit

# What a child does in the parent's stead; each ends the child with the error's text, or nothing.
RUN = """
import os, signal, sys
import numpy as np
import aim_mlx
def child(call):
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    signal.alarm(20)  # it would wait for ever
    try:
        call()
        print("computed", flush=True)
    except aim_mlx.AimError as error:
        print(error, flush=True)
    os._exit(0)
pixels = np.zeros((1, 56, 56, 3), np.float32)
photo = np.zeros((60, 80, 3), np.uint8)
model = sys.argv[1]
"""


def printed(code: str, model: object) -> str:
    command = [sys.executable, "-W", "ignore", "-c", RUN + code, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    return done.stdout


CALLS = [
    "aim_mlx.load(model)",
    "lit.embed([photo])",
    "lit.features(pixels)",
    "lit.encode_image(pixels)",
    "lit.encode_text(['a cat'])",
    "lit.classify([photo], ['cat', 'dog'])",
    "lit.weights_digest",
]


@pytest.fixture(scope="module")
def said_by_children(tmp_path_factory) -> dict[str, str]:
    """What a child of one process that has computed says to each of the calls."""
    code = "lit = aim_mlx.load(model)\n" + "\n".join(f"child(lambda: {call})" for call in CALLS)
    lines = printed(code, save_lit(tmp_path_factory.mktemp("lit") / "lit")).splitlines()
    return dict(zip(CALLS, lines, strict=True))


@pytest.mark.parametrize("call", CALLS)
def test_a_child_forked_after_the_parent_computed_is_told_to_be_spawned(said_by_children, call):
    assert 'get_context("spawn")' in said_by_children[call]


def test_a_head_of_a_probe_in_a_forked_child_says_so_too():
    code = "from tests.probes import mx, noisy_head, noisy_tokens\nhead = noisy_head()\n"
    code += "child(lambda: head(mx.array(noisy_tokens())))"
    assert 'get_context("spawn")' in printed(code, "-")


def test_a_child_forked_before_anything_was_computed_computes(tmp_path):
    code = "aim_mlx.load\nchild(lambda: aim_mlx.load(model).embed([photo]))"
    assert printed(code, save(tmp_path / "model")) == "computed\n"


@pytest.mark.parametrize(("given", "kept", "shown"), [(None, "0", "full"), ("1", "1", "11 bits")])
def test_products_of_float32_are_in_full_unless_the_user_wants_them_rounded(given, kept, shown):
    environment = {name: value for name, value in os.environ.items() if name != "MLX_ENABLE_TF32"}
    environment |= {"MLX_ENABLE_TF32": given} if given else {}
    code = """
import os
from aim_mlx.cli.doctor import doctor
doctor()
print(os.environ["MLX_ENABLE_TF32"])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    *lines, value = done.stdout.splitlines()
    (float32,) = [line for line in lines if line.startswith("float32 ")]
    assert value == kept and shown in float32
