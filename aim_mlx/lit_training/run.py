"""A whole training run in a folder: read, cache, train, evaluate, save; the same call resumes it.

FOLDER/training/ holds run.json (what is trained on what, which later calls must match),
tokenizer.json, checkpoint.safetensors, metrics.json and, unless they are elsewhere, the tokens.
The finished model is FOLDER itself.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from aim_mlx.backend import tree_flatten
from aim_mlx.embed import Encoder
from aim_mlx.errors import Interrupted
from aim_mlx.images import Skip, stream
from aim_mlx.lit_training.checkpoint import load_state, save_state
from aim_mlx.lit_training.config import TrainConfig
from aim_mlx.lit_training.evaluation import evaluate
from aim_mlx.lit_training.loop import Split, Trainer
from aim_mlx.lit_training.model import lit_config, new_model
from aim_mlx.lit_training.pairs import Pairs, read_pairs, split
from aim_mlx.lit_training.work import (
    begin,
    check_output,
    check_same_run,
    run_facts,
    run_tokenizer,
    storage,
    write_metrics,
)
from aim_mlx.token_cache import TokenCache
from aim_mlx.tokens import StreamedTokens, TokenSource
from aim_mlx.weights.save import WORK_FOLDER, provenance, save_checkpoint

_RECORDS, _EVALUATIONS = 200, 20  # at most, of a run
_LARGEST_EVALUATION = 5_000  # images

TokensOf = Callable[[Pairs], TokenSource]


@dataclass(frozen=True)
class Result:
    """What a run came to: `metrics` are those of the held-out pairs, empty where there are none."""

    output: str
    pairs: int
    images: int
    held_out: int
    skipped: int
    steps: int
    metrics: dict[str, float]
    seconds: float

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


class Report(Protocol):
    """What a run tells while it goes on."""

    def skipped(self, skip: Skip) -> None: ...
    def noted(self, note: str) -> None: ...
    def advanced(self, what: str, done: int, total: int) -> None: ...
    def recorded(self, record: Mapping[str, Any]) -> None: ...


class Silent:
    """A report to nobody."""

    def skipped(self, skip: Skip) -> None:
        pass

    def noted(self, note: str) -> None:
        pass

    def advanced(self, what: str, done: int, total: int) -> None:
        pass

    def recorded(self, record: Mapping[str, Any]) -> None:
        pass


def train_lit(
    table: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    load: Callable[[], Encoder],
    config: TrainConfig,
    report: Report | None = None,
    *,
    columns: tuple[str, str] = ("path", "caption"),
    cache: Path | None = None,
    cache_limit: int = 20 * 10**9,
    checkpoint_seconds: float = 60.0,
) -> Result:
    """Trains a text tower and image head to the frozen image tower that `load` gives.

    `cache` is where the image tokens go (default: inside the folder), of `cache_limit` bytes at
    most; where they do not fit, they are computed again each time. Interrupted or killed, the same
    call goes on from the last checkpoint, to the same bits. Raises UsageError for bad pairs,
    OutputError for a folder of another run, AimError where the loss is not finite.
    """
    started = time.monotonic()
    report = report or Silent()
    folder, work = Path(folder), Path(folder) / WORK_FOLDER
    check_output(folder)
    pairs, skips = read_pairs(table, columns, partial(report.advanced, "reading"))
    encoder = load()
    facts = run_facts(encoder, pairs, config)
    check_same_run(work, facts)
    with storage(folder):
        folder.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
    store = TokenCache(cache or work / "tokens", encoder, limit=cache_limit)
    tokens_of, undecodable = _tokens(store, encoder, pairs, report)
    skips += undecodable
    for skip in skips:
        report.skipped(skip)
    train, held_out = split(_without(pairs, undecodable), config.held_out, config.seed)
    trainer, measured = _prepare(encoder, train, held_out, tokens_of, config, work)
    with storage(folder):
        begin(work, facts, trainer.tokenizer)
        if load_state(work, trainer):
            report.noted(f"goes on after step {trainer.step} of {trainer.steps}")
        _train(trainer, measured, work, report, checkpoint_seconds)
    metrics = trainer.history[-1].get("metrics", {})
    origin = {
        "trunk": {**encoder.identity, "trained": encoder.trained, "sha256": facts["weights"]},
        "pairs": {
            "table": Path(table).name,
            "count": len(pairs.captions),
            "sha256": facts["pairs"],
        },
        "metrics": metrics,
    }
    _save(folder, trainer, encoder, origin)
    count = len(train.captions) + len(held_out.captions)
    return Result(
        str(folder),
        count,
        len(train.paths) + len(held_out.paths),
        len(held_out.paths),
        len(skips),
        trainer.steps,
        metrics,
        round(time.monotonic() - started, 3),
    )


def _tokens(
    cache: TokenCache, encoder: Encoder, pairs: Pairs, report: Report
) -> tuple[TokensOf, list[Skip]]:
    """Where the tokens of pairs come from, and the images that cannot be decoded."""
    digests = pairs.digests
    size = cache.bytes_to_add(digests)
    if cache.fits(digests):
        if size:
            report.noted(f"the image tokens take {size / 1e9:.2f} GB on the disk, at most")
        images = dict(zip(digests, zip(pairs.paths, pairs.contents, strict=True), strict=True))
        skips = cache.fill(images, partial(report.advanced, "caching tokens"))
        return lambda part: cache.rows(part.digests), skips
    report.noted(
        f"the image tokens would take {size / 1e9:.2f} GB, over the limit: they are computed from "
        "the images in every epoch"
    )
    skips = []
    with closing(stream(pairs.paths, encoder.preprocessing)) as samples:
        for sample in samples:
            if sample.failure is not None:
                path = pairs.paths[sample.index]
                skips.append(Skip(path, sample.failure.reason, sample.failure.detail))
            report.advanced("checking", sample.index + 1, len(pairs.paths))
    return lambda part: StreamedTokens(encoder, part.paths), skips


def _without(pairs: Pairs, skips: list[Skip]) -> Pairs:
    bad = {skip.path for skip in skips}
    return pairs.of([i for i, path in enumerate(pairs.paths) if path not in bad])


def _prepare(
    encoder: Encoder,
    train: Pairs,
    held_out: Pairs,
    tokens_of: TokensOf,
    config: TrainConfig,
    work: Path,
) -> tuple[Trainer, Split | None]:
    """The trainer at its start, and what it is measured on."""
    tokenizer = run_tokenizer(work, train.captions, config)
    model = new_model(encoder, lit_config(encoder, config.text_config, tokenizer), config.seed)

    def with_tokens(pairs: Pairs) -> Split:
        return Split(pairs, tokens_of(pairs), tokenizer.encode(pairs.captions))

    measured = held_out.of(range(min(len(held_out.paths), _LARGEST_EVALUATION)))
    trainer = Trainer(model, tokenizer, config, with_tokens(train))
    return trainer, with_tokens(measured) if measured.paths else None


def _train(
    trainer: Trainer, measured: Split | None, work: Path, report: Report, seconds: float
) -> None:
    """Runs the steps that are left; a checkpoint is published every so many seconds."""
    record_every = max(1, trainer.steps // _RECORDS)
    measure_every = max(1, trainer.steps // _EVALUATIONS)
    kept, saved = trainer.step, time.monotonic()
    try:
        while trainer.step < trainer.steps:
            entry: dict[str, Any] = trainer.run_step()
            last = trainer.step == trainer.steps
            measure = measured is not None and (last or trainer.step % measure_every == 0)
            if measure and measured is not None:
                size = trainer.config.batch_size
                entry["metrics"] = evaluate(trainer.model, measured, size)
            if measure or last or trainer.step % record_every == 0:
                trainer.history.append(entry)
                report.recorded(entry)
            report.advanced("training", trainer.step, trainer.steps)
            if last or time.monotonic() - saved >= seconds:
                save_state(work, trainer)
                write_metrics(work, trainer.history)
                kept, saved = trainer.step, time.monotonic()
    except KeyboardInterrupt:
        what = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was due yet"
        raise Interrupted(
            f"interrupted after step {trainer.step} of {trainer.steps}; {what}: the same command "
            "resumes"
        ) from None


def _save(folder: Path, trainer: Trainer, encoder: Encoder, origin: Mapping[str, Any]) -> None:
    """Writes the finished model."""
    history = provenance(
        source="aim-mlx lit train",
        **origin,
        training=asdict(trainer.config),
    )
    save_checkpoint(
        folder,
        dict(tree_flatten(trainer.model.parameters())),
        trainer.model.config,
        encoder.preprocessing,
        history,
        extra_files=trainer.tokenizer.files(),
        overwrite=True,
    )
