"""A whole probe in a folder: read, cache, train the grid, choose, test once, report.

FOLDER has what outcome.py says, and FOLDER/training: run.json (what the run is, which later calls
must match), checkpoint.safetensors and, unless elsewhere, the tokens.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.data.labelled import Data
from aim_mlx.data.parts import Part
from aim_mlx.data.splits import DataSet, divided
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.errors import NotFinite
from aim_mlx.probe.config import ProbeConfig
from aim_mlx.probe.features import Augmentation, DataSetTokens
from aim_mlx.probe.gradients import logits_of
from aim_mlx.probe.losses import probabilities
from aim_mlx.probe.outcome import (
    TrainedProbe,
    described,
    measured_parts,
    what_decides,
    write_outcome,
)
from aim_mlx.probe.probe import AttentiveProbe, trained_probe
from aim_mlx.probe.summary import Measured, made_report
from aim_mlx.probe.training import GridTrainer, LabelledTokens
from aim_mlx.tokens.source import token_shape
from aim_mlx.training import loop
from aim_mlx.training.folder import TOKENS, begin, check_output, working
from aim_mlx.training.report import Report, Silent, advancing, never, pass_on

_AT_ONCE = 32  # images whose tokens the head is given at a time


@dataclass(frozen=True)
class Plan:
    """How a probe is trained, and where its tokens are kept (None: in its folder)."""

    config: ProbeConfig
    layers: tuple[int, ...] = ()
    augmentation: Augmentation | None = None
    cache: Path | None = None
    cache_limit: int | None = None


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
    about = what_decides(plan.config, _more(plan), encoder, images)
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
        last = measured_parts(probe, images, partial(_measured, probe, features), report)
        warnings += last.warnings
        words = described(data, images, encoder, _words(plan, probe), plan.config.seed)
        page = made_report(f"Probe of {data.name}", probe, last, words, warnings, trainer)
        write_outcome(folder, probe, images, page)
    epochs = len(trainer.history)
    return TrainedProbe.of(folder, probe, images, last, epochs, warnings, started)


def _more(plan: Plan) -> dict[str, Any]:
    """What decides the result beside the configuration, the encoder and the images."""
    views = asdict(plan.augmentation) if plan.augmentation else None
    return {"layers": plan.layers, "augmentation": views}


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


def _measured(probe: AttentiveProbe, features: DataSetTokens, name: str, part: Part) -> Measured:
    tokens = features.tokens(name, part).for_epoch(0)
    logits = logits_of([probe.head], tokens, np.arange(len(part)), _AT_ONCE)[0]
    return Measured.of(name, part, probabilities(logits, probe.multi_label), probe.classes)


def _words(plan: Plan, probe: AttentiveProbe) -> dict[str, str]:
    """How the probe was made."""
    best = probe.metrics["validation"]
    point = best["point"]
    norm = "with" if point["batch_norm"] else "without"
    views = "none"
    if plan.augmentation is not None:
        views = f"{plan.augmentation.views} of each image" if plan.augmentation.views else "endless"
    return {
        "tokens": f"mean of blocks {list(plan.layers)}" if plan.layers else "of the final norm",
        "random views": views,
        "head": f"{plan.config.head}, learning rate {point['learning_rate']:g}, weight decay "
        f"{point['weight_decay']:g}, {norm} batch norm: the best of "
        f"{len(plan.config.grid)}, after epoch "
        f"{best['epoch']}",
    }
