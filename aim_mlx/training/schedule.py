"""How a learning rate goes over the steps of a run."""

import math


def warm_cosine(step: int, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """The rate of step 0 to steps - 1: linear up to `peak`, then a cosine down to `final`.

    A peak below `final` stays where it is.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    final = min(final, peak)
    done = (step - warmup) / max(1, steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))
