"""A whole pre-training in a folder: read, train, save; the same call resumes it.

FOLDER/training/ holds run.json (what is trained on what, which later calls must match),
tokenizer.json, checkpoint.safetensors, metrics.jsonl and at the end decoder.safetensors.
FOLDER/report.html is renewed as it goes. The finished encoder is FOLDER itself.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aim_mlx.backend import dtype_named, nn, on_gpu, tree_flatten
from aim_mlx.config import PreprocessConfig, VisionConfig, to_dict
from aim_mlx.data.labelled import Data
from aim_mlx.data.pairs import Pairs, read_pairs, split
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.images.pictures import Pictures
from aim_mlx.models.decoder import PretrainingConfig, PretrainingModel
from aim_mlx.pretrain.config import (
    CONFIGS,
    CONTEXT_LENGTH,
    PretrainConfig,
    decoder_config,
    vision_config,
)
from aim_mlx.pretrain.data import PretrainingData
from aim_mlx.pretrain.measure import Measure
from aim_mlx.pretrain.model import new_model
from aim_mlx.pretrain.page import write_page
from aim_mlx.pretrain.pretrained import save_decoder
from aim_mlx.pretrain.trainer import PretrainTrainer
from aim_mlx.training import loop
from aim_mlx.training.folder import RUN, begin, check_output, working, write_lines
from aim_mlx.training.parallel import ALONE, ProcessGroup
from aim_mlx.training.report import PassedOn, Report, Silent, advancing, never
from aim_mlx.weights.save import WORK_FOLDER, check_folder, provenance, save_checkpoint
from aim_mlx.wording import counted
from aim_mlx.words.tokenizer import SMALLEST_VOCABULARY, Tokenizer

_LEARNED = 2000  # characters of a caption: a vocabulary of very long words takes minutes
METRICS, PAGE = "metrics.jsonl", "report.html"


@dataclass(frozen=True)
class TrainedEncoder:
    """What a run came to; `metrics` is its last record."""

    output: str
    images: int
    captions: int
    held_out: int
    skipped: int
    steps: int
    metrics: dict[str, Any]
    seconds: float

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


def pretrain(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    config: PretrainConfig,
    report: Report | None = None,
    *,
    columns: tuple[str, str] = ("path", "caption"),
    init: Callable[[], Encoder] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    labelled: Data | None = None,
    memory: int = 4 * 10**9,
    dtype: str | None = None,
    stop: Callable[[], bool] = never,
    group: ProcessGroup = ALONE,
) -> TrainedEncoder:
    """Pre-trains an encoder on a table of pictures and captions, or on a folder of pictures.

    `init` gives an encoder to go on from; its sizes then count, and those of the configuration for
    the decoder alone. `tokenizer` is a folder that has one (default: learned from the captions).
    With `labelled` the encoder's features are measured as it goes. `memory` bounds the decoded
    pictures that are kept, in bytes. `dtype` None is float32 on a CPU and bfloat16 on a GPU. A run
    ends early, with a checkpoint and Interrupted, once `stop` returns True. Interrupted or killed,
    the same call goes on from the last checkpoint, on a CPU to the same bits. Raises UsageError for
    bad pairs or options, OutputError for a folder of another run or one in use, NotFinite where a
    loss is not finite.

    In a `group` every process calls it with the same arguments and computes its share of each
    batch; the first alone reports, measures and touches the folder. Raises UsageError where they
    differ, AimError where one has ended.
    """
    started = time.monotonic()
    report = report if report and group.is_first else Silent()
    folder, source = Path(folder), Path(source)
    _check_sizes(config, group)
    if group.is_first:
        check_output(folder)
        check_folder(folder, overwrite=True)
    advanced = advancing(report, stop)
    dtype = dtype or ("bfloat16" if on_gpu() else "float32")
    precision = dtype_named(dtype)
    given = None if tokenizer is None else _given(tokenizer)
    pairs, skips = read_pairs(
        source,
        columns,
        partial(advanced, "reading images"),
        may_lack_captions=True,
        noted=report.noted,
    )
    _check_batch(config, pairs)
    config = _objective(config, pairs, report)
    start = _start(config, _checked(init()) if init else None)
    reading = partial(advanced, "reading labelled images")
    measure = None
    if labelled is not None and group.is_first:
        measure = Measure(labelled, start.preprocessing, config.seed, reading)
    about = _about(config, pairs, start, dtype, measure)
    with working(folder, about) if group.is_first else nullcontext(folder / WORK_FOLDER) as work:
        files = {p: c.at(p) for p, c in zip(pairs.paths, pairs.contents, strict=True)}
        pictures = Pictures(files, 2 * (start.vision.image_size or 0), memory)
        skips += pictures.check(partial(advanced, "decoding images"))
        whole = pairs.without({skip.path for skip in skips})
        skips += measure.skips if measure else ()
        for skip in skips:
            report.skipped(skip)
        parts = split(whole, config.held_out, config.seed)
        group.check_same({**about, "labelled": None, "images that can be decoded": whole.digest()})
        words = _tokenizer(work, given, parts[0].captions, config) if group.is_first else None
        words = _shared(words, group)
        train, validation = (
            PretrainingData(part, pictures, words, start.preprocessing, config) for part in parts
        )
        if train.cut:
            report.noted(f"{counted(train.cut, 'caption')} cut off after {CONTEXT_LENGTH} tokens")
        model = _model(start, words, config)
        held_out = validation if len(validation) else None
        trainer = PretrainTrainer(model, train, held_out, precision, measure, group)
        writing = _Writing(report, trainer, folder, f"Pre-training on {source.name}")
        if group.is_first:
            begin(work, about, words.files() if words else None)
        try:
            loop.run(trainer, work, writing if group.is_first else report, stop=stop, group=group)
        finally:
            trainer.close()
        if group.is_first:
            writing.write()  # also where a kill came just before
            save_decoder(work, model)
            _save(folder, trainer, start, source.name, about)
    return TrainedEncoder(
        output=str(folder),
        images=len(whole.paths),
        captions=len(whole.captions),
        held_out=len(validation),
        skipped=len(skips),
        steps=trainer.steps,
        metrics=trainer.history[-1],
        seconds=round(time.monotonic() - started, 3),
    )


@dataclass(frozen=True)
class _Start:
    """What a run starts from: sizes and preprocessing, and perhaps an encoder that has them."""

    vision: VisionConfig
    preprocessing: PreprocessConfig
    encoder: Encoder | None


def _start(config: PretrainConfig, encoder: Encoder | None) -> _Start:
    if encoder is not None:
        vision = encoder.model.config
        return _Start(vision, replace(encoder.preprocessing, patch_size=vision.patch_size), encoder)
    vision = vision_config(config.config)
    return _Start(vision, PreprocessConfig.hub(vision.image_size), None)


def _about(
    config: PretrainConfig, pairs: Pairs, start: _Start, dtype: str, measure: Measure | None
) -> dict[str, Any]:
    """All that decides a run's result and its records."""
    return {
        **{name.replace("_", " "): value for name, value in asdict(config).items()},
        "dtype": dtype,
        "pairs": pairs.digest(),
        "init": start.encoder.weights_digest if start.encoder else None,
        "encoder": to_dict(start.vision),
        "preprocessing": to_dict(start.preprocessing),
        "labelled": measure.digest if measure else None,
    }


