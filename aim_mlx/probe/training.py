"""A grid of heads trained in one pass: every learning rate, weight decay and normalisation at once.

Heads start from the same weights, see the same batches and know nothing of each other. The best one
is chosen on the validation part alone, after every epoch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from aim_mlx.backend import BLAS, cpu_streams, evaluate_on_cpu, mx, on_gpu, optim, tree_unflatten
from aim_mlx.config import HEAD_DIM
from aim_mlx.errors import AimError, NotFinite, UsageError
from aim_mlx.probe.chunks import ImageMoments
from aim_mlx.probe.config import FINAL_RATE, QUERIES, GridPoint, ProbeConfig
from aim_mlx.probe.gradients import Tree, batch_gradients, logits_of
from aim_mlx.probe.heads import Head, HeadConfig, Moments, flat, new_head
from aim_mlx.probe.losses import loss_sum, targets_of, total_weight
from aim_mlx.report.figures import measured
from aim_mlx.tokens.source import TokenSource
from aim_mlx.training.optimizer import adamw
from aim_mlx.training.schedule import warm_cosine


class EpochTokens(Protocol):
    """Tokens of a part's images, which may be other views of them in another epoch."""

    def for_epoch(self, epoch: int) -> TokenSource: ...


@dataclass(frozen=True)
class LabelledTokens:
    """Images as training sees them: their tokens, and labels int (n,) or 0 and 1 (n, C)."""

    tokens: EpochTokens
    labels: np.ndarray


@dataclass(frozen=True)
class BestHead:
    """The head to keep: its place in the grid, how it was trained, and its score.

    `epoch` counts from 1. `metric` is that of `metrics.measured` on the validation part.
    """

    index: int
    point: GridPoint
    epoch: int
    metric: float
    loss: float


