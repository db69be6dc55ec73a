"""The steps of fine-tuning: each a function of the state before it and of its number."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from aim_mlx.backend import concurrency, in_parallel, mx, on_gpu, tree_flatten
from aim_mlx.errors import AimError
from aim_mlx.failures import explained
from aim_mlx.finetune.data import FinetuneBatch, FinetuneData
from aim_mlx.finetune.model import Classifier, decays, draw_dropout, rate_share
from aim_mlx.probe.losses import Targets, loss_sum, total_weight
from aim_mlx.report.figures import measured
from aim_mlx.training.batch_trainer import BatchTrainer
from aim_mlx.training.optimizer import ScaledAdamW
from aim_mlx.training.parallel import ALONE, ProcessGroup
from aim_mlx.training.shares import Division, Tree

_SHARE_PATCHES = 512  # that a core has at least, where a batch is divided among them
_MOST_SHARES = 64
# A rate is called too high where the mean of so many losses is so many times that of the start.
_RECENT, _EXPLODED = 5, 2.0
Arrays = tuple[mx.array, mx.array]  # the values and the weights of targets


@dataclass(frozen=True)
class Best:
    """The epoch to keep, counted from 1; `metric` is `figures.measured` on the validation part."""

    epoch: int
    metric: float
    loss: float


class FinetuneTrainer(BatchTrainer):
    """A classifier in training. `start` gives it as it begins, its frozen weights in a dtype.

    `history` has a record for every epoch done. A step is computed in `parts`, of which each
    process of a group has a share.
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
        model, config = start(mx.float32), train.config
        self._train, self._validation, self._warn = train, validation, warn
        blocks, tokens = model.encoder.config.num_blocks, (model.encoder.config.grid or 1) ** 2
        decay = config.layer_decay if config.full else 1.0
        share = partial(rate_share, blocks=blocks, layer_decay=decay)
        super().__init__(
            model,
            [start(dtype) for _ in range(concurrency(_MOST_SHARES))],
            ScaledAdamW(model, config.weight_decay, decays, share),
            train,
            (1.0,),
            dtype,
            -(-parts // group.size),
            -(-_SHARE_PATCHES // tokens),
            group,
        )
        self._kept = self.weights()
        self._first_loss = math.nan
        self._recent: deque[float] = deque(maxlen=_RECENT)

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
        return dict(tree_flatten(self.model.trainable_parameters()))

    def best_weights(self) -> dict[str, mx.array]:
        """Those after the best epoch; raises AimError before the first one is done."""
        if self.best is None:
            raise AimError("no epoch is done yet: there is nothing to keep")
        return self._kept

    def evaluate_start(self) -> dict[str, Any]:
        """Counts the weights as they are, before any step, as epoch 0; its record."""
        return self._evaluate(0.0, None)

    def state(self) -> dict[str, mx.array]:
        kept = {f"kept.{name}": value for name, value in self._kept.items()}
        return super().state() | kept

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        super().restore(state, step, history)
        self._kept = {name: state[f"kept.{name}"] for name in self._kept}

    def logits(self, data: FinetuneData) -> np.ndarray:
        """Whole images of a part, in order -> logits, float32 (n, C), by the weights as they are.

        In a group each process computes a share.
        """
        mine = np.arange(len(data))[self._group.rows(len(data))]
        found = np.zeros((len(data), self.model.head.config.classes), np.float32)
        at_once = -(-self.config.batch_size // (self._group.size * self._parts))
        parts = self._division(len(mine), max(1, -(-len(mine) // at_once)))
        for network in self._networks:
            network.update(self._cast(self.model.trainable_parameters()))
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

    def _record(self, losses: np.ndarray, rate: float, norm: float) -> dict[str, Any] | None:
        """That of an epoch, after its last step."""
        self._watch(float(losses[0]))
        if self.step % self._train.steps_in_epoch:
            return None
        return self._evaluate(rate, *self._mean_losses())

    def _watch(self, loss: float) -> None:
        """Warns, once, of a loss that rises far above that at the start and that of a guess."""
        if math.isnan(self._first_loss):
            classes = 2 if self._train.targets.multi_label else self.model.head.config.classes
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

    def _division(self, count: int, parts: int) -> Division:
        return Division(count, parts, self._least, len(self._networks))

    def _counts(self, batch: FinetuneBatch) -> np.ndarray:
        own, other = batch.share, 1 - batch.share
        return np.array([own * total_weight(batch.targets) + other * total_weight(batch.others)])

    def _arguments(self, batch: FinetuneBatch) -> Callable[[slice], tuple[Any, ...]]:
        mine, seed = self._rows(self.step), [self.config.seed, 2, self.step]
        key = mx.random.key(int(np.random.default_rng(seed).integers(2**63)))
        keys = mx.random.split(key, mine.stop)[mine.start :]  # an image has its own in any group
        mx.eval(keys)
        mixed, own = batch.share < 1, mx.array(batch.share, mx.float32)
        return lambda rows: (
            keys[rows.start],
            mx.array(batch.pixels[rows]),
            _arrays(batch.targets, rows),
            _arrays(batch.others, rows) if mixed else None,
            own,
        )

    def _losses(
        self,
        network: Classifier,
        key: mx.array,
        pixels: mx.array,
        targets: Arrays,
        others: Arrays | None,
        own: mx.array,
    ) -> list[mx.array]:
        draw_dropout(network, key)
        smoothing = self.config.label_smoothing
        logits = network(pixels.astype(self._dtype), self.config.checkpointed)
        total = loss_sum(logits, Targets(*cast(Any, (*targets, smoothing))))
        if others is not None:
            mixed = loss_sum(logits, Targets(*cast(Any, (*others, smoothing))))
            total = own * total + (1 - own) * mixed
        return [total]

    def _cast(self, weights: Tree) -> Tree:
        """All but the head's, which stay float32."""
        return {**weights, "encoder": super()._cast(weights.get("encoder", {}))}

    def _evaluate(self, rate: float, train_loss: float | None) -> dict[str, Any]:
        """Keeps the weights after an epoch if they are better than before, and writes it down."""
        logits, data = self.logits(self._validation), self._validation
        wanted = replace(data.targets, smoothing=0.0)
        loss = float(loss_sum(mx.array(logits), wanted)) / total_weight(wanted)
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss on val after step {self.step} is {loss:g}")
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
