"""AdamW as all trainings use it."""

from collections.abc import Callable
from typing import Any

from aim_mlx.backend import nn, optim, tree_flatten


def adamw(
    model: nn.Module,
    weight_decay: float,
    decays: Callable[[str], bool],
    betas: tuple[float, float] = (0.9, 0.999),
) -> optim.MultiOptimizer:
    """An optimizer of what is trainable, whose weights of those names decay; no learning rate yet.

    With the corrections of the moments, which MLX leaves out by default.
    """
    kinds = [_adamw(decay, betas) for decay in (weight_decay, 0.0)]
    optimizer = optim.MultiOptimizer(kinds, [lambda name, _: decays(name)])
    optimizer.init(model.trainable_parameters())
    return optimizer


class ScaledAdamW(optim.MultiOptimizer):
    """AdamW whose learning rate is another for some weights, such as those of the first blocks.

    `share` gives, for the name of a weight, the part of the rate that it moves by.
    """

    def __init__(
        self,
        model: nn.Module,
        weight_decay: float,
        decays: Callable[[str], bool],
        share: Callable[[str], float],
    ):
        names = [name for name, _ in tree_flatten(model.trainable_parameters())]
        kinds = sorted({(share(name), decays(name)) for name in names})
        chosen = [
            lambda name, _, kind=kind: (share(name), decays(name)) == kind for kind in kinds[:-1]
        ]
        self._shares = [share for share, _ in kinds]
        super().__init__([_adamw(weight_decay if each else 0.0) for _, each in kinds], chosen)
        self.init(model.trainable_parameters())

    @property
    def learning_rate(self) -> Any:
        """Of the weights that move by the whole of it."""
        return self.optimizers[-1].learning_rate / self._shares[-1]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for share, each in zip(self._shares, self.optimizers, strict=True):
            each.learning_rate = rate * share


def _adamw(weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)) -> optim.AdamW:
    return optim.AdamW(0.0, list(betas), weight_decay=weight_decay, bias_correction=True)
