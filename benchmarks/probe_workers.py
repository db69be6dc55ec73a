"""The contenders of `benchmarks.probe`, each run in a process of its own."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loading import peak
from benchmarks.workers import processor

_N, _D, _HEADS = 256, 1024, 8
_COMPARED = 256  # images whose loss under the first weights is compared
_RATE, _DECAY, _CLIP = 1e-3, 0.05, 3.0


def make(folder: str, count: int, classes: int) -> dict[str, Any]:
    """Writes random tokens, labels and the weights that all begin with."""
    from aim_mlx.probe.heads import HeadConfig, flat, new_head

    rng, path = np.random.default_rng(0), Path(folder)
    tokens = np.lib.format.open_memmap(path / "tokens.npy", "w+", np.float16, (count, _N, _D))
    for start in range(0, count, 32):
        part = tokens[start : start + 32]
        part[:] = rng.standard_normal(part.shape, np.float32)
    tokens.flush()
    np.save(path / "labels.npy", rng.integers(0, classes, count))
    head = new_head(HeadConfig(_D, classes, _HEADS), seed=0)
    weights: Any = {name: np.array(value) for name, value in flat(head.parameters()).items()}
    np.savez(path / "head.npz", **weights)
    return {"processor": processor(), "cores": os.cpu_count()}


def one(folder: str, batch: int, steps: int, classes: int) -> dict[str, Any]:
    return _ours(folder, batch, steps, classes, (_RATE,), (_DECAY,), (False,))


def one_normalised(folder: str, batch: int, steps: int, classes: int) -> dict[str, Any]:
    return _ours(folder, batch, steps, classes, (_RATE,), (_DECAY,), (True,))


def grid(folder: str, batch: int, steps: int, classes: int) -> dict[str, Any]:
    from aim_mlx.probe.config import PROTOCOLS

    paper = PROTOCOLS["paper"]
    rates, decays = paper.learning_rates, paper.weight_decays
    return _ours(folder, batch, steps, classes, rates, decays, paper.batch_norm)


def _ours(folder: str, batch: int, steps: int, classes: int, *grid: Any) -> dict[str, Any]:
    from aim_mlx.probe.config import protocol
    from aim_mlx.probe.training import GridTrainer, LabelledTokens

    tokens, labels = _Mapped(folder), np.load(Path(folder) / "labels.npy")
    names = ("learning_rates", "weight_decays", "batch_norm")
    config = protocol("paper", epochs=1000, batch_size=batch, **dict(zip(names, grid, strict=True)))
    part = LabelledTokens(tokens, labels)
    trainer = GridTrainer(config, classes, part, part, _HEADS)
    trainer._end_epoch = lambda epoch: {}  # no evaluation: the plain probe has none either
    seconds = _timed(lambda: trainer.run_step(), steps)
    assert trainer.step == steps
    again = GridTrainer(config, classes, part, part, _HEADS)
    from aim_mlx.probe.gradients import batch_gradients
    from aim_mlx.probe.losses import targets_of

    rows = np.arange(_COMPARED)
    first = batch_gradients(again._heads[:1], tokens.batch(rows), targets_of(labels[rows], classes))
    return _result(seconds, batch, float(first.losses[0]))


def plain(folder: str, batch: int, steps: int, classes: int) -> dict[str, Any]:
    return _theirs(folder, batch, steps, classes, normalised=False)


def plain_normalised(folder: str, batch: int, steps: int, classes: int) -> dict[str, Any]:
    return _theirs(folder, batch, steps, classes, normalised=True)


def _theirs(folder: str, batch: int, steps: int, classes: int, normalised: bool) -> dict[str, Any]:
    import torch
    from torch import nn
    from torch.nn import functional

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, _D))
            self.k, self.v = nn.Linear(_D, _D, bias=False), nn.Linear(_D, _D, bias=False)
            self.linear = nn.Linear(_D, classes)
            self.bn = nn.BatchNorm1d(_D, affine=False, eps=1e-6) if normalised else None

        def forward(self, x):
            B = len(x)
            if self.bn is not None:
                x = self.bn(x.transpose(1, 2)).transpose(1, 2)
            query, keys, values = (
                each.reshape(B, -1, _HEADS, _D // _HEADS).transpose(1, 2)
                for each in (self.cls_token.expand(B, -1, -1), self.k(x), self.v(x))
            )
            found = functional.scaled_dot_product_attention(query, keys, values)
            return self.linear(found.transpose(1, 2).reshape(B, _D))

    tokens, labels = _Mapped(folder), np.load(Path(folder) / "labels.npy")
    model = Plain()
    weights = np.load(Path(folder) / "head.npz")
    model.load_state_dict({n: torch.from_numpy(weights[n]) for n in weights}, strict=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    rng, losses = np.random.default_rng(0), []

    def step() -> None:
        rows = rng.permutation(len(labels))[:batch] if losses else np.arange(_COMPARED)
        x = torch.from_numpy(tokens.gathered(rows)).float()
        loss = functional.cross_entropy(model(x), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        losses.append(loss.item())

    seconds = _timed(step, steps)
    assert len(losses) == steps
    return _result(seconds, batch, losses[0])


def tokens_alone(folder: str, batch: int, steps: int, classes: int) -> dict[str, Any]:
    """The tokens read and converted as ours are, and nothing else."""
    from aim_mlx.probe.chunks import over_chunks, rounds

    tokens, rng = _Mapped(folder), np.random.default_rng(0)

    def step() -> None:
        rows = rng.permutation(len(tokens.tokens))[:batch]
        with rounds(tokens.batch(rows)) as work:
            for together in work:
                for _ in over_chunks(together, lambda part, places, wide: wide):
                    pass

    return _result(_timed(step, steps), batch, 0.0)


class _Mapped:
    """Tokens in a mapped file, gathered row by row."""

    def __init__(self, folder: str):
        self.tokens = np.load(Path(folder) / "tokens.npy", mmap_mode="r")
        self.shape: tuple[int, int] = (_N, _D)

    def for_epoch(self, epoch: int) -> "_Mapped":
        return self

    def batch(self, indices: Any) -> list[np.ndarray]:
        return [self.tokens[row] for row in indices]

    def gathered(self, indices: Any) -> np.ndarray:
        found = np.empty((len(indices), _N, _D), np.float16)
        for place, row in enumerate(indices):
            found[place] = self.tokens[row]
        return found


def _timed(step: Callable[[], Any], steps: int) -> list[float]:
    """Seconds of every step."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds


def _result(seconds: list[float], batch: int, first_loss: float) -> dict[str, Any]:
    return {
        "milliseconds_an_image": 1e3 * sum(seconds[2:]) / len(seconds[2:]) / batch,
        "first_milliseconds_an_image": 1e3 * sum(seconds[:2]) / 2 / batch,
        "seconds": seconds,
        "processor_seconds": time.process_time(),
        "first_loss": first_loss,
        "peak_bytes": peak(),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
