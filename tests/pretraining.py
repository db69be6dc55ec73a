"""Small pictures with captions to pre-train on: coloured shapes, drawn here."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from aim_mlx.backend import mx
from aim_mlx.config import PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.data.pairs import Pairs, read_pairs
from aim_mlx.images.pictures import Pictures
from aim_mlx.models.decoder import PretrainingConfig
from aim_mlx.pretrain.config import PretrainConfig, Sizes
from aim_mlx.pretrain.data import PretrainingData
from aim_mlx.pretrain.model import new_model
from aim_mlx.pretrain.trainer import PretrainTrainer
from aim_mlx.words.tokenizer import Tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 70, 220)}
SHAPES = ("circle", "square")
# In the place of the configuration nano: trains in a second.
TINY = Sizes((64, 176, 1, 2, 56), (48, 128, 1, 3), 520)


def picture(colour: str, shape: str, seed: int) -> Image.Image:
    """A shape somewhere on a light background, 64 x 64."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (64, 64), tuple(int(v) for v in rng.integers(200, 256, 3)))
    left, top = (int(v) for v in rng.integers(2, 26, 2))
    draw = ImageDraw.Draw(image)
    draw_shape = draw.ellipse if shape == "circle" else draw.rectangle
    draw_shape((left, top, left + 34, top + 34), fill=COLOURS[colour])
    return image


def write_pairs(folder: Path, count: int = 12) -> Path:
    """Pictures and pairs.jsonl: two captions for most, every fourth has none."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        colour, shape = list(COLOURS)[i % 3], SHAPES[i // 3 % 2]
        picture(colour, shape, i).save(folder / f"{i}.png")
        captions = [None] if i % 4 == 3 else [f"a {colour} {shape}", f"{shape} in {colour}"]
        lines += [json.dumps({"path": f"{i}.png", "caption": caption}) for caption in captions]
    table = folder / "pairs.jsonl"
    table.write_text("\n".join(lines) + "\n")
    return table


def data_of(
    pairs: Pairs, limit: int = 10**9, size: int = 56, captions: bool = True, **options
) -> PretrainingData:
    config = PretrainConfig(**{"batch_size": 4, **options})
    files = {p: c.at(p) for p, c in zip(pairs.paths, pairs.contents, strict=True)}
    tokenizer = Tokenizer.train(pairs.captions, 600, 78) if captions else None
    preprocessing = PreprocessConfig.hub(size)
    return PretrainingData(
        pairs, Pictures(files, 2 * size, limit), tokenizer, preprocessing, config
    )


def pairs_in(folder: Path) -> Pairs:
    return read_pairs(write_pairs(folder), may_lack_captions=True)[0]


def trainer_of(
    pairs: Pairs, validation: Pairs | None = None, dtype: mx.Dtype = mx.float32, **options
) -> PretrainTrainer:
    """A tiny network at its start."""
    data = data_of(pairs, **options)
    tokenizer = data.tokenizer
    vocabulary = (tokenizer.vocab_size, 77, tokenizer.eos_token_id) if tokenizer else (1, 77, 0)
    text = TextConfig(48, 128, 2, 3, *vocabulary)
    config = PretrainingConfig(VisionConfig(64, 176, 2, 2, 14, 56), text)
    held_out = data_of(validation, **options) if validation else None
    return PretrainTrainer(new_model(config, data.config.seed), data, held_out, dtype)
