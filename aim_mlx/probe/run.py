"""A whole probe in a folder: read, cache, train the grid, choose, test once, report.

FOLDER/probe.safetensors, probe.json    the probe; see head_files
FOLDER/splits.jsonl                     every image with its classes, split and digest
FOLDER/report.html                      what it can do and where it fails
FOLDER/training/                        run.json (what the run is, which later calls must match),
                                        checkpoint.safetensors and, unless elsewhere, the tokens
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.config import to_dict
from aim_mlx.data.labelled import Data
from aim_mlx.data.splits import DataSet, divided
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.errors import UNTRAINED, NotFinite
from aim_mlx.probe.config import ProbeConfig
from aim_mlx.probe.features import Augmentation, DataSetTokens
from aim_mlx.probe.gradients import logits_of
from aim_mlx.probe.losses import probabilities
from aim_mlx.probe.probe import AttentiveProbe, trained_probe
from aim_mlx.probe.summary import Measured, made_report
from aim_mlx.probe.training import GridTrainer, LabelledTokens
from aim_mlx.report.probe_page import write_report
from aim_mlx.tokens.source import token_shape
from aim_mlx.training import loop
from aim_mlx.training.folder import TOKENS, begin, check_output, working, write_lines
from aim_mlx.training.report import Report, Silent, advancing, never, pass_on

SPLITS_FILE, REPORT_FILE = "splits.jsonl", "report.html"
_AT_ONCE = 32  # images whose tokens the head is given at a time


@dataclass(frozen=True)
class Plan:
    """How a probe is trained, and where its tokens are kept (None: in its folder)."""

    config: ProbeConfig
    layers: tuple[int, ...] = ()
    augmentation: Augmentation | None = None
    cache: Path | None = None
    cache_limit: int | None = None


@dataclass(frozen=True)
class TrainedProbe:
    """The outcome of a run; `figures` are those of `measured_on`, "test" where there is one."""

    output: str
    classes: int
    images: dict[str, int]
    skipped: int
    epochs: int
    best: dict[str, Any]
    measured_on: str
    figures: dict[str, Any]
    warnings: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


def train_probe(
    data: Data,
    folder: str | os.PathLike[str],
    load: Callable[[], Encoder],
    plan: Plan,
    report: Report | None = None,
    *,
    stop: Callable[[], bool] = never,
) -> TrainedProbe:
    """Trains a probe on the frozen encoder that `load` gives, and writes it with its report.

    Heads are chosen on val; test, where there is one, is looked at once, at the end. Interrupted,
    killed, or ended once `stop` returns True, the same call goes on. Raises UsageError for bad
    data, OutputError for a folder of another run or one in use, and NotFinite where no head's loss
    is finite; the best head until then is kept.
    """
    started = time.monotonic()
    report, folder = report or Silent(), Path(folder)
    check_output(folder)
    advanced = advancing(report, stop)
    images = divided(data, plan.config.seed, partial(advanced, "reading images"), folder)
    encoder = load()
    encoder.check(EmbedOptions(layers=plan.layers))
    token_shape(encoder)  # a native-resolution model is refused before anything is written
    about = _about(plan, images, encoder)
    with working(folder, about) as work:
        begin(work, about)
        cache = plan.cache or work / TOKENS
        features = DataSetTokens(encoder, cache, plan.cache_limit, plan.layers, plan.augmentation)
        images = features.prepare(images, report, advanced)
        warnings = [*images.warnings, *_warnings(images)]
        pass_on(report, images.skips, images.notes, warnings)
        trainer = _trainer(plan, images, features, encoder)
        made = partial(trained_probe, trainer, encoder, images.classes, plan.layers)
        try:
            loop.run(trainer, work, report, stop=stop)
        except NotFinite:
            if trainer.best is not None:
                made().save(folder, overwrite=True)  # the best head until none was finite
            raise
        probe = made()
        measured = [
            _measured(probe, features, images, name)
            for name in ("val", "test")
            if name in images.parts
        ]
        pass_on(report, warnings=measured[-1].warnings)
        warnings += measured[-1].warnings
        probe.metrics |= {each.name: each.figures for each in measured}
        described, title = _described(data, images, plan, probe), f"Probe of {data.name}"
        page = made_report(title, probe, measured[-1], described, warnings, trainer)
        write_report(folder / REPORT_FILE, page)
        write_lines(folder / SPLITS_FILE, split_lines(images))
        probe.save(folder, overwrite=True)
    return TrainedProbe(
        str(folder),
        len(images.classes),
        {name: len(part) for name, part in images.parts.items()},
        len(images.skips),
        len(trainer.history),
        probe.metrics["validation"],
        measured[-1].name,
        measured[-1].figures,
        tuple(warnings if encoder.trained else [UNTRAINED, *warnings]),
        round(time.monotonic() - started, 3),
    )


def _about(plan: Plan, data: DataSet, encoder: Encoder) -> dict[str, Any]:
    """All that decides a run's result; what there is most of stands last."""
    return {
        **{name.replace("_", " "): value for name, value in asdict(plan.config).items()},
        "layers": plan.layers,
        "augmentation": asdict(plan.augmentation) if plan.augmentation else None,
        "weights": encoder.weights_digest,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "data set": data.digest(),
    }


