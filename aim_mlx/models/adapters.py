"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the products of an encoder's blocks.

y = W x + scale * B A dropout(x), where W stands still, A (rank x in) and B (out x rank) are learned
and B starts at zero. A and B lie in memory as mlx-lm has them: lora_a (in, rank), lora_b (rank,
out). q, k and v are one matrix here and have adapters of their own, as where they are three.
"""

from collections.abc import Iterator, Mapping
from functools import reduce

import numpy as np

from aim_mlx.backend import mx, nn, tree_unflatten
from aim_mlx.config import MLP_PRODUCTS, QKV, LoRAConfig, VisionConfig
from aim_mlx.models.vision import VisionEncoder


class LowRank(nn.Module):
    """One pair of matrices: x (..., in) -> (..., out) through `rank` channels."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.lora_a = mx.zeros((inputs, rank))
        self.lora_b = mx.zeros((rank, outputs))


class Adapted(nn.Module):
    """A product that stands still, with what its adapters add; dropout only where it has a key."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig):
        super().__init__()
        self.linear = linear
        self.linear.freeze()
        self._scale, self._dropout = config.scale, config.dropout
        self._key: mx.array | None = None

    def draw(self, key: mx.array | None) -> None:
        """Lets the next calls leave out channels of tokens as the key decides; None for none."""
        self._key = key if self._dropout else None

    def pair(self) -> tuple[mx.array, mx.array]:
        """All A side by side (in, R) and all B (R, out)."""
        raise NotImplementedError

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        if self._key is not None:
            kept = mx.random.bernoulli(1 - self._dropout, x.shape, key=self._key)
            x = mx.where(kept, x * (1 / (1 - self._dropout)), 0)
        a, b = self.pair()
        return mx.addmm(y, x @ a, b, alpha=self._scale)


class LoRALinear(Adapted):
    """One pair for the whole matrix."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig):
        super().__init__(linear, config)
        outputs, inputs = linear.weight.shape
        self.lora_a = mx.zeros((inputs, config.rank))
        self.lora_b = mx.zeros((config.rank, outputs))

    def pair(self) -> tuple[mx.array, mx.array]:
        return self.lora_a, self.lora_b


class LoRAQKV(Adapted):
    """A pair for each of q, k and v that is a target, in the one matrix of all three."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig):
        super().__init__(linear, config)
        D = linear.weight.shape[1]
        self._thirds = tuple(name for name in QKV if name in config.targets)
        for name in self._thirds:
            setattr(self, name, LowRank(D, D, config.rank))

    def pair(self) -> tuple[mx.array, mx.array]:
        rows = [self[name].lora_a for name in self._thirds]
        columns = [in_thirds(name, self[name].lora_b) for name in self._thirds]
        return mx.concatenate(rows, axis=1), mx.concatenate(columns, axis=0)


def in_thirds(name: str, b: mx.array) -> mx.array:
    """The B (rank, D) of q, k or v -> (rank, 3 D), zero for the other two."""
    D, before = b.shape[1], QKV.index(name)
    return mx.pad(b, [(0, 0), (before * D, (2 - before) * D)])


def adapted_products(config: VisionConfig, lora: LoRAConfig) -> Iterator[tuple[str, list[str]]]:
    """Each product with adapters, by its name in the encoder, and the names of its pairs."""
    thirds = [name for name in QKV if name in lora.targets]
    for number in range(config.num_blocks - lora.blocks, config.num_blocks):
        block = f"trunk.blocks.{number}"
        if thirds:
            yield f"{block}.attn.qkv", [f"{block}.attn.qkv.{name}" for name in thirds]
        if "proj" in lora.targets:
            yield f"{block}.attn.proj", [f"{block}.attn.proj"]
        if "mlp" in lora.targets:
            for name in MLP_PRODUCTS[config.family]:
                yield f"{block}.mlp.{name}", [f"{block}.mlp.{name}"]


def adapter_shapes(config: VisionConfig, lora: LoRAConfig) -> dict[str, tuple[int, int]]:
    """The shape of every A and B by name."""
    D, F = config.embed_dim, config.mlp_hidden_dim
    sizes = {"fc1": (D, F), "fc2": (F, D), "fc3": (D, F)}
    shapes = {}
    for product, pairs in adapted_products(config, lora):
        inputs, outputs = sizes.get(product.rsplit(".", 1)[1], (D, D))
        for pair in pairs:
            shapes[f"{pair}.lora_a"] = inputs, lora.rank
            shapes[f"{pair}.lora_b"] = lora.rank, outputs
    return shapes


def initial_adapters(config: VisionConfig, lora: LoRAConfig, seed: int) -> dict[str, mx.array]:
    """A uniform as PyTorch starts a layer, B zero; the same for the same seed on every machine."""
    tensors = {}
    for index, (name, shape) in enumerate(adapter_shapes(config, lora).items()):
        if name.endswith("lora_b"):
            tensors[name] = mx.zeros(shape)
            continue
        uniform = np.random.default_rng([seed, index]).random(shape, np.float32) * 2 - 1
        tensors[name] = mx.array(uniform / np.float32(shape[0] ** 0.5))
    return tensors


def adapt(encoder: VisionEncoder, lora: LoRAConfig, tensors: Mapping[str, mx.array]) -> None:
    """Puts adapters with these matrices into an encoder, of which nothing else is trained."""
    encoder.freeze()
    for block in encoder.trunk.blocks[len(encoder.trunk.blocks) - lora.blocks :]:
        if set(QKV) & set(lora.targets):
            setattr(block.attn, "qkv", LoRAQKV(block.attn.qkv, lora))  # noqa: B010
        if "proj" in lora.targets:
            setattr(block.attn, "proj", LoRALinear(block.attn.proj, lora))  # noqa: B010
        if "mlp" in lora.targets:
            for name in MLP_PRODUCTS[encoder.config.family]:
                setattr(block.mlp, name, LoRALinear(block.mlp[name], lora))
    encoder.update(tree_unflatten(list(tensors.items())))


def adapted_layers(network: nn.Module) -> list[Adapted]:
    """All products with adapters, in the order of their names."""
    named = {name: each for name, each in network.named_modules() if isinstance(each, Adapted)}
    return [named[name] for name in sorted(named)]


def merged(
    config: VisionConfig, lora: LoRAConfig, tensors: Mapping[str, mx.array]
) -> dict[str, mx.array]:
    """What the adapters add to each weight of an encoder (out, in), by the weight's name."""
    added = {}
    for product, pairs in adapted_products(config, lora):
        changes = []
        for pair in pairs:
            b = tensors[f"{pair}.lora_b"]
            wide = in_thirds(pair[-1], b) if product.endswith("qkv") else b
            changes.append(wide.T @ tensors[f"{pair}.lora_a"].T)
        added[f"{product}.weight"] = lora.scale * reduce(mx.add, changes)
    return added
