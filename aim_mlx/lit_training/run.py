"""A whole training run in a folder: read, cache, train, evaluate, save; the same call resumes it.

FOLDER/training/ holds run.json (what is trained on what, which later calls must match),
tokenizer.json, checkpoint.safetensors, metrics.json and, unless they are elsewhere, the tokens.
The finished model is FOLDER itself.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from aim_mlx.backend import tree_flatten
from aim_mlx.config import to_dict
from aim_mlx.data.pairs import Pairs, read_pairs, split
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import Interrupted
from aim_mlx.files import locked, publish
from aim_mlx.images import Skip
from aim_mlx.lit_training.config import CONTEXT_LENGTH, TEXT_SIZES, TrainConfig
from aim_mlx.lit_training.evaluation import evaluate
from aim_mlx.lit_training.features import Advanced, TokensOf, tokens_of
from aim_mlx.lit_training.loop import Split, Trainer
from aim_mlx.lit_training.model import lit_config, new_model
from aim_mlx.lit_training.report import Report, Result, Silent
from aim_mlx.tokens.cache import TokenCache
from aim_mlx.training.checkpoint import load_state, save_state
from aim_mlx.training.folder import (
    RUN,
    TOKENS,
    check_output,
    check_same_run,
    remove_unfinished,
    storage,
)
from aim_mlx.weights.save import WORK_FOLDER, provenance, save_checkpoint
from aim_mlx.wording import counted
from aim_mlx.words.tokenizer import Tokenizer

METRICS = "metrics.json"


def run_facts(encoder: Encoder, pairs: Pairs, config: TrainConfig) -> dict[str, Any]:
    """All that decides a run's result, as JSON values."""
    return {
        **{name.replace("_", " "): value for name, value in asdict(config).items()},
        "weights": encoder.weights_digest,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "pairs": pairs.digest(),
    }


def run_tokenizer(work: Path, captions: tuple[str, ...], config: TrainConfig) -> Tokenizer:
    """The run's tokenizer: learned from the captions, or as it was when the run began."""
    kept = Tokenizer.load(work)
    if kept is not None:
        kept.context_length = CONTEXT_LENGTH
        return kept
    return Tokenizer.train(captions, TEXT_SIZES[config.text_config].vocab_size, CONTEXT_LENGTH)


