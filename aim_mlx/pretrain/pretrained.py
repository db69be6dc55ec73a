"""A pre-trained network in its folder: an encoder as any other, and beside it the decoder."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aim_mlx.backend import mx, tree_flatten
from aim_mlx.config import PreprocessConfig, TextConfig, from_dict, to_dict
from aim_mlx.encoder.encoder import Encoder, listed
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.files import disk_errors, publish
from aim_mlx.images import ImageSource
from aim_mlx.loading import load
from aim_mlx.models.decoder import PretrainingConfig, PretrainingModel
from aim_mlx.pretrain.generate import captions, continued
from aim_mlx.weights.safetensors_file import TensorReader, check_file
from aim_mlx.weights.safetensors_writer import write_arrays
from aim_mlx.weights.save import WORK_FOLDER
from aim_mlx.weights.sizes import check_shapes
from aim_mlx.weights.strict_json import parse_object
from aim_mlx.words.tokenizer import Tokenizer

DECODER = "decoder.safetensors"
_CONFIG = "decoder"  # its sizes in that file's metadata
_AT_ONCE = 16  # images


@dataclass
class Pretrained:
    """The encoder and decoder of one training; the tokenizer is None where it had no captions."""

    model: PretrainingModel
    preprocessing: PreprocessConfig
    tokenizer: Tokenizer | None

    def caption(
        self,
        images: Sequence[ImageSource],
        *,
        longest: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """A caption for each image: the likeliest words, or with a temperature drawn ones.

        `longest` is in tokens. Raises UsageError for a model that was trained without captions, and
        ImageError for an image that cannot be decoded.
        """
        if self.tokenizer is None:
            raise UsageError("this model was trained without captions, and writes none")
        longest = self.model.config.decoder.context_length if longest is None else longest
        encoder, images, written = self._encoder(), listed(images), []
        for start in range(0, len(images), _AT_ONCE):
            pixels = mx.array(encoder.preprocess(images[start : start + _AT_ONCE]))
            rows = captions(self.model, pixels, longest, temperature, seed + start)
            written += map(self.tokenizer.decode, rows)
        return written

    def finish(self, image: ImageSource, rows: int) -> np.ndarray:
        """An image whose first `rows` of patches are kept and the others generated.

        uint8 (H, W, 3) in the model's size. Raises UsageError for rows that leave nothing to do.
        """
        pixels = self._encoder().preprocess([image])[0]
        grid = pixels.shape[1] // self.preprocessing.patch_size
        if not 1 <= rows < grid:
            raise UsageError(f"expected to keep 1 to {grid - 1} rows of patches, got {rows}")
        return as_image(continued(self.model, pixels, rows * grid), self.preprocessing)

    def _encoder(self) -> Encoder:
        return Encoder(self.model.encoder, self.preprocessing)


def as_image(pixels: np.ndarray, preprocessing: PreprocessConfig) -> np.ndarray:
    """Normalised pixels (H, W, 3) -> uint8 (H, W, 3)."""
    colours = pixels * np.array(preprocessing.std) + np.array(preprocessing.mean)
    return np.round(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def save_decoder(work: Path, model: PretrainingModel) -> None:
    """Publishes all but the encoder in a run's working folder; raises OSError."""
    tensors = {n: np.asarray(v) for n, v in _beside_encoder(model).items()}
    about = {"format": "mlx", _CONFIG: json.dumps(to_dict(model.config.decoder))}
    publish({work / DECODER: lambda file: write_arrays(file, tensors, about)})


def load_pretrained(folder: str | os.PathLike[str]) -> Pretrained:
    """The network of a folder that pre-training wrote.

    Raises CheckpointError for a folder without a decoder, or whose files are not sound.
    """
    path = Path(folder) / WORK_FOLDER / DECODER
    with disk_errors("read", path, "allow that, or choose another folder", CheckpointError):
        finished = path.is_file()
    if not finished:
        raise CheckpointError(
            f"{os.fspath(folder)!r} has no {WORK_FOLDER}/{DECODER}: expected a folder that "
            "aim-mlx pretrain finished"
        )
    encoder = load(folder, dtype="float32")
    checked = check_file(path)
    values = parse_object(
        checked.metadata.get(_CONFIG, "").encode(), f"'decoder' in the metadata of {path.name}"
    )
    text = from_dict(TextConfig, values)
    model = PretrainingModel(PretrainingConfig(encoder.model.config, text))
    check_shapes(
        {name: info.shape for name, info in checked.tensors.items()},
        {name: value.shape for name, value in _beside_encoder(model).items()},
    )
    with TensorReader(checked) as reader:
        tensors = {name: reader.read(name) for name in checked.tensors}
    for name, value in tensors.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise CheckpointError(
                f"tensor {name} of {os.fspath(path)!r} does not hold finite float32 weights: run "
                "the same pretrain command again to write it anew"
            )
    weights = [(name, mx.array(value)) for name, value in tensors.items()]
    of_encoder = dict(tree_flatten(encoder.model.parameters()))
    weights += [(f"encoder.{name}", value) for name, value in of_encoder.items()]
    model.load_weights(weights, strict=True)
    mx.eval(model.parameters())
    tokenizer = Tokenizer.load(path.parent, text)
    if tokenizer is None and text.vocab_size > 1:  # without captions, one token stands for all
        raise CheckpointError(
            f"{os.fspath(path.parent)!r} has no tokenizer.json: expected that of its training"
        )
    return Pretrained(model, encoder.preprocessing, tokenizer)


def _beside_encoder(model: PretrainingModel) -> dict[str, mx.array]:
    tensors = dict(tree_flatten(model.parameters()))
    return {name: value for name, value in tensors.items() if not name.startswith("encoder.")}
