"""A whole training run in a folder: read, cache, train, evaluate, save; the same call resumes it.

FOLDER/training/ holds run.json (what is trained on what, which later calls must match),
tokenizer.json, checkpoint.safetensors, metrics.json and, unless they are elsewhere, the tokens.
The finished model is FOLDER itself.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aim_mlx.backend import tree_flatten
from aim_mlx.config import to_dict
from aim_mlx.data.pairs import Pairs, read_pairs, split
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.lit_training.config import CONTEXT_LENGTH, TEXT_SIZES, TrainConfig
from aim_mlx.lit_training.features import Split, TokensOf, tokens_of
from aim_mlx.lit_training.model import lit_config, new_model
from aim_mlx.lit_training.trainer import LitTrainer
from aim_mlx.tokens.cache import TokenCache
from aim_mlx.training import loop
from aim_mlx.training.folder import TOKENS, begin, check_output, working
from aim_mlx.training.report import Report, Silent, advancing, never
from aim_mlx.weights.save import check_folder, provenance, save_checkpoint
from aim_mlx.wording import counted
from aim_mlx.words.tokenizer import Tokenizer

_LARGEST_EVALUATION = 5_000  # images


@dataclass(frozen=True)
class TrainedLit:
    """The outcome of a run: `metrics` are those of the held-out pairs, empty without any."""

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
    stop: Callable[[], bool] = never,
) -> TrainedLit:
    """Trains a text tower and image head to the frozen image tower that `load` gives.

    `cache` is where the image tokens go (default: inside the folder), of `cache_limit` bytes at
    most; where they do not fit, they are computed again each time. A run ends early, with a
    checkpoint and Interrupted, once `stop` returns True. Interrupted or killed, the same call goes
    on from the last checkpoint, on a CPU to the same bits. Raises UsageError for bad pairs,
    OutputError for a folder of another run or one in use, NotFinite where the loss is not finite.
    """
    started = time.monotonic()
    report, folder = report or Silent(), Path(folder)
    check_output(folder)
    check_folder(folder, overwrite=True)  # where the finished model may go
    advanced = advancing(report, stop)
    progress = partial(advanced, "reading images")
    pairs, skips = read_pairs(table, columns, progress, noted=report.noted)
    encoder = load()
    about = _about(encoder, pairs, config)
    with working(folder, about) as work:
        tokens = TokenCache(cache or work / TOKENS, encoder, limit=cache_limit)
        source, undecodable = tokens_of(tokens, encoder, pairs, report, advanced)
        skips += undecodable
        for skip in skips:
            report.skipped(skip)
        parts = split(
            pairs.without({skip.path for skip in undecodable}), config.held_out, config.seed
        )
        trainer = _trainer(encoder, *parts, source, config, work)
        begin(work, about, trainer.tokenizer.files())
        for note in _notes(trainer, len(parts[1].paths)):
            report.noted(note)
        loop.run(trainer, work, report, stop=stop, metrics=True)
        _save(folder, trainer, encoder, Path(table).name, about)
    return TrainedLit(
        output=str(folder),
        pairs=sum(len(part.captions) for part in parts),
        images=sum(len(part.paths) for part in parts),
        held_out=len(parts[1].paths),
        skipped=len(skips),
        steps=trainer.steps,
        metrics=trainer.metrics,
        seconds=round(time.monotonic() - started, 3),
    )


def _about(encoder: Encoder, pairs: Pairs, config: TrainConfig) -> dict[str, Any]:
    """All that decides a run's result."""
    return {
        **{name.replace("_", " "): value for name, value in asdict(config).items()},
        "weights": encoder.weights_digest,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "pairs": pairs.digest(),
    }


def _trainer(
    encoder: Encoder,
    train: Pairs,
    held_out: Pairs,
    source: TokensOf,
    config: TrainConfig,
    work: Path,
) -> LitTrainer:
    """The trainer at its start."""
    tokenizer = _tokenizer(work, train.captions, config)
    model = new_model(encoder, lit_config(encoder, config.text_config, tokenizer), config.seed)

    def with_tokens(pairs: Pairs) -> Split:
        return Split(pairs, source(pairs), tokenizer.encode(pairs.captions))

    measured = held_out.of(range(min(len(held_out.paths), _LARGEST_EVALUATION)))
    kept = with_tokens(measured) if measured.paths else None
    return LitTrainer(model, tokenizer, config, with_tokens(train), kept)


def _tokenizer(work: Path, captions: tuple[str, ...], config: TrainConfig) -> Tokenizer:
    """The run's tokenizer: learned from the captions, or as it was when the run began."""
    kept = Tokenizer.load(work)
    if kept is not None:
        kept.context_length = CONTEXT_LENGTH
        return kept
    return Tokenizer.train(captions, TEXT_SIZES[config.text_config].vocab_size, CONTEXT_LENGTH)


def _notes(trainer: LitTrainer, held_out: int) -> list[str]:
    """What is left out of training, or of evaluating so many images held out."""
    notes, measured = [], trainer.held_out
    cut = len(trainer.train.texts.cut) + (len(measured.texts.cut) if measured else 0)
    if cut:
        longest = trainer.tokenizer.context_length
        notes.append(f"{counted(cut, 'caption')} cut off after {longest} tokens")
    if measured and len(measured.pairs.paths) < held_out:
        notes.append(f"of {held_out} held-out images {len(measured.pairs.paths)} are evaluated")
    return notes


def _save(
    folder: Path, trainer: LitTrainer, encoder: Encoder, table: str, about: Mapping[str, Any]
) -> None:
    """Writes the finished model."""
    trained_on = len(trainer.train.pairs.captions)
    pairs = {"table": table, "sha256": about["pairs"], "trained_on": trained_on}
    history = provenance(
        source="aim-mlx lit train",
        trained=encoder.trained,  # what is learned on a random tower is worth no more
        trunk={**encoder.identity, "trained": encoder.trained, "sha256": about["weights"]},
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
