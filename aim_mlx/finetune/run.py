"""A whole fine-tuning in a folder: read, train, choose, test once, report; the same call resumes.

FOLDER has what probe/outcome.py says, adapters.safetensors and adapter_config.json (what changed of
the encoder; weights/adapters.py), and FOLDER/training: run.json (what the run is, which later calls
must match), checkpoint.safetensors and metrics.jsonl.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.backend import dtype_named, machine_bytes, mx, nn, on_gpu, tree_flatten
from aim_mlx.data.labelled import Data
from aim_mlx.data.labels import quoted
from aim_mlx.data.splits import DataSet, divided
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import NotFinite, UsageError
from aim_mlx.finetune.classifier import as_probe, measure, write_classifier
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.finetune.data import FinetuneData
from aim_mlx.finetune.memory import fitting_parts, step_bytes
from aim_mlx.finetune.model import new_network
from aim_mlx.finetune.page import Comparison, compared, made_page
from aim_mlx.finetune.trainer import FinetuneTrainer
from aim_mlx.images.pictures import Pictures
from aim_mlx.probe.config import QUERIES
from aim_mlx.probe.evaluation import leaks, read_splits
from aim_mlx.probe.heads import Head, HeadConfig, flat, new_head
from aim_mlx.probe.outcome import (
    SPLITS_FILE,
    TrainedProbe,
    described,
    measured_parts,
    what_decides,
    write_outcome,
)
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.tokens.source import token_shape
from aim_mlx.training import loop
from aim_mlx.training.folder import begin, check_output, working, write_lines
from aim_mlx.training.parallel import ALONE, ProcessGroup
from aim_mlx.training.report import PassedOn, Report, Silent, advancing, never, pass_on
from aim_mlx.weights.save import WORK_FOLDER
from aim_mlx.wording import megabytes

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Finetuned(TrainedProbe):
    """The outcome of a run, compared with the probe that it began with."""

    beside_probe: Comparison | None = None


def finetune(
    data: Data,
    folder: str | os.PathLike[str],
    load: Callable[[], Encoder],
    config: FinetuneConfig,
    report: Report | None = None,
    *,
    probe: str | os.PathLike[str] | None = None,
    memory: int = 4 * 10**9,
    dtype: str | None = None,
    stop: Callable[[], bool] = never,
    group: ProcessGroup = ALONE,
) -> Finetuned | None:
    """Trains a classifier on the encoder that `load` gives, adapting that, and writes both.

    It begins with a new head, or with that of the folder `probe`. The best epoch is chosen on val;
    test, where there is one, is looked at once, at the end. `memory` bounds the decoded pictures
    that are kept, in bytes. `dtype` None is float32 on a CPU and bfloat16 on a GPU. Interrupted,
    killed, or ended once `stop` returns True, the same call goes on. Raises UsageError for bad data
    or a model that cannot be trained, OutputError for a folder of another run or one in use, and
    NotFinite where a loss is not; the best epoch until then is kept.

    In a `group` every process calls it with the same arguments and computes its share of each
    batch; the first alone reports, touches the folder and has an outcome. Raises UsageError where
    they differ, AimError where one has ended.
    """
    started = time.monotonic()
    report = report if report and group.is_first else Silent()
    folder = Path(folder)
    if group.is_first:
        check_output(folder)
    advanced = advancing(report, stop)
    dtype = dtype or ("bfloat16" if on_gpu() else "float32")
    precision = dtype_named(dtype)
    images = divided(data, config.seed, partial(advanced, "reading images"), folder)
    start = _start(load(), config, probe, images)
    config = config.with_rate(start.encoder.model.config.embed_dim)
    parts = fitting_parts(start.encoder.model.config, config, precision.size)
    more = {"parts": parts, "dtype": dtype, "first head": _digest(start.head)}
    about = what_decides(config, more, start.encoder, images)
    with working(folder, about) if group.is_first else nullcontext(folder / WORK_FOLDER) as work:
        if group.is_first:
            begin(work, about)
        files = {p: c.at(p) for part in images.parts.values() for p, c in part.files()}
        pictures = Pictures(files, 2 * (start.encoder.preprocessing.crop_size or 0), memory)
        images = images.without(pictures.check(partial(advanced, "decoding images")))
        warnings = [*images.warnings, *_leaks(probe, images)]
        pass_on(report, images.skips, images.notes, warnings)
        group.check_same({**about, "images that can be decoded": images.digest()})
        trainer = _trainer(start, images, pictures, config, parts, precision, report, group)
        report.noted(_account(trainer, start.encoder, parts, precision))
        made = _trained(trainer, start, images, folder, work, report, stop, group)
        if made is None:
            return None
        measure_part = partial(measure, advanced)
        last = measured_parts(made, images, partial(measure_part, made), report)
        warnings += last.warnings
        beside = None
        if start.probe is not None:
            beside = compared(last, measure_part(start.probe, last.name, last.part))
        words = described(data, images, start.encoder, _words(start, trainer, beside), config.seed)
        page = made_page(f"Fine-tuning on {data.name}", made, last, words, warnings, trainer)
        write_outcome(folder, made, images, page)
    epochs = trainer.epochs
    return Finetuned.of(folder, made, images, last, epochs, warnings, started, beside_probe=beside)


@dataclass(frozen=True)
class _Start:
    """What a run starts from: an encoder, a head, and the probe that this may be from."""

    encoder: Encoder
    head: Head
    probe: AttentiveProbe | None


def _start(
    encoder: Encoder,
    config: FinetuneConfig,
    probe: str | os.PathLike[str] | None,
    images: DataSet,
) -> _Start:
    """Raises UsageError for an encoder or a probe that does not serve."""
    vision = encoder.model.config
    if encoder.network is not encoder.model:
        raise UsageError("this is a LiT model: fine-tune the encoder alone, without a text tower")
    if any(isinstance(each, nn.QuantizedLinear) for each in encoder.model.modules()):
        raise UsageError("this model is quantised: fine-tune the one that it was made from")
    token_shape(encoder)  # refuses a native-resolution model
    config.blocks(vision)
    if probe is None:
        sizes = HeadConfig(
            vision.embed_dim,
            len(images.classes),
            vision.num_heads,
            QUERIES.get(config.head, 1),
            config.head,
        )
        return _Start(encoder, new_head(sizes, config.seed), None)
    before = AttentiveProbe.load(probe, encoder)
    if before.layers:
        raise UsageError(
            f"the probe reads the blocks {list(before.layers)}, not the final tokens: fine-tuning "
            "needs one that was trained without --layers"
        )
    if (before.classes, before.multi_label) != (images.classes, images.multi_label):
        raise UsageError(
            f"the probe was trained on other classes ({quoted(before.classes)}) than these images "
            f"have ({quoted(images.classes)}): give the same data"
        )
    return _Start(encoder, before.head, before)


def _leaks(probe: str | os.PathLike[str] | None, images: DataSet) -> list[str]:
    """Warnings where the probe has learned from images of the test split."""
    if probe is None or "test" not in images.parts:
        return []
    found = leaks(images.parts["test"], read_splits(Path(probe) / SPLITS_FILE))
    return [f"{each}; give the probe's own --seed, --val and --test" for each in found]


def _digest(head: Head) -> str:
    """SHA-256 in hex over a head's weights."""
    total = hashlib.sha256()
    for name, value in sorted(flat(head.parameters()).items()):
        total.update(name.encode() + np.array(value).tobytes())
    return total.hexdigest()


