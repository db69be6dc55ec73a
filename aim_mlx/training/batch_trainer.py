"""A network that learns batch by batch, each core and each process a share of every batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aim_mlx.backend import mx, nn, on_gpu, optim, tree_flatten, tree_map, tree_unflatten
from aim_mlx.errors import NotFinite
from aim_mlx.failures import explained
from aim_mlx.training.ahead import Ahead
from aim_mlx.training.parallel import ProcessGroup
from aim_mlx.training.shares import Division, Tree, summed_gradient

# Gradients of float16 vanish below 6e-8; those of the other dtypes reach as far as float32's.
_SCALES: dict[mx.Dtype, float] = {mx.float16: 1024.0}


class BatchTrainer(ABC):
    """A model in training: each step is a function of the state before it and of its number.

    `step` counts the steps done; `history` has records of them. What is trained is float32; the
    forward and backward passes are in `dtype`, in one of the `networks` for each core, as the
    weights there are replaced while it computes. What is minimised is the sum of the losses times
    `weights`.

    `train` has `config`, `steps`, `count(step)`, which is the images of a step, and `batch(step,
    rows)`, which is these of them: `pixels` and more. A core has `least` images at least, and a
    batch is computed in `parts`. In a group each process has its own trainer of the same arguments,
    which computes a share of every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        networks: Sequence[Any],
        optimizer: optim.MultiOptimizer,
        train: Any,
        weights: Sequence[float],
        dtype: mx.Dtype,
        parts: int,
        least: int,
        group: ProcessGroup,
    ):
        self.model: Any = model
        self.config, self.steps = train.config, train.steps
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._optimizer, self._dtype, self._group = optimizer, dtype, group
        self._parts, self._least, self._networks = parts, least, networks
        self._gradients = [self._gradient_function(network) for network in networks]
        self._scale, self._weights = _SCALES.get(dtype, 1.0), np.array(weights)
        self._sums = np.zeros(1 + len(weights))  # since a record: of steps, and of their losses
        self._rows = lambda step: group.rows(train.count(step))
        self._batches = Ahead(lambda step: train.batch(step, self._rows(step)), self.steps)

    @abstractmethod
    def _counts(self, batch: Any) -> np.ndarray:
        """What the sum of each loss is to be divided by."""

    @abstractmethod
    def _arguments(self, batch: Any) -> Callable[[slice], tuple[Any, ...]]:
        """What `_losses` is given of rows of a batch."""

    @abstractmethod
    def _losses(self, network: Any, *arguments: Any) -> list[mx.array]:
        """The sum of each loss."""

    @abstractmethod
    def _record(self, losses: np.ndarray, rate: float, norm: float) -> dict[str, Any] | None:
        """What is added to `history` after a step of these losses, rate and gradient norm."""

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def close(self) -> None:
        """Ends the thread that prepares batches."""
        self._batches.close()

    def run_step(self) -> dict[str, Any] | None:
        """Does one step; the record that it added to `history`, None where it added none.

        Raises NotFinite, the weights as they were before, where a loss or the gradient is not.
        """
        losses, gradient = self._batch_gradient(self._batches.batch(self.step))
        gradient, norm = optim.clip_grad_norm(gradient, self.config.clip_norm)
        mx.eval(norm, gradient)
        norm = float(norm)
        if not (np.isfinite(losses).all() and math.isfinite(norm)):
            values = " and ".join(f"{loss:g}" for loss in losses)
            raise self._not_finite(
                f"the loss of step {self.step + 1} is {values}, the gradient's norm {norm:g}"
            )
        rate = self.config.rate(self.step, self.steps)
        self._optimizer.learning_rate = rate
        self._optimizer.update(self.model, gradient)
        mx.eval(self.model.trainable_parameters(), self._optimizer.state)
        self.step += 1
        self._sums += [1, *losses]
        return self._record(losses, rate, norm)

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name."""
        parts = {"model": self.model.trainable_parameters(), "optimizer": self._optimizer.state}
        return dict(tree_flatten(parts)) | {"sums": mx.array(self._sums.view(np.uint32))}

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same arguments."""
        parts: Any = tree_unflatten(list(state.items()))
        self.model.update(parts["model"])
        self._optimizer.state = parts["optimizer"]
        self._sums = np.array(state["sums"]).view(np.float64)
        self.step, self.history = step, history

    def _not_finite(self, what: str) -> NotFinite:
        return NotFinite(
            f"{what}: the last checkpoint is kept; start again in another folder with a "
            f"--learning-rate below {self.config.peak_rate:g}"
        )

    def _mean_losses(self) -> list[float]:
        """Those of the steps since it was last asked for."""
        count, *sums = self._sums.tolist()
        self._sums = np.zeros_like(self._sums)
        return [each / count for each in sums]

    def _batch_gradient(self, batch: Any) -> tuple[np.ndarray, Tree]:
        """The mean losses of a batch, of which this process has a share, and its gradient."""
        counted = self._group.total(self._counts(batch))
        counted = np.where(counted == 0, 1, counted)
        # The mean over the processes is then the gradient of the whole batch.
        scale = self._scale * self._group.size
        weights = mx.array(scale * self._weights / counted, mx.float32)
        arguments = self._arguments(batch)

        def share(rows: slice, number: int) -> tuple[np.ndarray, Tree]:
            (_, sums), gradient = self._gradients[number](
                self.model.trainable_parameters(),  # MLX changes this tree while it traces
                weights,
                *arguments(rows),
            )
            mx.eval(sums, gradient)
            return np.array([float(each) for each in sums]), gradient

        of = Division(len(batch.pixels), self._parts, self._least, len(self._networks))
        with explained(-(-of.count // self._parts)):
            sums, gradient = summed_gradient(of, share)
        sums, gradient = self._group.total(sums), self._group.mean(gradient)
        return sums / counted, tree_map(lambda value: value / self._scale, gradient)

    def _gradient_function(self, network: nn.Module) -> Callable[..., Any]:
        """A function of weights and a batch: what is minimised, the losses, and the gradient."""

        def loss(
            parameters: Tree, weights: mx.array, *arguments: Any
        ) -> tuple[mx.array, list[mx.array]]:
            network.update(self._cast(parameters))
            sums = self._losses(network, *arguments)
            return (weights * mx.stack(sums)).sum(), sums

        gradient = mx.value_and_grad(loss)
        return mx.compile(gradient) if on_gpu() else gradient

    def _cast(self, weights: Tree) -> Tree:
        """Weights as the forward pass takes them."""
        return tree_map(lambda value: value.astype(self._dtype), weights)
