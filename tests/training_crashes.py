"""Trainings that are killed at any of their file operations, or at any time, and then resumed.

As a program, `python -m tests.training_crashes JOB`: every run is a process of its own, forked
before anything was computed, as MLX's threads do not survive a fork.
"""

import csv
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from aim_mlx.data.labelled import Data
from aim_mlx.errors import AimError
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.finetune.run import finetune
from aim_mlx.lit_training.config import TEXT_SIZES, TextSize, TrainConfig
from aim_mlx.lit_training.run import train_lit
from aim_mlx.pretrain.config import CONFIGS, PretrainConfig, Sizes
from aim_mlx.pretrain.run import pretrain
from aim_mlx.probe.config import protocol
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.run import Plan, train_probe
from aim_mlx.tokens import cache as token_cache
from aim_mlx.training import loop
from tests.small import encoder, photo
from tests.store_crashes import Disk

_RECORD = 64 + 2 * 16 * 64  # bytes of an image's tokens


def write_data(folder: Path) -> Path:
    """28 photos in two classes, one of which cannot be decoded, and captions for them."""
    rows = [("path", "caption")]
    for seed in range(28):
        path = folder / "cat dog".split()[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(seed)).save(path)
        if seed == 3:
            path.write_bytes(b"not an image")
        rows.append((str(path), f"picture {seed} by hand"))
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """What a finished training leaves, without the tokens and what holds times."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("training/tokens/") and path.name != ".lock":
            kept[name] = path.read_bytes()
    return kept


def train(kind: str, data: Path, folder: Path) -> None:
    """A short training that keeps its state after every step, and tokens in several shards."""
    with (
        mock.patch.object(token_cache, "block_size", lambda *_: 4),
        mock.patch.object(token_cache, "_SHARD_BYTES", 8 * _RECORD),
        mock.patch.object(loop, "CHECKPOINT_SECONDS", 0),
        mock.patch.dict(TEXT_SIZES, tiny=TextSize(32, 88, 1, 2, 8_192, 24)),
        mock.patch.dict(CONFIGS, nano=Sizes((32, 88, 1, 2, 56), (32, 88, 1, 2), 8_192)),
        mock.patch.object(os, "fsync", lambda _: None),  # no power fails here
    ):
        if kind == "probe":
            plan = Plan(protocol("fast", epochs=2, batch_size=8, learning_rates=(0.01,)))
            train_probe(Data(str(data)), folder, encoder, plan)
        elif kind == "finetune":
            config = FinetuneConfig(epochs=2, batch_size=8, rank=2)
            finetune(Data(str(data)), folder, encoder, config)
        elif kind == "pretrain":
            config = PretrainConfig(epochs=2, batch_size=8, held_out=0.25, vocab_size=600)
            pretrain(data / "pairs.csv", folder, config)
        else:
            config = TrainConfig(epochs=2, batch_size=8, held_out=0.25)
            train_lit(data / "pairs.csv", folder, encoder, config)


def killed_trainings(job: dict[str, Any]) -> None:
    """Kills a run at operations and at random times, and runs the same again after each.

    `job`: kind ("probe", "lit", "pretrain", "finetune"), data, into; every `every`-th operation and
    the `last` ones; `random` times. Leaves into/whole, of a run that was not killed, and
    a folder for each other run; fails where what was left is neither sound nor refused. Prints how
    many operations there are.
    """
    kind, data, into = job["kind"], Path(job["data"]), Path(job["into"])
    started = time.monotonic()
    _forked(lambda: _counted(kind, data, into))
    seconds = time.monotonic() - started
    count = int((into / "count").read_text())
    for n in (n for n in range(count) if n % job["every"] == 0 or n >= count - job["last"]):
        folder = into / f"{n:04}"
        code = _forked(lambda n=n, folder=folder: _watched(kind, data, folder, n))
        assert code == -signal.SIGKILL, f"{n}: {code}"
        _resume(kind, data, folder)
    rng = np.random.default_rng(0)
    for i in range(job["random"]):
        folder = into / f"random-{i}"
        _forked(lambda folder=folder: train(kind, data, folder), rng.uniform(0.1, 1) * seconds)
        _resume(kind, data, folder)
    print(count)


def _counted(kind: str, data: Path, into: Path) -> None:
    disk = Disk(-1, _kill)
    with disk.watched():
        train(kind, data, into / "whole")
    (into / "count").write_text(str(disk.count))


def _watched(kind: str, data: Path, folder: Path, n: int) -> None:
    with Disk(n, _kill).watched():
        train(kind, data, folder)


def _resume(kind: str, data: Path, folder: Path) -> None:
    """Looks at what was left, then runs the same again."""
    shutil.rmtree(folder.with_name("left"), ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, folder.with_name("left"))
    code = _forked(lambda: _load(kind, folder.with_name("left")))
    assert code == 0, f"{folder.name}: loading what was left ended with {code}"
    code = _forked(lambda: train(kind, data, folder))
    assert code == 0, f"{folder.name}: the same run again ended with {code}"


def _load(kind: str, folder: Path) -> None:
    """What there is loads, or is refused as a user's error."""
    try:
        if kind in ("probe", "finetune"):
            AttentiveProbe.load(folder, encoder()).predict([np.zeros((56, 56, 3), np.uint8)])
        else:
            from aim_mlx.loading import load

            load(str(folder))
    except AimError:
        pass


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _forked(work: Callable[[], None], delay: float | None = None) -> int:
    """How work in a process of its own ended, killed after `delay` seconds if that is given."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    killed_trainings(json.loads(sys.argv[1]))