def _trainer(
    start: _Start,
    images: DataSet,
    pictures: Pictures,
    config: FinetuneConfig,
    parts: int,
    precision: mx.Dtype,
    report: Report,
    group: ProcessGroup,
) -> FinetuneTrainer:
    train, val = (
        FinetuneData(
            images.parts[name], len(images.classes), pictures, start.encoder.preprocessing, config
        )
        for name in ("train", "val")
    )
    smallest = len(train) // train.steps_in_epoch
    if smallest < group.size:
        raise UsageError(
            f"a batch has only {smallest} images for {group.size} processes: give a larger "
            "--batch-size, or start fewer"
        )
    network = partial(new_network, start.encoder.model, start.head, config)
    return FinetuneTrainer(network, train, val, parts, precision, report.warned, group)


def _account(trainer: FinetuneTrainer, encoder: Encoder, parts: int, precision: mx.Dtype) -> str:
    """How much is trained, and what it takes in memory, in words."""
    trained = sum(value.size for value in trainer.weights().values())
    total = sum(v.size for v in dict(tree_flatten(trainer.model.parameters())).values())
    needed = step_bytes(encoder.model.config, trainer.config, precision.size, total, trained)
    words = f"{trained:,} of {total:,} weights are trained, in {trainer.steps:,} steps"
    words += f" of {parts} parts each" if parts > 1 else ""
    words += f", which take about {megabytes(needed)} of memory"
    if needed > 0.8 * machine_bytes():
        words += f", and this machine has {megabytes(machine_bytes())}: try --parts {2 * parts} or "
        words += "--checkpointed"
    return words