def begin(work: Path, facts: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Writes down what the run is; run.json comes last. Raises OSError."""
    files = {work / name: _writing(content) for name, content in tokenizer.files().items()}
    publish({**files, work / RUN: _writing(json.dumps(facts, indent=1).encode() + b"\n")})


def write_metrics(work: Path, history: list[dict[str, Any]]) -> None:
    """Publishes the records of a run; raises OSError."""
    text = json.dumps(history, indent=1).encode() + b"\n"
    publish({work / METRICS: _writing(text)})


def _writing(content: bytes) -> Callable[[Any], Any]:
    return lambda file: file.write(content)


_RECORDS, _EVALUATIONS = 200, 20  # at most, of a run
_LARGEST_EVALUATION = 5_000  # images


def _never() -> bool:
    return False


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
    stop: Callable[[], bool] = _never,
) -> Result:
    """Trains a text tower and image head to the frozen image tower that `load` gives.

    `cache` is where the image tokens go (default: inside the folder), of `cache_limit` bytes at
    most; where they do not fit, they are computed again each time. A run ends early, with a
    checkpoint and Interrupted, once `stop` returns True. Interrupted or killed, the same call goes
    on from the last checkpoint, to the same bits. Raises UsageError for bad pairs, OutputError for
    a folder of another run or one in use, AimError where the loss is not finite.
    """
    started = time.monotonic()
    report = report or Silent()
    folder, work = Path(folder), Path(folder) / WORK_FOLDER
    advanced = _advancing(report, stop)
    check_output(folder)
    pairs, skips = read_pairs(table, columns, partial(advanced, "reading images"))
    encoder = load()
    facts = run_facts(encoder, pairs, config)
    check_same_run(work, facts)
    with storage(folder):
        work.mkdir(parents=True, exist_ok=True)
        with locked(work):
            remove_unfinished(work)
            tokens = TokenCache(cache or work / TOKENS, encoder, limit=cache_limit)
            source, undecodable = tokens_of(tokens, encoder, pairs, report, advanced)
            skips += undecodable
            for skip in skips:
                report.skipped(skip)
            parts = split(_without(pairs, undecodable), config.held_out, config.seed)
            trainer, measured = _prepare(encoder, *parts, source, config, work)
            begin(work, facts, trainer.tokenizer)
            load_state(work, trainer)
            for note in _notes(trainer, measured, parts[1]):
                report.noted(note)
            _train(trainer, measured, work, report, checkpoint_seconds, stop)
            write_metrics(work, trainer.history)  # also where a kill came between the two
            _save(folder, trainer, encoder, Path(table).name, facts)
    return Result(
        output=str(folder),
        pairs=sum(len(part.captions) for part in parts),
        images=sum(len(part.paths) for part in parts),
        held_out=len(parts[1].paths),
        skipped=len(skips),
        steps=trainer.steps,
        metrics=trainer.metrics,
        seconds=round(time.monotonic() - started, 3),
    )


def _advancing(report: Report, stop: Callable[[], bool]) -> Advanced:
    """Tells the report of progress, then raises KeyboardInterrupt where `stop` says so."""

    def advanced(what: str, done: int, total: int) -> None:
        report.advanced(what, done, total)
        if stop():
            raise KeyboardInterrupt

    return advanced


def _without(pairs: Pairs, skips: list[Skip]) -> Pairs:
    bad = {skip.path for skip in skips}
    return pairs.of([i for i, path in enumerate(pairs.paths) if path not in bad])


def _prepare(
    encoder: Encoder,
    train: Pairs,
    held_out: Pairs,
    source: TokensOf,
    config: TrainConfig,
    work: Path,
) -> tuple[Trainer, Split | None]:
    """The trainer at its start, and what it is measured on."""
    tokenizer = run_tokenizer(work, train.captions, config)
    model = new_model(encoder, lit_config(encoder, config.text_config, tokenizer), config.seed)

    def with_tokens(pairs: Pairs) -> Split:
        return Split(pairs, source(pairs), tokenizer.encode(pairs.captions))

    measured = held_out.of(range(min(len(held_out.paths), _LARGEST_EVALUATION)))
    trainer = Trainer(model, tokenizer, config, with_tokens(train))
    return trainer, with_tokens(measured) if measured.paths else None


def _notes(trainer: Trainer, measured: Split | None, held_out: Pairs) -> list[str]:
    """Where the run goes on, and what is left out of training or evaluation."""
    notes = []
    if trainer.step:
        notes.append(f"goes on after step {trainer.step} of {trainer.steps}")
    cut = len(trainer.train.texts.cut) + (len(measured.texts.cut) if measured else 0)
    if cut:
        longest = trainer.tokenizer.context_length
        notes.append(f"{counted(cut, 'caption')} cut off after {longest} tokens")
    if measured and len(measured.pairs.paths) < len(held_out.paths):
        count = len(measured.pairs.paths)
        notes.append(f"of {len(held_out.paths)} held-out images {count} are evaluated")
    return notes


def _train(
    trainer: Trainer,
    measured: Split | None,
    work: Path,
    report: Report,
    seconds: float,
    stop: Callable[[], bool],
) -> None:
    """Runs the steps that are left; a checkpoint is published every so many seconds."""
    kept, saved = trainer.step, time.monotonic()
    try:
        while trainer.step < trainer.steps:
            _step(trainer, measured, report)
            last = trainer.step == trainer.steps
            if last or stop() or time.monotonic() - saved >= seconds:
                save_state(work, trainer)
                write_metrics(work, trainer.history)
                kept, saved = trainer.step, time.monotonic()
            if stop() and not last:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        what = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was due yet"
        raise Interrupted(
            f"interrupted after step {trainer.step} of {trainer.steps}; {what}: the same command "
            "resumes"
        ) from None


def _step(trainer: Trainer, measured: Split | None, report: Report) -> None:
    """One step, with what is recorded of it and measured after it."""
    entry = trainer.run_step()
    last = trainer.step == trainer.steps
    due = last or trainer.step % math.ceil(trainer.steps / _EVALUATIONS) == 0
    if measured is not None and due:
        entry["metrics"] = evaluate(trainer.model, measured, trainer.config.batch_size)
    if due or trainer.step % math.ceil(trainer.steps / _RECORDS) == 0:
        trainer.history.append(entry)
        report.recorded(entry)
    report.advanced("training", trainer.step, trainer.steps)


def _save(
    folder: Path, trainer: Trainer, encoder: Encoder, table: str, facts: Mapping[str, Any]
) -> None:
    """Writes the finished model."""
    trained_on = len(trainer.train.pairs.captions)
    pairs = {"table": table, "sha256": facts["pairs"], "trained_on": trained_on}
    history = provenance(
        source="aim-mlx lit train",
        trunk={**encoder.identity, "trained": encoder.trained, "sha256": facts["weights"]},
        pairs=pairs,
        training=asdict(trainer.config),
        metrics=trainer.metrics,
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
