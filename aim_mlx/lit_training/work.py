"""What a run writes beside the model: what it is, its tokenizer and its records."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aim_mlx.config import to_dict
from aim_mlx.data.pairs import Pairs
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.files import publish
from aim_mlx.lit_training.config import CONTEXT_LENGTH, TEXT_SIZES, TrainConfig
from aim_mlx.training.folder import RUN
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
