"""The folder beside the model that says what a run is, so that it never goes on as another."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aim_mlx.config import to_dict
from aim_mlx.durable import publish
from aim_mlx.embed import Encoder
from aim_mlx.errors import OutputError
from aim_mlx.lit_training.config import CONTEXT_LENGTH, TEXT_SIZES, TrainConfig
from aim_mlx.lit_training.pairs import Pairs
from aim_mlx.tokenizer import Tokenizer
from aim_mlx.weights.save import WORK_FOLDER, check_folder

RUN, METRICS = "run.json", "metrics.json"


def run_facts(encoder: Encoder, pairs: Pairs, config: TrainConfig) -> dict[str, Any]:
    """All that decides a run's result, as JSON values."""
    return {
        **{name.replace("_", " "): value for name, value in asdict(config).items()},
        "weights": encoder.weights_digest,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "pairs": pairs.digest(),
    }


def check_output(folder: Path) -> None:
    """Raises OutputError for a folder that holds something else than a run of this kind."""
    if not folder.parent.is_dir():
        raise OutputError(f"folder {str(folder.parent)!r} does not exist: create it first")
    check_folder(folder, overwrite=(folder / WORK_FOLDER / RUN).is_file())


def check_same_run(work: Path, facts: Mapping[str, Any]) -> None:
    """Raises OutputError, naming what differs, where a folder holds another run."""
    path = work / RUN
    try:
        there = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(path)!r} cannot be read: choose another folder") from error
    there = there if isinstance(there, dict) else {}
    for name, value in facts.items():
        if (found := there.get(name)) != value:
            raise OutputError(
                f"{str(work.parent)!r} holds a run with another {name}, {_short(found)} and not "
                f"{_short(value)}: choose another folder, or give the same command"
            )


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


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """A failing disk becomes one line."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {str(folder)!r}: {error.strerror or error}; the last checkpoint is "
            "kept, and the same command resumes"
        ) from error


def _writing(content: bytes) -> Callable[[Any], Any]:
    return lambda file: file.write(content)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
