"""The steps of fine-tuning: each a function of the state before it and of its number."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from aim_mlx.backend import (
    concurrency,
    in_parallel,
    mx,
    on_gpu,
    optim,
    tree_flatten,
    tree_map,
    tree_unflatten,
)
from aim_mlx.encoder.pipeline import explained
from aim_mlx.errors import AimError, NotFinite
from aim_mlx.finetune.data import FinetuneBatch, FinetuneData
from aim_mlx.finetune.model import Classifier, decays, draw_dropout, rate_share
from aim_mlx.probe.losses import Targets, loss_sum, total_weight
from aim_mlx.report.figures import measured
from aim_mlx.training.ahead import Ahead
from aim_mlx.training.optimizer import ScaledAdamW
from aim_mlx.training.parallel import ALONE, ProcessGroup
from aim_mlx.training.shares import Division, Tree, summed_gradient

_SHARE_PATCHES = 512  # that a core has at least, where a batch is divided among them
_MOST_SHARES = 64
# A rate is called too high where the mean of so many losses is so many times that of the start.
_RECENT, _EXPLODED = 5, 2.0
Arrays = tuple[mx.array, mx.array]  # the values and the weights of targets
# Gradients of float16 vanish below 6e-8; those of the other dtypes reach as far as float32's.
_SCALES: dict[mx.Dtype, float] = {mx.float16: 1024.0}


@dataclass(frozen=True)
class Best:
    """The epoch to keep, counted from 1; `metric` is `figures.measured` on the validation part."""

    epoch: int
    metric: float
    loss: float


class FinetuneTrainer:
    """A classifier in training. `start` gives it as it begins, its frozen weights in a dtype.

    `step` counts the steps done; `history` has a record for every epoch done. What is trained is
    float32; the forward and backward passes are in `dtype`. A step is computed in `parts`. In a
    group each process has its own trainer of the same arguments, which computes a share of every
    batch, in a share of the parts.
    """

    def __init__(
        self,
        start: Callable[[mx.Dtype], Classifier],
        train: FinetuneData,
        validation: FinetuneData,
        parts: int,
        dtype: mx.Dtype = mx.float32,
        warn: Callable[[str], None] = lambda warning: None,
        group: ProcessGroup = ALONE,
    ):
        self.network, self.config = start(mx.float32), train.config
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._train, self._validation = train, validation
        self._parts, self._dtype, self._group = -(-parts // group.size), dtype, group
        self._scale = _SCALES.get(dtype, 1.0)
        vision = self.network.encoder.config
        decay = self.config.layer_decay if self.config.full else 1.0
        self._optimizer = ScaledAdamW(
            self.network,
            self.config.weight_decay,
            decays,
            partial(rate_share, blocks=vision.num_blocks, layer_decay=decay),
        )
        self._least = -(-_SHARE_PATCHES // (vision.grid or 1) ** 2)
        # Each core has a network of its own, as the weights in it are replaced while it computes.
        self._networks = [start(dtype) for _ in range(concurrency(_MOST_SHARES))]
        self._gradients = [self._gradient_function(network) for network in self._networks]
        self._sums = np.zeros(2)  # of this epoch: the losses, and what they weigh
        self._kept = self.weights()
        self._first_loss = math.nan
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._warn = warn
        self._batches = Ahead(self._batch, self.steps)

    @property
    def steps(self) -> int:
        """How many there are if nothing stops it early."""
        return self.config.epochs * self._train.steps_in_epoch

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or the last ones brought no better one."""
        patience, best = self.config.patience, self.best
        late = patience and best and self.epochs - best.epoch >= patience
        return self.step >= self.steps or bool(late)

    @property
    def epochs(self) -> int:
        """How many are done."""
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def best(self) -> Best | None:
        """The epoch with the highest metric, of equals the one of the lowest loss."""
        found = [Best(r["epoch"], r["metric"], r["val_loss"]) for r in self.history]
        return max(found, key=lambda each: (each.metric, -each.loss), default=None)

    def close(self) -> None:
        """Ends the thread that prepares batches."""
        self._batches.close()

    def measure(self) -> tuple[float, int]:
        """What the next step takes: seconds, and bytes beside the weights. Nothing moves by it."""
        batch = self._batches.batch(self.step)
        if on_gpu():
            self._batch_gradient(batch)  # the first time it is compiled
        before, started = mx.get_active_memory(), time.monotonic()
        mx.reset_peak_memory()
        self._batch_gradient(batch)
        return time.monotonic() - started, mx.get_peak_memory() - before

    def weights(self) -> dict[str, mx.array]:
        """What is trained, by name."""
        return dict(tree_flatten(self.network.trainable_parameters()))

    def best_weights(self) -> dict[str, mx.array]:
        """Those after the best epoch; raises AimError before the first one is done."""
        if self.best is None:
            raise AimError("no epoch is done yet: there is nothing to keep")
        return self._kept

    def run_step(self) -> dict[str, Any] | None:
        """Does one step; after the last of an epoch evaluates, and returns the epoch's record.

        Raises NotFinite, the weights as they were before, where loss or gradient is not finite.
        """
        batch = self._batches.batch(self.step)
        loss, gradient = self._batch_gradient(batch)
        gradient, norm = optim.clip_grad_norm(gradient, self.config.clip_norm)
        mx.eval(norm, gradient)
        norm = float(norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(
                f"the loss of step {self.step + 1} is {loss:g}, the gradient's norm {norm:g}: "
                "start again in another folder with a --learning-rate below "
                f"{self.config.peak_rate:g}"
            )
        rate = self.config.rate(self.step, self.steps)
        self._optimizer.set_rate(rate)
        self._optimizer.all.update(self.network, gradient)
        mx.eval(self.network.trainable_parameters(), self._optimizer.all.state)
        self.step += 1
        self._sums += np.array([loss, 1.0])
        self._watch(loss)
        if self.step % self._train.steps_in_epoch:
            return None
        loss, self._sums = float(self._sums[0] / self._sums[1]), np.zeros(2)
        return self._evaluate(rate, loss)

    def evaluate_start(self) -> dict[str, Any]:
        """Counts the weights as they are, before any step, as epoch 0; its record."""
        return self._evaluate(0.0, None)

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name."""
        parts = {"network": self.network.trainable_parameters()}
        parts["optimizer"] = self._optimizer.all.state
        tensors = dict(tree_flatten(parts)) | {"sums": mx.array(self._sums.view(np.uint32))}
        return tensors | {f"kept.{name}": value for name, value in self._kept.items()}

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same arguments."""
        parts: Any = tree_unflatten(list(state.items()))
        self.network.update(parts["network"])
        self._optimizer.all.state = parts["optimizer"]
        self._sums = np.array(state["sums"]).view(np.float64)
        self._kept = {name: state[f"kept.{name}"] for name in self._kept}
        self.step, self.history = step, history

    def logits(self, data: FinetuneData) -> np.ndarray:
        """Whole images of a part, in order -> logits, float32 (n, C), by the weights as they are.

        In a group each process computes a share.
        """
        mine = np.arange(len(data))[self._group.rows(len(data))]
        found = np.zeros((len(data), self.network.head.config.classes), np.float32)
        at_once = -(-self.config.batch_size // (self._group.size * self._parts))
        parts = self._division(len(mine), max(1, -(-len(mine) // at_once)))
        for network in self._networks:
            network.update(self._cast(self.network.trainable_parameters()))
            draw_dropout(network, None)
        for part in parts.rows() if len(mine) else []:
            shares = parts.shares(part)
            tasks = [
                partial(self._share_logits, data, mine[rows], number)
                for number, rows in enumerate(shares)
            ]
            with explained(part.stop - part.start):
                found[mine[part]] = np.concatenate(in_parallel(tasks))
        return self._group.total(found)

    def _watch(self, loss: float) -> None:
        """Warns, once, of a loss that rises far above that at the start and that of a guess."""
        if math.isnan(self._first_loss):
            classes = 2 if self._train.targets.multi_label else self.network.head.config.classes
            self._first_loss = max(loss, math.log(classes))
        self._recent.append(loss)
        mean = float(np.mean(self._recent))
        if len(self._recent) == _RECENT and mean > _EXPLODED * self._first_loss:
            self._warn(
                f"the loss rose to {mean:.3g} by step {self.step}: the learning rate is too high; "
                "stop, and start again in another folder with a --learning-rate below "
                f"{self.config.peak_rate / 3:.1g}"
            )
            self._first_loss = math.inf

    def _share_logits(self, data: FinetuneData, images: np.ndarray, number: int) -> np.ndarray:
        pixels = mx.array(data.fixed(images)).astype(self._dtype)
        return np.array(self._networks[number](pixels))

    def _batch(self, step: int) -> FinetuneBatch:
        """This process's share of a step's batch."""
        return self._train.batch(step, self._rows(step))

    def _rows(self, step: int) -> slice:
        return self._group.rows(len(self._train.images(step)))

    def _division(self, count: int, parts: int) -> Division:
        return Division(count, parts, self._least, len(self._networks))

    def _batch_gradient(self, batch: FinetuneBatch) -> tuple[float, Tree]:
        """The mean loss of a batch and its gradient; `batch` is this process's share of it."""
        own, other = batch.share, 1 - batch.share
        weight = own * total_weight(batch.targets) + other * total_weight(batch.others)
        weight = float(self._group.total(np.array(weight)))
        # The mean over the processes is then the gradient of the whole batch.
        scale = mx.array(self._scale * self._group.size / weight, mx.float32)
        mine = self._rows(self.step)
        keys = mx.random.split(mx.random.key(self._dropout_seed()), mine.stop)[mine.start :]
        mx.eval(keys)

        def share(rows: slice, number: int) -> tuple[np.ndarray, Tree]:
            (_, loss), gradient = self._gradients[number](
                self.network.trainable_parameters(),  # MLX changes this tree while it traces
                scale,
                keys[rows.start],
                mx.array(batch.pixels[rows]),
                _arrays(batch.targets, rows),
                _arrays(batch.others, rows) if other else None,
                mx.array(own, mx.float32),
            )
            mx.eval(loss, gradient)
            return np.array(float(loss)), gradient

        of = self._division(len(batch.pixels), self._parts)
        with explained(-(-of.count // self._parts)):
            total, gradient = summed_gradient(of, share)
        total, gradient = self._group.total(total), self._group.mean(gradient)
        return float(total) / weight, tree_map(lambda value: value / self._scale, gradient)

    def _dropout_seed(self) -> int:
        """Another for each step."""
        seed = self.config.seed, 2, self.step
        return int(np.random.default_rng(seed).integers(2**63))

    def _gradient_function(self, network: Classifier) -> Callable[..., Any]:
        """A function of weights and a batch: what is minimised, the summed loss, the gradient."""
        smoothing, checkpointed = self.config.label_smoothing, self.config.checkpointed

        def loss(
            weights: Tree,
            scale: mx.array,
            key: mx.array,
            pixels: mx.array,
            targets: Arrays,
            others: Arrays | None,
            own: mx.array,
        ) -> tuple[mx.array, mx.array]:
            network.update(self._cast(weights))
            draw_dropout(network, key)
            logits = network(pixels.astype(self._dtype), checkpointed)
            total = loss_sum(logits, Targets(*cast(Any, (*targets, smoothing))))
            if others is not None:
                mixed = loss_sum(logits, Targets(*cast(Any, (*others, smoothing))))
                total = own * total + (1 - own) * mixed
            return scale * total, total

        gradient = mx.value_and_grad(loss)
        return mx.compile(gradient) if on_gpu() else gradient

    def _cast(self, weights: Tree) -> Tree:
        """Weights as the forward pass takes them: the head's stay float32."""
        cast_tree = tree_map(lambda value: value.astype(self._dtype), weights.get("encoder", {}))
        return {**weights, "encoder": cast_tree}

    def _evaluate(self, rate: float, train_loss: float | None) -> dict[str, Any]:
        """Keeps the weights after an epoch if they are better than before, and writes it down."""
        logits, data = self.logits(self._validation), self._validation
        wanted = replace(data.targets, smoothing=0.0)
        loss = float(loss_sum(mx.array(logits), wanted)) / total_weight(wanted)
        if not math.isfinite(loss):
            raise NotFinite(
                f"the loss on val after step {self.step} is {loss:g}: start again in another "
                f"folder with a --learning-rate below {self.config.peak_rate:g}"
            )
        record = {
            "epoch": self.step // self._train.steps_in_epoch,
            "step": self.step,
            "rate": rate,
            "train_loss": train_loss,
            "val_loss": loss,
            "metric": measured(logits, data.part.labels, self.config.balanced),
        }
        self.history = [*self.history, record]
        if self.best is not None and self.best.epoch == record["epoch"]:
            self._kept = self.weights()
        return record


def _arrays(targets: Targets, rows: slice) -> Arrays:
    some = targets.of(np.arange(rows.start, rows.stop))
    return mx.array(some.values), mx.array(some.weights)
