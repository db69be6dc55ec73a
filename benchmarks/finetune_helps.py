"""Does fine-tuning help? A probe, LoRA and full fine-tuning on three small sets of real images.

python -m benchmarks.finetune_helps --model FOLDER: prints a table. The test images of a set are the
same for all; the seed decides what of the others is chosen by, the first weights and the order.
Beside the model stands one of its size with random weights; of shuffled labels nothing is to be
learned. Intervals of 95% are over the test images, each counted by its mean over the seeds.
"""

import argparse
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from aim_mlx.data.labelled import Data
from aim_mlx.errors import UntrainedModelWarning
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.finetune.run import finetune
from aim_mlx.loading import load
from aim_mlx.probe.config import protocol
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.run import Plan, train_probe
from aim_mlx.weights.initial import initial_weights
from aim_mlx.weights.save import provenance, save_checkpoint
from benchmarks.processes import write_result

Images = dict[str, list[Image.Image]]  # by class


def digits(_: Path) -> Images:
    """scikit-learn's scans (BSD-3)."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)  # pyright: ignore[reportGeneralTypeIssues]
    grey = (255 - scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return {str(d): [Image.fromarray(each) for each in grey[labels == d]] for d in range(10)}


def cells(folder: Path) -> Images:
    """Solar cells by electroluminescence, whole or defective (elpv-dataset, CC BY-NC-SA 4.0)."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, "elpv-dataset"], check=True)
    found: Images = {"whole": [], "defective": []}
    with zipfile.ZipFile(next(folder.glob("elpv_dataset*.whl"))) as wheel:
        for line in wheel.read("elpv_dataset/data/labels.csv").decode().splitlines():
            name, likely, _ = line.split()
            if float(likely) in (0.0, 1.0):  # the others are not sure
                with wheel.open(f"elpv_dataset/data/{name}") as file:
                    kind = "defective" if float(likely) else "whole"
                    found[kind].append(Image.open(file).convert("RGB"))
    return found


def faces(_: Path) -> Images:
    """Faces and other parts of photographs, a subset of LFW that scikit-image has (research)."""
    from skimage.data import lfw_subset

    images = [Image.fromarray((255 * each).astype(np.uint8)) for each in lfw_subset()]
    return {"face": images[:100], "other": images[100:]}


@dataclass(frozen=True)
class Set:
    """Images of each class, how many train and test, and how fine-tuning is to see them."""

    images: Callable[[Path], Images]
    train: int
    test: int
    views: dict[str, Any] = field(default_factory=dict)


SETS = {
    "digits": Set(digits, 30, 50, {"flip": False, "smallest_crop": 0.8, "jitter": 0.0}),
    "solar cells": Set(cells, 100, 150, {"smallest_crop": 1.0, "jitter": 0.0}),
    "faces": Set(faces, 40, 60),
}
METHODS = ("random encoder, probe", "probe", "LoRA", "full", "shuffled, probe", "shuffled, LoRA")


def write_set(folder: Path, chosen: Set, images: Images) -> None:
    """FOLDER/right and FOLDER/shuffled, whose labels are dealt out by chance in each split."""
    rng = np.random.default_rng(0)
    rows = []
    for name, each in images.items():
        for place, number in enumerate(rng.permutation(len(each))[: chosen.train + chosen.test]):
            rows.append(("train" if place < chosen.train else "test", name, each[number]))
    dealt = {
        each: iter(rng.permutation([name for split, name, _ in rows if split == each]))
        for each in ("train", "test")
    }
    for number, (split, name, image) in enumerate(rows):
        for kind, label in (("right", name), ("shuffled", str(next(dealt[split])))):
            path = folder / kind / split / label / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def write_random(folder: Path, model: str) -> str:
    """A checkpoint of the model's sizes with random weights."""
    like = load(model)
    weights, history = initial_weights(like.model.config, 0), provenance(trained=False)
    save_checkpoint(folder, weights, like.model.config, like.preprocessing, history)
    return str(folder)


def right(folder: Path, data: Path) -> np.ndarray:
    """Which test images a classifier has right, bool (n,)."""
    paths = sorted((data / "test").rglob("*.png"))
    said = AttentiveProbe.load(folder).predict(map(str, paths))
    return np.array([name == path.parent.name for name, path in zip(said, paths, strict=True)])


def runs(folder: Path, chosen: Set, model: str, random: str, epochs: int, seed: int) -> Iterator:
    """The methods' names, in the order of METHODS, with what each has right."""

    def probe(out: str, encoder: str, kind: str) -> np.ndarray:
        plan = Plan(protocol("fast", seed=seed))
        train_probe(Data(folder / kind), made / out, lambda: load(encoder), plan)
        return right(made / out, folder / kind)

    def tuned(out: str, start: str, kind: str, full: bool = False) -> np.ndarray:
        config = FinetuneConfig(full=full, epochs=epochs, seed=seed, **chosen.views)
        finetune(Data(folder / kind), made / out, lambda: load(model), config, probe=made / start)
        return right(made / out, folder / kind)

    made = folder / f"seed {seed}"
    made.mkdir()
    yield METHODS[0], probe("random", random, "right")
    yield METHODS[1], probe("probe", model, "right")
    yield METHODS[2], tuned("lora", "probe", "right")
    yield METHODS[3], tuned("full", "probe", "right", full=True)
    if seed == 0:
        yield METHODS[4], probe("shuffled", model, "shuffled")
        yield METHODS[5], tuned("shuffled lora", "shuffled", "shuffled")


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of values (n,), with its interval of 95%."""
    spread = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - spread), float(values.mean() + spread)


def measured(name: str, model: str, random: str, epochs: int, seeds: int) -> dict[str, Any]:
    """Of each method: accuracy, of each seed too, and what it gains over the probe."""
    chosen, found = SETS[name], {method: [] for method in METHODS}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "downloads").mkdir()
        write_set(folder, chosen, chosen.images(folder / "downloads"))
        for seed in range(seeds):
            started = time.monotonic()
            for method, each in runs(folder, chosen, model, random, epochs, seed):
                found[method].append(each)
                took = time.monotonic() - started
                print(f"{name}, seed {seed}: {method} {each.mean():.3f}, {took:.0f} s", flush=True)
                started = time.monotonic()
    means = {method: np.mean(each, axis=0) for method, each in found.items()}
    return {
        method: {
            "accuracy": interval(each),
            "seeds": [float(one.mean()) for one in found[method]],
            "beside the probe": interval(each - means["probe"]),
        }
        for method, each in means.items()
    }


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="an encoder's name or folder")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    given = parser.parse_args()
    warnings.simplefilter("ignore", UntrainedModelWarning)
    with TemporaryDirectory() as folder:
        random = write_random(Path(folder) / "random", given.model)
        result = {
            name: measured(name, given.model, random, given.epochs, given.seeds)
            for name in given.sets.split(",")
        }
    print("\n| | accuracy, % | beside the probe | seeds |\n|---|---|---|---|")
    for name, methods in result.items():
        for method, each in methods.items():
            seeds = ", ".join(f"{100 * one:.1f}" for one in each["seeds"])
            gain = percent(*each["beside the probe"], sign="+") if method != "probe" else ""
            print(f"| {name}: {method} | {percent(*each['accuracy'])} | {gain} | {seeds} |")
    write_result(given.output, result)


if __name__ == "__main__":
    main()
