"""Damaged checkpoints of every layout: each is a model or one AimError, soon and in little memory.

What safetensors' own parser rejects is rejected here too. The cases are the same in every run.
"""

import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors

import aim_mlx
from aim_mlx.errors import AimError, CheckpointError, UntrainedModelWarning
from aim_mlx.probe.head_files import read_probe
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.load import load_weights
from aim_mlx.words.tokenizer import Tokenizer
from aim_mlx.words.zeroshot import ZeroShotHead
from tests.weights_files import PEAK, crafted
from tests.weights_mutations import MUTATIONS, Mutation, checkpoint, mutate, write

LONGEST_MESSAGE = 1500  # characters: values of the file are quoted in part
MOST_MEMORY = 256e6  # bytes, beyond the interpreter's own
LONGEST_CASE = 5.0  # seconds of the processor; one takes some milliseconds
# Cases of each seed: together more than ten thousand.
CASES = {
    ("aim-mlx", False): 830,
    ("ml-aim-mlx", False): 830,
    ("ml-aim-torch", False): 830,
    ("transformers", False): 830,
    ("timm", False): 830,
    ("native", False): 680,
    ("ml-aim-mlx", True): 680,
    ("transformers", True): 680,
    ("timm", True): 680,
    ("quantised", False): 680,
    ("lit", False): 100,
    ("ovis2", False): 380,
    ("ovis2", True): 380,
    ("ovis2-transformers", True): 380,
    ("sail-vl", False): 380,
    ("aimv1", False): 380,
    ("aimv1", True): 230,
    ("aim-mlx aimv1", False): 230,
}


def mutations(seed: tuple[str, bool]) -> Iterator[list[Mutation]]:
    """The cases of a seed, each one to three mutations."""
    random, names = Random(f"{seed}"), sorted(MUTATIONS)
    for _ in range(CASES[seed]):
        many = random.randint(1, 3)
        yield [(random.choice(names), random.randrange(2**32)) for _ in range(many)]


def outcome(folder: Path) -> str:
    """ "loaded" or "refused"; anything else that happens with a checkpoint is a failure."""
    started = time.process_time()
    try:
        checkpoint = open_checkpoint(folder)
        _check_against_the_parser(checkpoint)
        weights = load_weights(checkpoint)
        assert weights and all(np.isfinite(np.asarray(v)).all() for v in weights.values())
        _check_model(folder)
        result = "loaded"
    except AimError as error:
        text = str(error)
        assert text.strip() and text.isprintable(), ascii(text)
        assert len(text) <= LONGEST_MESSAGE, text[:3000]
        result = "refused"
    assert time.process_time() - started < LONGEST_CASE
    return result


def _check_against_the_parser(checkpoint: Checkpoint) -> None:
    for checked in checkpoint.files:
        with safetensors.safe_open(str(checked.path), framework="numpy") as file:
            assert set(file.keys()) == set(checked.tensors)


def _check_model(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedModelWarning)
        assert isinstance(aim_mlx.load(folder), aim_mlx.Encoder)


@contextmanager
def alarm(seconds: float):
    """Ends a case that hangs with the place where it does."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seed", CASES, ids=lambda seed: f"{seed[0]}{'-sharded' * seed[1]}")
def test_the_undamaged_checkpoints_load(tmp_path: Path, seed: tuple[str, bool]):
    assert outcome(write(tmp_path / "m", checkpoint(*seed))) == "loaded"


@pytest.mark.parametrize("seed", CASES, ids=lambda seed: f"{seed[0]}{'-sharded' * seed[1]}")
def test_a_damaged_checkpoint_is_a_model_or_a_refusal(tmp_path: Path, seed: tuple[str, bool]):
    sound, count = checkpoint(*seed), {"loaded": 0, "refused": 0}
    for chosen in mutations(seed):
        try:
            with alarm(60):
                count[outcome(write(tmp_path / "m", mutate(sound, chosen)))] += 1
        except BaseException as error:
            error.add_note(f"mutate(checkpoint(*{seed}), {chosen})")
            raise
    assert sum(count.values()) == CASES[seed]
    assert count["loaded"] > 0 and count["refused"] > CASES[seed] / 2, count


def test_ten_thousand_damaged_checkpoints_are_tried():
    assert sum(CASES.values()) >= 10_000


MB = 2**20
# Files whose parsed form is many times as large as they are: as large as they may be.
SWOLLEN = {
    "config of lists": ("config.json", b'{"a":[' + b"[]," * (4 * MB // 3 - 10) + b"1]}"),
    "config of objects": ("config.json", b'{"a":[' + b'{"":0},' * (4 * MB // 7 - 10) + b"1]}"),
    "header of lists": (
        "model.safetensors",
        crafted(b'{"a":[' + b"[]," * (2 * MB // 3 - 9) + b"1]}"),
    ),
    "header of tensors": (
        "model.safetensors",
        crafted(
            b"{"
            + b",".join(
                b'"%05d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i
                for i in range(36_000)
            )
            + b"}"
        ),
    ),
    "index of tensors": (
        "model.safetensors.index.json",
        b'{"weight_map":{'
        + b",".join(b'"%06d":"%06d.safetensors"' % (i, i) for i in range(120_000))
        + b"}}",
    ),
}


@pytest.mark.parametrize("name", SWOLLEN)
def test_a_file_of_the_largest_size_costs_bounded_memory_and_time(tmp_path: Path, name: str):
    file, content = SWOLLEN[name]
    sharded = file.endswith("index.json")
    folder = write(tmp_path / "m", checkpoint("transformers", sharded) | {file: content})
    code = """
from aim_mlx.errors import AimError
from aim_mlx.weights.checkpoint import open_checkpoint
before = peak()
try:
    open_checkpoint(sys.argv[1])
except AimError:
    print(peak() - before)
"""
    out = subprocess.run(
        [sys.executable, "-c", PEAK + code, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert out.returncode == 0, out.stderr
    assert 0 <= int(out.stdout) < MOST_MEMORY, out.stdout


# Parsed, JSON can take thirty times its size: half a gigabyte for the largest of these.
READERS = {
    "tokenizer.json": Tokenizer.load,
    "vocab.json": Tokenizer.load,
    "probe.json": read_probe,
    "labels.json": ZeroShotHead.load,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_over_the_largest_size_is_refused_before_it_is_read(tmp_path: Path, name: str):
    (tmp_path / "merges.txt").touch()
    with open(tmp_path / name, "wb") as file:
        file.truncate(16 * MB + 1)
    with pytest.raises(CheckpointError, match=f"has {16 * MB + 1} bytes, expected at most"):
        READERS[name](tmp_path)


def test_many_damaged_checkpoints_leave_no_memory_behind(tmp_path: Path):
    code = """
from pathlib import Path
from random import Random
from tests.test_weights_fuzz import outcome
from tests.weights_mutations import MUTATIONS, checkpoint, mutate, write
sound = checkpoint("ml-aim-mlx")
names = sorted(MUTATIONS)
for i in range(600):
    if i == 100:
        before = peak()
    random = Random(i)
    outcome(write(Path(sys.argv[1]), mutate(sound, [(random.choice(names), i)])))
print(peak() - before)
"""
    out = subprocess.run(
        [sys.executable, "-c", PEAK + code, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parent.parent,
    )
    assert out.returncode == 0, out.stderr
    assert 0 <= int(out.stdout) < 32e6, out.stdout