def _model(start: _Start, words: Tokenizer | None, config: PretrainConfig) -> PretrainingModel:
    """The network at its start; without words its vocabulary is of one token."""
    vocabulary = (words.vocab_size, words.eos_token_id) if words else (1, 0)
    sizes = PretrainingConfig(start.vision, decoder_config(config.config, *vocabulary))
    encoder = start.encoder
    weights = dict(tree_flatten(encoder.model.parameters())) if encoder else None
    return new_model(sizes, config.seed, weights)


class _Writing(PassedOn):
    """Writes down what the training records, and its page."""

    def __init__(self, report: Report, trainer: PretrainTrainer, folder: Path, title: str):
        super().__init__(report)
        self._trainer, self._title, self._page = trainer, title, folder / PAGE
        self._records = folder / WORK_FOLDER / METRICS

    def recorded(self, record: Mapping[str, Any]) -> None:
        super().recorded(record)
        if record["measured"]:
            self.write()

    def write(self) -> None:
        write_lines(self._records, map(json.dumps, self._trainer.history))
        write_page(self._page, self._title, self._trainer)


def _check_sizes(config: PretrainConfig, group: ProcessGroup) -> None:
    if 0 < config.vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"vocab size must be 0 or from {SMALLEST_VOCABULARY}, got {config.vocab_size}"
        )
    if config.batch_size < group.size:
        raise UsageError(
            f"batch size must be from {group.size}, the number of processes, got "
            f"{config.batch_size}"
        )


