"""How well the encoder's features part labelled images, measured while it is trained."""

from collections.abc import Callable
from typing import Any

import numpy as np

from aim_mlx.config import PreprocessConfig
from aim_mlx.data.labelled import Data
from aim_mlx.data.splits import divided
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.images.pictures import Pictures
from aim_mlx.models.decoder import PretrainingModel
from aim_mlx.probe.knn import knn_scores

_NEIGHBOURS = 10
_RIDGE = 1e-3  # of the mean eigenvalue of the features' covariance


class Measure:
    """Accuracy on the labelled images held out, with nothing of the encoder trained.

    Of `k` nearest neighbours, and of a linear layer fitted by least squares, on the mean of the
    tokens; those that cannot be decoded are left out. Raises UsageError for bad data.
    """

    def __init__(
        self,
        data: Data,
        preprocessing: PreprocessConfig,
        seed: int,
        progress: Callable[[int, int], None],
    ):
        found = divided(data, seed, progress)
        files = {
            path: content.at(path)
            for part in found.parts.values()
            for path, content in zip(part.paths, part.contents, strict=True)
        }
        side = preprocessing.crop_size or 0
        found = found.without(Pictures(files, side, limit=0).check(progress))
        self.skips, self.digest = found.skips, found.digest()
        self._preprocessing, self._classes = preprocessing, len(found.classes)
        self._train = found.parts["train"]
        self._test = found.parts.get("test", found.parts["val"])

    def __call__(self, model: PretrainingModel) -> dict[str, Any]:
        encoder = Encoder(model.encoder, self._preprocessing)
        train, test = (encoder.embed(part.paths) for part in (self._train, self._test))
        labels, k = self._train.labels, _NEIGHBOURS
        nearest = knn_scores(train, labels, test, self._classes, [k])[k].argmax(axis=1)
        linear = least_squares(train, labels, test, self._classes)
        right = self._test.labels
        return {"knn": float((nearest == right).mean()), "linear": float((linear == right).mean())}


def least_squares(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int
) -> np.ndarray:
    """The class of each test vector (m,) by ridge regression from vectors (n, D) to classes."""
    mean = train.mean(axis=0)
    x = (train - mean).astype(np.float64)
    wanted = np.eye(classes)[labels]
    covariance = x.T @ x
    ridge = _RIDGE * np.trace(covariance) / len(covariance)
    weights = np.linalg.solve(
        covariance + ridge * np.eye(len(covariance)), x.T @ (wanted - wanted.mean(axis=0))
    )
    return ((test - mean) @ weights + wanted.mean(axis=0)).argmax(axis=1)