def _warnings(data: DataSet) -> Iterator[str]:
    if "test" not in data.parts:
        yield (
            "there is no test split: the figures are of val, on which the head was chosen, and are "
            "a little too good"
        )


def _trainer(plan: Plan, data: DataSet, features: DataSetTokens, encoder: Encoder) -> GridTrainer:
    train, val = (
        LabelledTokens(features.tokens(name, data.parts[name]), data.parts[name].labels)
        for name in ("train", "val")
    )
    heads = encoder.model.config.num_heads
    return GridTrainer(plan.config, len(data.classes), train, val, heads)


def _measured(probe: AttentiveProbe, features: DataSetTokens, data: DataSet, name: str) -> Measured:
    part = data.parts[name]
    tokens = features.tokens(name, part).for_epoch(0)
    logits = logits_of([probe.head], tokens, np.arange(len(part)), _AT_ONCE)[0]
    return Measured.of(name, part, probabilities(logits, probe.multi_label), data.classes)


def _described(data: Data, images: DataSet, plan: Plan, probe: AttentiveProbe) -> dict[str, str]:
    """How the probe was made, in words."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in images.parts.items())
    best = probe.metrics["validation"]
    point = best["point"]
    norm = "with" if point["batch_norm"] else "without"
    views = "none"
    if plan.augmentation is not None:
        views = f"{plan.augmentation.views} of each image" if plan.augmentation.views else "endless"
    return {
        "data": f"{data.source}: {len(images.classes)} classes, {counts}; {len(images.skips)} left "
        "out",
        "encoder": f"{probe.model.get('model')}, weights {probe.identity['weights'][:16]}",
        "tokens": f"mean of blocks {list(plan.layers)}" if plan.layers else "of the final norm",
        "random views": views,
        "head": f"{plan.config.head}, learning rate {point['learning_rate']:g}, weight decay "
        f"{point['weight_decay']:g}, {norm} batch norm: the best of "
        f"{len(plan.config.grid)}, after epoch "
        f"{best['epoch']}",
        "seed": str(plan.config.seed),
    }


def split_lines(data: DataSet) -> Iterator[str]:
    """The lines of SPLITS_FILE."""
    for name, part in data.parts.items():
        for path, content, label in zip(part.paths, part.contents, part.labels, strict=True):
            numbers = [int(label)] if part.labels.ndim == 1 else np.flatnonzero(label).tolist()
            labels = [data.classes[i] for i in numbers]
            yield json.dumps(
                {"path": path, "labels": labels, "split": name, "digest": content.digest}
            )
