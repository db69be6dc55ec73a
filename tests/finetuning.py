"""Fine-tuning of a small encoder on handwritten digits."""

from pathlib import Path

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.data.labelled import Data
from aim_mlx.data.splits import DataSet, divided
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.finetune.data import FinetuneData
from aim_mlx.finetune.model import new_network
from aim_mlx.finetune.trainer import FinetuneTrainer
from aim_mlx.images.pictures import Pictures
from aim_mlx.probe.heads import HeadConfig, new_head
from tests.digits import write_digits
from tests.small import encoder

QUICK = {"batch_size": 16, "epochs": 2, "flip": False, "jitter": 0.0, "smallest_crop": 0.8}


def digits_in(folder: Path, each: int = 12) -> DataSet:
    return divided(Data(write_digits(folder, each)))


def trainer_of(
    digits: DataSet, dtype: mx.Dtype = mx.float32, parts: int = 1, warn=lambda _: None, **options
) -> FinetuneTrainer:
    """A small encoder at the start of a training on digits."""
    config, base = FinetuneConfig(**{**QUICK, **options}), encoder()
    files = {
        path: content.at(path) for part in digits.parts.values() for path, content in part.files()
    }
    pictures = Pictures(files, 112, 10**9)
    classes = len(digits.classes)
    train, val = (
        FinetuneData(digits.parts[name], classes, pictures, base.preprocessing, config)
        for name in ("train", "val")
    )
    head = new_head(HeadConfig(64, classes, 2, kind=config.head), config.seed)
    return FinetuneTrainer(
        lambda kind: new_network(base.model, head, config, kind), train, val, parts, dtype, warn
    )


def run(trainer: FinetuneTrainer, steps: int) -> FinetuneTrainer:
    for _ in range(steps):
        trainer.run_step()
    trainer.close()
    return trainer


def numbers(tensors) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tensors.items()}
