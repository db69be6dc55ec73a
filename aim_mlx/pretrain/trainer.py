"""The steps of pre-training: each a function of the state before it and of its number."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from aim_mlx.backend import (
    concurrency,
    mx,
    on_gpu,
    optim,
    tree_flatten,
    tree_map,
    tree_unflatten,
)
from aim_mlx.encoder.pipeline import explained
from aim_mlx.errors import NotFinite
from aim_mlx.models.decoder import PretrainingModel
from aim_mlx.pretrain.data import PretrainingData
from aim_mlx.pretrain.losses import Batch, counts, losses
from aim_mlx.pretrain.model import decays
from aim_mlx.training.ahead import Ahead
from aim_mlx.training.optimizer import adamw
from aim_mlx.training.parallel import ALONE, ProcessGroup
from aim_mlx.training.shares import Division, Tree, summed_gradient

_BETAS = 0.9, 0.95
_SHARE = 8  # images that a core has at least, where a batch is divided among them
_MOST_SHARES = 64
_RECORDS, _EVALUATIONS = 500, 20  # of a run, at most
_LARGEST_VALIDATION = 1024  # images
# Gradients of float16 vanish below 6e-8; those of the other dtypes reach as far as float32's.
_SCALES: dict[mx.Dtype, float] = {mx.float16: 1024.0}


class PretrainTrainer:
    """A model in pre-training. `step` counts the steps done; `history` holds records of them.

    The model's parameters are float32; the forward and backward passes are in `dtype`. `measure`
    gives figures of the encoder, at most _EVALUATIONS times. Where `validation` has pictures, their
    losses are recorded then too.

    In a group each process has its own trainer of the same arguments, which computes a share of
    every batch; the first one alone measures.
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
        self.model, self.train, self.validation = model, train, validation
        self.config, self._group = train.config, group
        self._rows = group.rows(self.config.batch_size)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._dtype, self._measure = dtype, measure
        self._scale = _SCALES.get(dtype, 1.0)
        self._optimizer = adamw(model, self.config.weight_decay, decays, _BETAS)
        # Each has a network of its own, as the parameters in it are replaced while it computes.
        self._gradients = [self._gradient_function() for _ in range(concurrency(_MOST_SHARES))]
        mx.eval(mx.random.state)  # making the layers drew numbers that were never computed
        # Of the steps since the last record: their number, and the sums of both losses.
        self._recent = np.zeros(3, np.float32)
        self._batches = Ahead(partial(train.batch, rows=self._rows), train.steps)

    @property
    def steps(self) -> int:
        return self.train.steps

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def close(self) -> None:
        """Ends the thread that prepares batches."""
        self._batches.close()

    def run_step(self) -> dict[str, Any] | None:
        """Does one step; returns the record that it added to `history`, if it did.

        Raises NotFinite, the model as it was before, where loss or gradient is not finite.
        """
        batch = self._batches.batch(self.step)
        found, gradient = self._batch_gradient(batch)
        gradient, norm = optim.clip_grad_norm(gradient, self.config.clip_norm)
        mx.eval(norm, gradient)
        norm = float(norm)
        if not (np.isfinite(found).all() and math.isfinite(norm)):
            raise NotFinite(
                f"the losses of step {self.step + 1} are {found[0]:g} and {found[1]:g}, the "
                f"gradient's norm is {norm:g}: the last checkpoint is kept; start again in another "
                f"folder with a --learning-rate below {self.config.learning_rate:g}"
            )
        rate = self.config.rate(self.step, self.steps)
        self._optimizer.learning_rate = rate
        self._optimizer.update(self.model, gradient)
        mx.eval(self.model.parameters(), self._optimizer.state)
        self.step += 1
        self._recent += np.array([1, *found], np.float32)
        return self._record(rate, norm)

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

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name."""
        parts = {"model": self.model.parameters(), "optimizer": self._optimizer.state}
        return dict(tree_flatten(parts)) | {"recent": mx.array(self._recent)}

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same configuration."""
        parts: Any = tree_unflatten(list(state.items()))
        self.model.update(parts["model"])
        self._optimizer.state = parts["optimizer"]
        self._recent = np.array(state["recent"])
        self.step, self.history = step, history

    def _batch_gradient(self, batch: Batch) -> tuple[np.ndarray, Tree]:
        """The mean losses (pixels, text) of a batch and its gradient, computed part by part.

        `batch` is this process's share of it.
        """
        counted = np.array(counts(batch, self.train.patches))
        counted = np.maximum(self._group.total(counted), 1)
        # The mean over the processes is then the gradient of the whole batch.
        scale = self._scale * self._group.size
        weights = scale * np.array(self.config.weights) / counted
        weighs = mx.array(weights, mx.float32)

        def share(rows: slice, core: int) -> tuple[np.ndarray, Tree]:
            own = self.model.trainable_parameters()  # MLX changes this tree while it traces
            found = self._gradients[core](own, weighs, *batch.part(rows).arrays())
            (_, *sums), gradient = found
            mx.eval(sums, gradient)
            return np.array([float(each) for each in sums]), gradient

        of = Division(len(batch.pixels), self.config.parts, _SHARE, len(self._gradients))
        with explained(-(-of.count // self.config.parts)):
            sums, gradient = summed_gradient(of, share)
        sums, gradient = self._group.total(sums), self._group.mean(gradient)
        return sums / counted, tree_map(lambda value: value / self._scale, gradient)

    def _gradient_function(self) -> Callable[..., Any]:
        """A function of parameters and a batch: what is minimised, both losses, the gradient."""
        network = PretrainingModel(self.model.config)

        def loss(
            parameters: Tree,
            weights: mx.array,
            pixels: mx.array,
            prefix: mx.array,
            ids: mx.array | None,
            places: mx.array,
        ) -> tuple[mx.array, mx.array, mx.array]:
            network.update(tree_map(lambda value: value.astype(self._dtype), parameters))
            found = losses(network, pixels, prefix, ids, places, self.config.checkpointed)
            return (weights * mx.stack([*found])).sum(), *found

        gradient = mx.value_and_grad(loss)
        return mx.compile(gradient) if on_gpu() else gradient

    def _record(self, rate: float, norm: float) -> dict[str, Any] | None:
        """What is written down of the steps since the last record, where one is due."""
        last = self.step == self.steps
        measured = last or self.step % math.ceil(self.steps / _EVALUATIONS) == 0
        if not measured and self.step % math.ceil(self.steps / _RECORDS):
            return None
        count, pixels, text = (float(each) for each in self._recent)
        self._recent = np.zeros(3, np.float32)
        of_pixels, of_text = self.config.weights
        record: dict[str, Any] = {
            "step": self.step,
            "loss": (of_pixels * pixels + of_text * text) / count,
            "pixel_loss": pixels / count,
            "text_loss": text / count if self.config.objective != "pixels" else None,
            "rate": rate,
            "grad_norm": norm,
            "measured": measured,
        }
        if measured:
            record |= self.validation_losses()
            record |= self._measure(self.model) if self._measure else {}
        self.history = [*self.history, record]
        return record