def _pace(trainer: FinetuneTrainer) -> str:
    """How long a step takes, and all of them, in words."""
    seconds, peak = trainer.measure()
    total = seconds * trainer.steps
    words = f"{total / 60:,.0f} min" if total >= 120 else f"{total:.0f} s"
    return (
        f"a step takes {seconds:.2g} s here, and {megabytes(peak)} beside the weights: all of them "
        f"take up to {words}, and the images of val come on top"
    )


def _trained(
    trainer: FinetuneTrainer,
    start: _Start,
    images: DataSet,
    folder: Path,
    work: Path,
    report: Report,
    stop: Callable[[], bool],
    group: ProcessGroup,
) -> AttentiveProbe | None:
    """Runs the training to its end; the classifier after the best epoch, in the first process.

    Where a loss is not finite, that is written before the error is raised.
    """

    def made() -> AttentiveProbe:
        weights, config = trainer.best_weights(), trainer.config
        changed, head = write_classifier(folder, start.encoder, start.head, weights, config)
        training = {**asdict(config), "epochs_done": trainer.epochs}
        made = as_probe(changed, head, images.classes, images.multi_label, training)
        made.metrics["validation"] = asdict(trainer.best) if trainer.best else {}
        return made

    writing = _Writing(report, trainer, work) if group.is_first else report
    try:
        resumes = group.is_first and (work / loop.CHECKPOINT).exists()
        if start.probe is not None and not any(group.any(resumes)):
            score = trainer.evaluate_start()["metric"]  # kept where no epoch is better
            report.noted(f"the probe's score on val is {score:.3f}")
        report.noted(_pace(trainer))
        loop.run(trainer, work, writing, stop=stop, group=group)
    except NotFinite as error:
        if trainer.best is None or not group.is_first:
            raise
        made().save(folder, overwrite=True)
        kept = f"the classifier after epoch {trainer.best.epoch} is kept"
        raise NotFinite(f"{error}; {kept}") from error
    finally:
        trainer.close()
    return made() if group.is_first else None


class _Writing(PassedOn):
    """Writes down what the training records."""

    def __init__(self, report: Report, trainer: FinetuneTrainer, work: Path):
        super().__init__(report)
        self._trainer, self._records = trainer, work / METRICS

    def recorded(self, record: Mapping[str, Any]) -> None:
        super().recorded(record)
        write_lines(self._records, map(json.dumps, self._trainer.history))


def _words(
    start: _Start, trainer: FinetuneTrainer, beside_probe: Comparison | None
) -> dict[str, str]:
    """How the classifier was made."""
    config, vision = trainer.config, start.encoder.model.config
    lora, blocks = config.lora(vision), f"{config.blocks(vision)} of {vision.num_blocks} blocks"
    what = f"the weights of {blocks}, each learning {config.layer_decay:g} times the next"
    if lora is not None:
        what = f"adapters of rank {lora.rank} on {', '.join(lora.targets)} in {blocks}, counted "
        what += f"{lora.scale:g} times, dropout {lora.dropout:g}"
    begun = "of the probe" if start.probe else f"new, {config.head}"
    best = trainer.best
    return {
        "trained": what,
        "head at the start": begun,
        "learning rate": f"{config.peak_rate:g}, weight decay {config.weight_decay:g}",
        "chosen": f"epoch {best.epoch} of {trainer.epochs}" if best else "none",
        **({"right": str(beside_probe)} if beside_probe else {}),
    }
