"""The steps of pre-training: each a function of the state before it and of its number."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from aim_mlx.backend import concurrency, mx
from aim_mlx.models.decoder import PretrainingModel
from aim_mlx.pretrain.data import PretrainingData
from aim_mlx.pretrain.losses import Batch, counts, losses
from aim_mlx.pretrain.model import decays
from aim_mlx.training.batch_trainer import BatchTrainer
from aim_mlx.training.optimizer import adamw
from aim_mlx.training.parallel import ALONE, ProcessGroup

_BETAS = 0.9, 0.95
_SHARE = 8  # images that a core has at least, where a batch is divided among them
_MOST_SHARES = 64
_RECORDS, _EVALUATIONS = 500, 20  # of a run, at most
_LARGEST_VALIDATION = 1024  # images


class PretrainTrainer(BatchTrainer):
    """A model in pre-training.

    `measure` gives figures of the encoder, at most _EVALUATIONS times. Where `validation` has
    pictures, their losses are recorded then too. In a group the first process alone measures.
    """

    def __init__(
        self,
        model: PretrainingModel,
        train: PretrainingData,
        validation: PretrainingData | None,
        dtype: mx.Dtype = mx.float32,
        measure: Callable[[PretrainingModel], dict[str, float]] | None = None,
        group: ProcessGroup = ALONE,
    ):
        self.train, self.validation, self._measure = train, validation, measure
        networks = [PretrainingModel(model.config) for _ in range(concurrency(_MOST_SHARES))]
        mx.eval(mx.random.state)  # making the layers drew numbers that were never computed
        super().__init__(
            model,
            networks,
            adamw(model, train.config.weight_decay, decays, _BETAS),
            train,
            train.config.weights,
            dtype,
            train.config.parts,
            _SHARE,
            group,
        )

    def validation_losses(self) -> dict[str, float]:
        """The mean losses of the validation pictures, with the same prefixes every time."""
        if self.validation is None:
            return {}
        count = min(len(self.validation), _LARGEST_VALIDATION)
        size = -(-self.config.batch_size // self.config.parts)
        total, counted = np.zeros(2), np.zeros(2, np.int64)
        images = self.validation.sample(count)[self._group.rows(count)]
        for start in range(0, len(images), size):
            batch = self.validation.fixed(images[start : start + size])
            sums = losses(self.model, *batch.arrays())
            mx.eval(sums)
            total += [float(each) for each in sums]
            counted += counts(batch, self.validation.patches)
        total, counted = self._group.total(total), self._group.total(counted)
        pixels, text = (float(each) for each in total / np.maximum(counted, 1))
        return {"val_pixel_loss": pixels} | ({"val_text_loss": text} if counted[1] else {})

    def _counts(self, batch: Batch) -> np.ndarray:
        return np.array(counts(batch, self.train.patches))

    def _arguments(self, batch: Batch) -> Callable[[slice], tuple[Any, ...]]:
        return lambda rows: batch.part(rows).arrays()

    def _losses(self, network: PretrainingModel, *arguments: Any) -> list[mx.array]:
        return [*losses(network, *arguments, checkpointed=self.config.checkpointed)]

    def _record(self, last: np.ndarray, rate: float, norm: float) -> dict[str, Any] | None:
        """The mean losses since the last record, where one is due."""
        measured = self.done or self.step % math.ceil(self.steps / _EVALUATIONS) == 0
        if not measured and self.step % math.ceil(self.steps / _RECORDS):
            return None
        pixels, text = self._mean_losses()
        of_pixels, of_text = self.config.weights
        record: dict[str, Any] = {
            "step": self.step,
            "loss": of_pixels * pixels + of_text * text,
            "pixel_loss": pixels,
            "text_loss": text if self.config.objective != "pixels" else None,
            "rate": rate,
            "grad_norm": norm,
            "measured": measured,
        }
        if measured:
            record |= self.validation_losses()
            record |= self._measure(self.model) if self._measure else {}
        self.history = [*self.history, record]
        return record
