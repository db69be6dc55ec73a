"""Heads, their gradients and their training against PyTorch, with a plain head written there.

Tolerances: float32 sums of tens of terms in another order, 1e-6, through a handful of layers.
"""

import numpy as np
import pytest

from aim_mlx.backend import mx, nn
from aim_mlx.probe.config import protocol
from aim_mlx.probe.heads import Head, flat
from aim_mlx.probe.losses import loss_sum, targets_of, total_weight
from aim_mlx.probe.training import GridTrainer, epoch_rows
from aim_mlx.training import loop
from aim_mlx.training.schedule import warm_cosine
from tests.probes import labelled, noisy_head, noisy_tokens

pytestmark = pytest.mark.parity

CLOSE = 4e-5  # float32 sums in other orders: up to 4e-6 seen, with any kernels
LABELS = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2])


def reference(head: Head):
    """PyTorch's head with the same parameters, spelled out with its own layers."""
    import torch
    from torch import nn as tnn
    from torch.nn import functional

    config = head.config

    class Plain(tnn.Module):
        def __init__(self):
            super().__init__()
            D = config.dim
            if config.attends:
                self.cls_token = tnn.Parameter(torch.zeros(1, config.queries, D))
                self.v = tnn.Linear(D, D, bias=False)
            if config.kind in ("attentive", "coca"):
                self.k = tnn.Linear(D, D, bias=False)
            if config.kind == "coca":
                self.q, self.proj = tnn.Linear(D, D, bias=False), tnn.Linear(D, D)
            self.linear = tnn.Linear(D, config.classes)
            if config.batch_norm:
                self.bn = tnn.BatchNorm1d(D, affine=False, eps=1e-6)

        def forward(self, x):
            if config.kind == "ep":
                B, N, D = x.shape
                weights = (self.cls_token @ x.transpose(1, 2) / D**0.5).softmax(-1)
                sliced = self.v(x).reshape(B, N, config.queries, -1)
                x = torch.einsum("bqn,bnqd->bqd", weights, sliced).reshape(B, D)
                return self.linear(self.bn(x) if config.batch_norm else x)
            if not config.attends:
                x = x.mean(1) if config.kind == "mean" else x.amax(1)
                return self.linear(self.bn(x) if config.batch_norm else x)
            if config.batch_norm:
                x = self.bn(x.transpose(1, 2)).transpose(1, 2)
            B, D = x.shape[0], config.dim

            def split(y):
                return y.reshape(y.shape[0], -1, config.heads, D // config.heads).transpose(1, 2)

            query = self.q(self.cls_token) if config.kind == "coca" else self.cls_token
            found = functional.scaled_dot_product_attention(
                split(query).expand(B, -1, -1, -1), split(self.k(x)), split(self.v(x))
            )
            found = found.transpose(1, 2).reshape(B, -1, D)
            found = self.proj(found) if config.kind == "coca" else found
            return self.linear(found.mean(1))

    model = Plain()
    weights = {n: torch.from_numpy(np.array(v)) for n, v in flat(head.parameters()).items()}
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"bn.num_batches_tracked"}
    return model


def assert_close(ours, theirs, what: str, tolerance: float = CLOSE) -> None:
    apart = np.abs(np.array(ours) - theirs.detach().numpy())
    assert apart.max() <= tolerance, f"{what}: {apart.max():.2e}, mean {apart.mean():.2e}"


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("batch_norm", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize("kind", ["attentive", "coca", "ep", "mean", "max"])
def test_logits_gradients_and_running_moments_are_pytorchs(kind, batch_norm, mode):
    import torch

    head = noisy_head(kind=kind, queries=2, batch_norm=batch_norm)
    theirs = reference(head)
    head.train(mode == "train")
    theirs.train(mode == "train")
    tokens = noisy_tokens().astype(np.float32)
    targets = targets_of(LABELS, 5, smoothing=0.1)
    logits = theirs(torch.from_numpy(tokens))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS), label_smoothing=0.1)
    loss.backward()

    def ours():
        found = head(mx.array(tokens))
        return loss_sum(found, targets) / total_weight(targets), found

    (our_loss, our_logits), gradient = nn.value_and_grad(head, ours)()
    assert float(our_loss) == pytest.approx(loss.item(), abs=CLOSE)
    assert_close(our_logits, logits, "logits")
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max().item() > 1e-3
        assert_close(flat(gradient)[name], parameter.grad, name)
    if batch_norm:
        assert_close(head.bn.running_mean, theirs.bn.running_mean, "running mean")
        assert_close(head.bn.running_var, theirs.bn.running_var, "running variance")


def test_the_loss_of_several_labels_is_pytorchs():
    import torch

    rng = np.random.default_rng(0)
    labels, scores = rng.random((11, 5)) < 0.4, rng.normal(0, 3, (11, 5)).astype(np.float32)
    targets = targets_of(labels, 5, balanced=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(scores),
        torch.from_numpy(labels.astype(np.float32)),
        pos_weight=torch.from_numpy(targets.weights),
    )
    found = float(loss_sum(mx.array(scores), targets)) / total_weight(targets)
    assert found == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("kind", ["attentive", "ep"])
def test_a_grid_trains_as_pytorch_trains_each_head_alone(kind):
    """Warm-up, cosine, AdamW, clipping and batch normalisation, step by step, for two epochs."""
    import torch

    train, validation = labelled(48, 0), labelled(20, 1)
    config = protocol(
        "fast",
        head=kind,
        epochs=2,
        batch_size=16,
        learning_rates=(1e-3, 1e-2),
        clip_norm=0.5,
        label_smoothing=0.1,
    )
    grid = GridTrainer(config, 4, train, validation, heads=4)
    models = [reference(head) for head in grid._heads]
    loop.run(grid)
    for model, point, head in zip(models, config.grid, grid._heads, strict=True):
        matrices = [p for n, p in model.named_parameters() if n.endswith("weight")]
        others = [p for n, p in model.named_parameters() if not n.endswith("weight")]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": point.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=point.learning_rate,
        )
        model.train()
        batches = [rows for epoch in range(2) for rows in epoch_rows(48, config, epoch)]
        for step, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = warm_cosine(step, 6, 3, point.learning_rate, 1e-5)
            batch = np.stack(train.tokens.for_epoch(0).batch(rows))
            tokens = torch.from_numpy(batch).float()
            loss = torch.nn.functional.cross_entropy(
                model(tokens), torch.from_numpy(train.labels[rows]), label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        model.eval()
        tokens = np.stack(validation.tokens.for_epoch(0).batch(np.arange(20)))
        expected = model(torch.from_numpy(tokens).float())
        # Adam divides by the gradient's size: where that is near zero, rounding shows.
        assert_close(head.eval()(mx.array(tokens)), expected, f"{point}", 1e-3)