def _check_batch(config: PretrainConfig, pairs: Pairs) -> None:
    """Raises UsageError for too few images, before all of them are decoded."""
    images = len(split(pairs, config.held_out, config.seed)[0].paths) * config.epochs
    if config.batch_size > images:
        raise UsageError(
            f"batch size must be at most {images}, the images to train on times the epochs, got "
            f"{config.batch_size}"
        )


def _objective(config: PretrainConfig, pairs: Pairs, report: Report) -> PretrainConfig:
    """The configuration with an objective that the pairs can serve."""
    if pairs.captions or config.objective == "pixels":
        return config
    if config.objective == "captions":
        raise UsageError("no image has a caption: give a table with captions, or learn from pixels")
    report.noted("no image has a caption: the pixels alone are learned")
    return replace(config, objective="pixels")


def _checked(encoder: Encoder) -> Encoder:
    """The encoder to go on from; raises UsageError for one that cannot be trained here."""
    if any(isinstance(each, nn.QuantizedLinear) for each in encoder.model.modules()):
        raise UsageError("this model is quantised: train the one it was made from")
    size, grid = encoder.preprocessing.crop_size, encoder.model.config.grid
    if size is None or size != encoder.model.config.image_size or (grid or 0) < 2:
        raise UsageError(
            "pre-training needs a model of one image size, of 2 x 2 patches or more: choose one "
            "such as aimv2-large-patch14-224"
        )
    return encoder


def _given(folder: str | os.PathLike[str]) -> Tokenizer:
    words = Tokenizer.load(folder)
    if words is None:
        raise UsageError(f"{os.fspath(folder)!r} has no tokenizer.json: choose another folder")
    return words


def _tokenizer(
    work: Path,
    given: Tokenizer | None,
    captions: tuple[str, ...],
    config: PretrainConfig,
) -> Tokenizer | None:
    """The run's tokenizer, as it was when the run began; None where captions have no say.

    Raises OutputError where another is given now.
    """
    if config.objective == "pixels":
        return None
    words = Tokenizer.load(work) if (work / RUN).is_file() else None
    if words and given and words.files() != given.files():
        raise OutputError(
            f"{str(work.parent)!r} holds another run (its tokenizer): choose another folder, or "
            "give the same command"
        )
    words = words or given
    longest = CONTEXT_LENGTH + 1  # with the start token, which BOS stands for here
    if words is None:
        size = config.vocab_size or CONFIGS[config.config].vocab_size
        if not captions:
            raise UsageError(
                "no image to train on has a caption, as all are held out: add captions, or learn "
                "the pixels alone with --objective pixels"
            )
        return Tokenizer.train([text[:_LEARNED] for text in captions], size, longest)
    words.context_length = longest
    return words


def _shared(words: Tokenizer | None, group: ProcessGroup) -> Tokenizer | None:
    """The first process's tokenizer, in every process."""
    mine = words.files() if words else {}
    files = group.shared_values({name: content.decode() for name, content in mine.items()})
    if group.is_first or not files:
        return words
    with TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, "utf-8")
        words = Tokenizer.load(folder)
    assert words is not None
    words.context_length = CONTEXT_LENGTH + 1
    return words


def _save(
    folder: Path, trainer: PretrainTrainer, start: _Start, source: str, about: Mapping[str, Any]
) -> None:
    """Writes the finished encoder."""
    origin = {**start.encoder.identity, "sha256": about["init"]} if start.encoder else None
    history = provenance(
        source="aim-mlx pretrain",
        init=origin,
        pairs={"source": source, "sha256": about["pairs"], "images": len(trainer.train)},
        training=asdict(trainer.config),
        metrics=trainer.history[-1],
    )
    weights = dict(tree_flatten(trainer.model.encoder.parameters()))
    save_checkpoint(folder, weights, start.vision, start.preprocessing, history, overwrite=True)
