"""A LiT model in training: every step a function of the state before it and of its number.

The loss is CLIP's contrastive one (arXiv 2103.00020, figure 3), but for captions that several
images have: see `Matches`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aim_mlx.backend import cpu_streams, mx, nn, optim, tree_flatten, tree_unflatten
from aim_mlx.data.pairs import epoch_batches
from aim_mlx.errors import NotFinite
from aim_mlx.failures import explained
from aim_mlx.lit_training.config import TrainConfig, learning_rate
from aim_mlx.lit_training.evaluation import evaluate
from aim_mlx.lit_training.features import Split
from aim_mlx.lit_training.matches import Matches
from aim_mlx.lit_training.model import decays
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.pooling import normalized
from aim_mlx.training.optimizer import adamw
from aim_mlx.words.tokenizer import Tokenizer

LARGEST_LOG_SCALE = math.log(100.0)


def contrastive_loss(
    images: mx.array,
    texts: mx.array,
    log_scale: mx.array,
    left_out: tuple[np.ndarray, np.ndarray],
) -> mx.array:
    """Images and texts (B, P), row i of one belonging to row i of the other -> their loss ().

    The mean cross-entropy of finding each image's text among the batch's, and each text's image,
    by cosines times exp(log_scale). `left_out`, as of `Matches`, says what is not among them.
    """
    logits = mx.exp(log_scale.astype(mx.float32)) * (normalized(images) @ normalized(texts).T)
    right = mx.diag(logits)
    by_image, by_text = (
        mx.logsumexp(mx.where(mx.array(each), -math.inf, logits), axis=axis) - right
        for each, axis in zip(left_out, (1, 0), strict=True)
    )
    return (by_image.mean() + by_text.mean()) / 2


_SHARE = 16  # pairs that a core has at least, where a batch is divided among them
_BETAS = 0.9, 0.98  # of CLIP: the second moment follows the falling loss sooner than 0.999


_RECORDS, _EVALUATIONS = 200, 20  # at most, of a run


@dataclass
class LitTrainer:
    """A model in training, measured now and then on pairs that are held out.

    `step` counts the steps done; `history` has the records of some, the last one's among them.
    """

    model: LiTModel
    tokenizer: Tokenizer
    config: TrainConfig
    train: Split
    held_out: Split | None = None
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self):
        self._optimizer = adamw(self.model, self.config.weight_decay, decays, _BETAS)
        self._loss_and_gradient = nn.value_and_grad(self.model, self._loss)
        self._matches = Matches(self.train.pairs.images, self.train.texts)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    @property
    def steps_in_epoch(self) -> int:
        return -(-len(self.train.pairs.captions) // self.config.batch_size)

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_in_epoch

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the last evaluation, empty where there was none."""
        return self.history[-1].get("metrics", {}) if self.history else {}

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def run_step(self) -> dict[str, Any] | None:
        """Does one step; its record where one is due: that of `update`, and metrics now and then.

        Raises NotFinite as `update`.
        """
        record = self.update()
        measures = self.done or self.step % math.ceil(self.steps / _EVALUATIONS) == 0
        if measures and self.held_out is not None:
            record["metrics"] = evaluate(self.model, self.held_out, self.config.batch_size)
        if measures or self.step % math.ceil(self.steps / _RECORDS) == 0:
            self.history.append(record)
            return record
        return None

    def update(self) -> dict[str, Any]:
        """Moves the weights once: number, loss, gradient norm, rate and scale.

        Raises NotFinite, the model as it was before, where loss or gradient is not finite.
        """
        rows = self._rows()
        tokens, ids = self.train.batch(rows)
        left_out = self._matches.left_out(rows)
        with explained(len(rows)), cpu_streams(len(rows) // _SHARE) as streams:
            loss, gradient = self._loss_and_gradient(mx.array(tokens), ids, left_out, streams)
            gradient, norm = optim.clip_grad_norm(gradient, self.config.clip_norm)
            mx.eval(loss, norm, gradient)
        found = {"loss": _number(loss), "grad_norm": _number(norm)}
        if not all(map(math.isfinite, found.values())):
            raise NotFinite(
                f"the loss of step {self.step + 1} is {found['loss']:g}, its gradient's norm "
                f"{found['grad_norm']:g}: the last checkpoint is kept; start again in another "
                f"folder with a --learning-rate below {self.config.learning_rate:g}"
            )
        rate = learning_rate(self.config, self.step, self.steps)
        self._optimizer.learning_rate = rate
        self._optimizer.update(self.model, gradient)
        self.model.log_logit_scale = mx.clip(self.model.log_logit_scale, 0.0, LARGEST_LOG_SCALE)
        mx.eval(self.model.trainable_parameters(), self._optimizer.state)
        self.step += 1
        scale = math.exp(_number(self.model.log_logit_scale))
        return {"step": self.step, **found, "rate": rate, "scale": scale}

    def state(self) -> dict[str, mx.array]:
        """All tensors that the next steps depend on, by name."""
        parts = {"model": self.model.trainable_parameters(), "optimizer": self._optimizer.state}
        return dict(tree_flatten(parts))

    def restore(self, state: dict[str, mx.array], step: int, history: list[dict[str, Any]]) -> None:
        """Takes up the state of another trainer of the same configuration."""
        parts: Any = tree_unflatten(list(state.items()))
        self.model.update(parts["model"])
        self._optimizer.state = parts["optimizer"]
        self.step, self.history = step, history

    def _loss(
        self,
        tokens: mx.array,
        ids: np.ndarray,
        left_out: tuple[np.ndarray, np.ndarray],
        streams: list[mx.Stream],
    ) -> mx.array:
        """The loss of a batch, of which every stream encodes a part."""
        images, texts = [], []
        bounds = [len(ids) * number // len(streams) for number in range(len(streams) + 1)]
        for start, end, stream in zip(bounds, bounds[1:], streams, strict=False):
            rows = slice(start, end)
            with mx.stream(stream):
                images.append(self.model.project_tokens(tokens[rows].astype(mx.float32)))
                texts.append(self.model.encode_text(ids[rows]))
        scale = self.model.log_logit_scale
        return contrastive_loss(mx.concatenate(images), mx.concatenate(texts), scale, left_out)

    def _rows(self) -> np.ndarray:
        """The pairs of the next step."""
        epoch, number = divmod(self.step, self.steps_in_epoch)
        if self._epoch[0] != epoch:
            images = self.train.pairs.images
            size, seed = self.config.batch_size, self.config.seed
            self._epoch = (epoch, epoch_batches(images, size, seed, epoch))
        return self._epoch[1][number]


def _number(value: mx.array) -> float:
    return float(np.array(value))
