"""Labelled images as batches, each a pure function of the seed and the step."""

from dataclasses import dataclass, replace

import numpy as np

from aim_mlx.config import PreprocessConfig
from aim_mlx.data.parts import Part
from aim_mlx.errors import UsageError
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.images import preprocess
from aim_mlx.images.augment import augmented
from aim_mlx.images.pictures import Pictures
from aim_mlx.probe.losses import Targets, targets_of


@dataclass(frozen=True)
class FinetuneBatch:
    """What a step learns from: normalised pixels, float32 (B, H, W, 3), and their targets.

    Where images are mixed, `share` of each is its own, and the rest another's with `others`.
    """

    pixels: np.ndarray
    targets: Targets
    others: Targets
    share: float = 1.0


class FinetuneData:
    """The images of a part, as random views to train on and as they are to measure by."""

    def __init__(
        self,
        part: Part,
        classes: int,
        pictures: Pictures,
        preprocessing: PreprocessConfig,
        config: FinetuneConfig,
    ):
        self.part, self.config = part, config
        self._pictures, self._preprocessing = pictures, preprocessing
        if preprocessing.crop_size is None:
            raise UsageError("fine-tuning needs a model of one image size, not a native one")
        self._size = preprocessing.crop_size
        self._as_it_is = replace(preprocessing, shortest_edge=self._size)
        self.targets = targets_of(
            part.labels, classes, smoothing=config.label_smoothing, balanced=config.balanced
        )

    def __len__(self) -> int:
        return len(self.part)

    @property
    def steps_in_epoch(self) -> int:
        return -(-len(self) // self.config.batch_size)

    @property
    def steps(self) -> int:
        """How many there are if nothing stops it early."""
        return self.config.epochs * self.steps_in_epoch

    def count(self, step: int) -> int:
        """The images of a step."""
        return len(self.images(step))

    def images(self, step: int) -> np.ndarray:
        """The images of a step, by their place in the part; batches are of nearly one size."""
        epoch, number = divmod(step, self.steps_in_epoch)
        order = np.random.default_rng([self.config.seed, 0, epoch]).permutation(len(self))
        return np.array_split(order, self.steps_in_epoch)[number]

    def batch(self, step: int, rows: slice = slice(None)) -> FinetuneBatch:
        """Random views of a step's images, or of these rows of them, the same for the same step."""
        images = self.images(step)
        others, share = images[::-1][rows], 1.0
        if self.config.mixup:
            rng = np.random.default_rng([self.config.seed, 3, step])
            share = float(rng.beta(self.config.mixup, self.config.mixup))
        images = images[rows]
        views = {image: self._view(step, image) for image in images}
        pixels = np.stack([views[image] for image in images])
        if share < 1:
            for image in set(others) - set(views):  # where another process has the other half
                views[image] = self._view(step, image)
            mixed = np.stack([views[image] for image in others])
            pixels = (share * pixels + (1 - share) * mixed).astype(np.float32)
        return FinetuneBatch(pixels, self.targets.of(images), self.targets.of(others), share)

    def _view(self, step: int, image: int) -> np.ndarray:
        rng = np.random.default_rng([self.config.seed, 1, step, int(image)])
        view = augmented(
            self._pictures.required(self.part.paths[image]),
            self._size,
            rng,
            self.config.smallest_crop,
            self.config.flip,
            self.config.jitter,
            self.config.randaugment,
        )
        return preprocess(view, self._as_it_is)

    def fixed(self, images: np.ndarray) -> np.ndarray:
        """Whole images, as the encoder sees them: normalised pixels (B, H, W, 3)."""
        paths = [self.part.paths[image] for image in images]
        return np.stack(
            [preprocess(self._pictures.required(p), self._preprocessing) for p in paths]
        )