class GridTrainer:
    """The heads of `config.grid` in training; a pure function of its arguments and of `step`.

    `heads` is the number of attention heads, by default one for every 128 channels. `step` counts
    the steps done; `history` has a record for every epoch done: epoch, step, rate (of the highest
    one), and for each head of the grid train_loss, val_loss and metric, None for one whose numbers
    were not finite: it is dropped, and the others go on. Raises UsageError for labels or sizes that
    cannot be.
    """

    def __init__(
        self,
        config: ProbeConfig,
        classes: int,
        train: LabelledTokens,
        validation: LabelledTokens,
        heads: int | None = None,
    ):
        self.config, self.classes = config, classes
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._train, self._validation = train, validation
        dim = train.tokens.for_epoch(0).shape[1]
        self._targets, self._wanted = (
            targets_of(
                part.labels, classes, smoothing=config.label_smoothing, balanced=config.balanced
            )
            for part in (train, validation)
        )
        if self._targets.multi_label != self._wanted.multi_label:
            raise UsageError("training and validation labels must both be single or both several")
        if not len(self._targets) or not len(self._wanted):
            raise UsageError("expected images to train on and to validate on, got none")
        heads = heads or (dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1)
        queries = config.queries or QUERIES.get(config.head, 1)
        self._heads = [
            new_head(
                HeadConfig(dim, classes, heads, queries, config.head, point.batch_norm),
                config.seed,
            )
            for point in config.grid
        ]
        self._optimizers = [
            adamw(head, point.weight_decay, _is_matrix)
            for head, point in zip(self._heads, config.grid, strict=True)
        ]
        steps = [
            partial(_after_step, optimizer, config.clip_norm) for optimizer in self._optimizers
        ]
        self._after_step = [mx.compile(each) if on_gpu() else each for each in steps]
        self._unread: list[tuple[np.ndarray, mx.array]] = []  # of steps: heads, losses and norms
        self._alive = np.ones(len(self._heads), np.int32)
        self._losses = np.zeros(len(self._heads), np.float32)  # of this epoch, summed over steps
        self._kept = self._parameters(0)  # of the best head so far
        self._measured: tuple[TokenSource, ImageMoments] | None = None

    @property
    def multi_label(self) -> bool:
        return self._targets.multi_label

    @property
    def steps_in_epoch(self) -> int:
        return -(-len(self._targets) // self.config.batch_size)

    @property
    def steps(self) -> int:
        """How many there are if nothing stops it early."""
        return self.config.epochs * self.steps_in_epoch

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or the last ones brought no better head."""
        patience, best = self.config.patience, self.best
        late = patience and best and len(self.history) - best.epoch >= patience
        return self.step >= self.steps or bool(late)

    @property
    def best(self) -> BestHead | None:
        """The head with the highest metric on validation, of equals the one of the lowest loss."""
        scored = [
            BestHead(index, self.config.grid[index], record["epoch"], metric, loss)
            for record in self.history
            for index, (metric, loss) in enumerate(
                zip(record["metric"], record["val_loss"], strict=True)
            )
            if metric is not None
        ]
        return max(scored, key=lambda each: (each.metric, -each.loss), default=None)

    def best_head(self) -> Head:
        """A copy of it as it was then, ready for use; raises AimError before the first epoch."""
        best = self.best
        if best is None:
            raise AimError("no epoch is done yet: there is no head to keep")
        head = Head(self._heads[best.index].config)
        names = flat(head.parameters())
        head.load_weights([(name, self._kept[name]) for name in names], strict=True)
        head.eval()
        return head

    def run_step(self) -> dict[str, Any] | None:
        """Does one step; after the last of an epoch evaluates, and returns the epoch's record.

        On a GPU the step may still be computed afterwards. Raises NotFinite where no head is left
        whose numbers are finite.
        """
        epoch, number = divmod(self.step, self.steps_in_epoch)
        rows = epoch_rows(len(self._targets), self.config, epoch)[number]
        source = self._train.tokens.for_epoch(epoch)
        tokens = source.batch(rows)
        alive = np.flatnonzero(self._alive).tolist()
        heads = [self._heads[index] for index in alive]
        moments = self._moments(source, rows, tokens)
        result = batch_gradients(heads, tokens, self._targets.of(rows), moments)
        norms: list[mx.array] = []
        with cpu_streams(min(BLAS.threads, len(alive))) as streams:
            # A few heads at a time, while what belongs to them is in the processor's cache.
            for start in range(0, len(alive), len(streams)):
                here = alive[start : start + len(streams)]
                for place, index in enumerate(here, start):
                    with mx.stream(streams[place - start]):
                        norm = self._update(index, result.gradients[place], result.moments[place])
                    norms.append(norm)
                evaluate_on_cpu(norms[start:])
                evaluate_on_cpu([self._changed(index) for index in here])
        numbers = mx.stack([result.losses, mx.stack(norms)])
        mx.async_eval(numbers, [self._changed(index) for index in alive])
        self._unread.append((np.array(alive), numbers))
        # A GPU is given the next step before it is waited for.
        self._read_numbers(but=1 if on_gpu() else 0)
        self.step += 1
        return self._end_epoch(epoch) if self.step % self.steps_in_epoch == 0 else None

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name; raises NotFinite as `run_step`."""
        self._read_numbers()
        parts = {
            "heads": [head.parameters() for head in self._heads],
            "optimizers": [optimizer.state for optimizer in self._optimizers],
        }
        tensors = flat(parts)
        tensors |= {"alive": mx.array(self._alive), "losses": mx.array(self._losses)}
        return tensors | {f"kept.{name}": value for name, value in self._kept.items()}

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same configuration."""
        parts: Any = tree_unflatten(list(state.items()))
        for head, parameters in zip(self._heads, parts["heads"], strict=True):
            head.update(parameters)
        for optimizer, values in zip(self._optimizers, parts["optimizers"], strict=True):
            optimizer.state = values
        self._alive, self._losses = np.array(state["alive"]), np.array(state["losses"])
        self._kept = flat(parts["kept"])
        self.step, self.history = step, history

    def _moments(
        self, source: TokenSource, rows: np.ndarray, tokens: Sequence[np.ndarray]
    ) -> Moments | None:
        """Those of a batch's tokens, if heads need them; an image is measured once."""
        if not any(
            head.config.normalises_tokens and head.config.batch_norm for head in self._heads
        ):
            return None
        if self._measured is None or self._measured[0] is not source:
            self._measured = source, ImageMoments(len(self._targets), source.shape)
        return self._measured[1].of(rows, tokens)

    def _update(self, index: int, gradient: Tree, moments: Moments | None) -> mx.array:
        """One step of one head, and the norm of its gradient, not yet computed."""
        head, optimizer = self._heads[index], self._optimizers[index]
        optimizer.learning_rate = self._rate(self.config.grid[index].learning_rate)
        parameters, optimizer.state, norm = self._after_step[index](
            head.trainable_parameters(), optimizer.state, gradient
        )
        head.update(parameters)
        if moments is not None and head.config.batch_norm:
            head.bn.follow(moments)
        return norm

    def _changed(self, index: int) -> list[Any]:
        """What a step changes of a head."""
        return [self._heads[index].parameters(), self._optimizers[index].state]

    def _read_numbers(self, but: int = 0) -> None:
        """Adds up the losses of steps that were not read yet; drops heads that are not finite.

        Of these steps, so many, the last ones, are left for later.
        """
        while len(self._unread) > but:
            heads, numbers = self._unread.pop(0)
            finite = np.isfinite(np.array(numbers)).all(axis=0)
            self._losses[heads[finite]] += np.array(numbers[0])[finite]
            self._drop(heads[~finite])

    def _rate(self, peak: float) -> float:
        warmup = round(self.config.warmup_epochs * self.steps_in_epoch)
        return warm_cosine(self.step, self.steps, warmup, peak, FINAL_RATE)

    def _end_epoch(self, epoch: int) -> dict[str, Any]:
        """Evaluates all heads, keeps the best if it is better than before, and writes it down."""
        self._read_numbers()
        alive = np.flatnonzero(self._alive)
        tokens, rows = self._validation.tokens.for_epoch(0), np.arange(len(self._wanted))
        logits = logits_of([self._heads[i] for i in alive], tokens, rows, self.config.batch_size)
        count = len(self._heads)
        metrics: list[float | None] = [None] * count
        losses: list[float | None] = [None] * count
        for index, each in zip(alive, logits, strict=True):
            loss = float(loss_sum(mx.array(each), self._wanted)) / total_weight(self._wanted)
            if not math.isfinite(loss):
                self._drop(int(index))
                continue
            losses[index] = loss
            metrics[index] = measured(each, self._validation.labels, self.config.balanced)
        means = (self._losses / self.steps_in_epoch).tolist()
        record = {
            "epoch": epoch + 1,
            "step": self.step,
            "rate": self._rate(max(self.config.learning_rates)),
            "train_loss": [m if a else None for m, a in zip(means, self._alive, strict=True)],
            "val_loss": losses,
            "metric": metrics,
        }
        self.history = [*self.history, record]
        self._losses[:] = 0
        best = self.best
        if best is not None and best.epoch == epoch + 1:
            self._kept = self._parameters(best.index)
        return record

    def _parameters(self, index: int) -> dict[str, mx.array]:
        """Of one head, under the names that any head of the grid may have."""
        every = {
            name: mx.zeros(value.shape)
            for head in self._heads
            for name, value in flat(head.parameters()).items()
        }
        return every | flat(self._heads[index].parameters())

    def _drop(self, heads: int | np.ndarray) -> None:
        self._alive[heads] = 0
        if not self._alive.any():
            best = self.best
            kept = f"the best head, of epoch {best.epoch}, is kept" if best else "none is kept"
            raise NotFinite(
                f"after {self.step} steps the loss of no head is finite; {kept}: start again with "
                f"learning rates below {min(self.config.learning_rates):g}"
            )


def epoch_rows(count: int, config: ProbeConfig, epoch: int) -> list[np.ndarray]:
    """The images of an epoch's batches, all of nearly one size: a pure function."""
    order = np.random.default_rng([config.seed, epoch]).permutation(count)
    return np.array_split(order, -(-count // config.batch_size))


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight")  # no query or bias decays


def _after_step(
    optimizer: optim.Optimizer, largest: float, parameters: Tree, state: Tree, gradient: Tree
) -> tuple[Tree, Tree, mx.array]:
    """Parameters and the optimizer's state after a step, and the gradient's norm.

    The gradient is scaled to a norm of at most `largest` before.
    """
    gradient, norm = optim.clip_grad_norm(gradient, largest)
    optimizer.state = state
    return optimizer.apply_gradients(gradient, parameters), optimizer.state, norm
