"""AdamW as all trainings use it."""

from collections.abc import Callable

from aim_mlx.backend import nn, optim


def adamw(
    model: nn.Module,
    weight_decay: float,
    decays: Callable[[str], bool],
    betas: tuple[float, float] = (0.9, 0.999),
) -> optim.MultiOptimizer:
    """An optimizer of what is trainable, whose weights of those names decay; no learning rate yet.

    With the corrections of the moments, which MLX leaves out by default.
    """
    kinds = [
        optim.AdamW(0.0, list(betas), weight_decay=decay, bias_correction=True)
        for decay in (weight_decay, 0.0)
    ]
    optimizer = optim.MultiOptimizer(kinds, [lambda name, _: decays(name)])
    optimizer.init(model.trainable_parameters())
    return optimizer
