"""The transformer blocks of AIMv2 (arXiv 2411.14402, section 3.1) and AIMv1 (arXiv 2401.08541).

- attention without biases, one fused projection for q, k and v; masks are bool, True = may attend
- AIMv2: pre-norm with RMSNorm, and SwiGLU: silu(fc1 x) * fc3 x, then fc2
- AIMv1: pre-norm with LayerNorm, and an MLP without biases: gelu(fc1 x), then fc2
- the sums of norms and softmaxes run in float32 whatever the dtype
"""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, cast

from aim_mlx.backend import mx, nn, on_gpu
from aim_mlx.config import TextConfig, VisionConfig
from aim_mlx.errors import UsageError

TrunkConfig = VisionConfig | TextConfig

# On the CPU the scores of one slice of queries are held at a time, so that 4096 patches
# need 64 MB a head group rather than half a gigabyte.
_QUERIES_AT_ONCE = 512

# Below it silu is zero to 33 digits, and e to its negative would pass the range of float32.
_SILU_FLOOR = -80.0


class Seen:
    """The keys and values, for one attention, of the tokens that came before.

    Those of a single row (1, p, D) serve for all rows that follow.
    """

    def __init__(self):
        self._before: tuple[mx.array, mx.array] | None = None

    def followed_by(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """These (B, heads, N, head_dim) with all before them, which are kept for what follows."""
        if self._before is not None:
            k, v = (
                mx.concatenate([mx.broadcast_to(old, (len(k), *old.shape[1:])), new], axis=2)
                for old, new in zip(self._before, (k, v), strict=True)
            )
        self._before = k, v
        return k, v


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D), mask (N, N), (B, 1, N, N) or None for all -> (B, N, D).

    With `seen` the p tokens before are attended to as well; the mask then is (N, p + N).
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self._heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=False)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim, bias=False)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, seen: Seen | None = None
    ) -> mx.array:
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self._heads, D // self._heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        if seen is not None:
            k, v = seen.followed_by(k, v)
        return self.proj(attend(q, k, v, mask).transpose(0, 2, 1, 3).reshape(B, N, D))


class SwiGLU(nn.Module):
    """Gated feed-forward: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_hidden_dim, bias=False)
        self.fc2 = nn.Linear(config.mlp_hidden_dim, config.embed_dim, bias=False)
        self.fc3 = nn.Linear(config.embed_dim, config.mlp_hidden_dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(gated(self.fc1(x), self.fc3(x)))


class MLP(nn.Module):
    """AIMv1's feed-forward, with the exact GELU: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_hidden_dim, bias=False)
        self.fc2 = nn.Linear(config.mlp_hidden_dim, config.embed_dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu(self.fc1(x)))


def norm_of(config: TrunkConfig) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over the channels, of the kind that the family has."""
    kind = nn.LayerNorm if config.family == "aimv1" else nn.RMSNorm
    return kind(config.embed_dim, eps=config.rms_norm_eps)


class Block(nn.Module):
    """One pre-norm transformer block: (B, N, D) -> (B, N, D); mask and `seen` as for Attention."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.norm_1 = norm_of(config)
        self.attn = Attention(config)
        self.norm_2 = norm_of(config)
        self.mlp = MLP(config) if config.family == "aimv1" else SwiGLU(config)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, seen: Seen | None = None
    ) -> mx.array:
        x = x + self.attn(self.norm_1(x), mask, seen)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """The blocks and the final norm: (B, N, D), mask as for Attention -> (B, N, D).

    With it come the outputs of the blocks named by `layers`, before the norm; nothing else is kept.
    With `seen`, one for each block, a sequence can be given part by part. Raises UsageError for
    layers that do not exist.
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.blocks = [Block(config) for _ in range(config.num_blocks)]
        self.post_trunk_norm = norm_of(config)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None = None,
        layers: Sequence[int] = (),
        seen: Sequence[Seen] = (),
    ) -> tuple[mx.array, dict[int, mx.array]]:
        wanted = block_indices(layers, len(self.blocks))
        outputs = {}
        for i, block in enumerate(self.blocks):
            x = block(x, mask, seen[i] if seen else None)
            if i in wanted.values():
                outputs[i] = x
        return self.post_trunk_norm(x), {asked: outputs[i] for asked, i in wanted.items()}


def through(trunk: Trunk, x: mx.array, mask: mx.array | None, checkpointed: bool) -> mx.array:
    """The final tokens, as of the trunk itself, for training.

    `checkpointed` keeps only the blocks' inputs for the gradient, and computes the rest again.
    """
    for block in trunk.blocks:
        run: Any = block
        if checkpointed:
            run = nn.utils.checkpoint(block)  # pyright: ignore[reportAttributeAccessIssue]
        x = run(x, mask)
    return trunk.post_trunk_norm(x)


def block_indices(layers: Sequence[int], num_blocks: int) -> dict[int, int]:
    """Layer numbers as asked for -> block indices from 0; raises UsageError out of range."""
    numbers = layer_numbers(layers)
    for layer in numbers:
        if not -num_blocks <= layer < num_blocks:
            raise UsageError(
                f"layer must be a whole number from {-num_blocks} to {num_blocks - 1}, got {layer}"
            )
    return {layer: layer % num_blocks for layer in numbers}


def layer_numbers(layers: Iterable[int]) -> tuple[int, ...]:
    """Layers as Python's numbers, NumPy's too; raises UsageError for what is no list of these."""
    try:
        return tuple(operator.index(layer) for layer in layers)
    except TypeError:
        raise UsageError(
            f"expected layers as a list of whole numbers such as [-1], got {layers!r:.80}"
        ) from None


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
    """Scaled dot-product attention over (B, heads, N, head_dim), softmax in float32."""
    if on_gpu():
        scale = 1 / math.sqrt(q.shape[-1])
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    outputs = []
    for start in range(0, q.shape[2], _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        outputs.append(
            _attend_on_cpu(q[:, :, rows], k, v, None if mask is None else mask[..., rows, :])
        )
    return mx.concatenate(outputs, axis=2)


def gated(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, elementwise, where silu(x) is x * sigmoid(x)."""
    if on_gpu():
        return nn.silu(gate) * up
    return cast(tuple[mx.array, mx.array], _gated_on_cpu(gate, up))[0]


@mx.custom_function
def _gated_on_cpu(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    """The product, and what the sigmoid divides by, which the gradient takes from here.

    Derived from the product, the gradient goes through the exponential once more and makes a sixth
    of a block's time.
    """
    divisor = 1 + power_on_cpu(1 / math.e, mx.maximum(gate, _SILU_FLOOR))
    return gate / divisor * up, divisor


@_gated_on_cpu.vjp
def _gated_gradient(
    inputs: tuple[mx.array, mx.array],
    of_outputs: tuple[mx.array, mx.array],
    outputs: tuple[mx.array, mx.array],
) -> tuple[mx.array, mx.array]:
    (gate, up), (of_product, _), (_, divisor) = inputs, of_outputs, outputs
    sigmoid = 1 / divisor
    of_silu = of_product * sigmoid
    of_up = of_silu * gate
    return up * (of_silu + of_up * (1 - sigmoid)), of_up


def _attend_on_cpu(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Attention spelled out: the fused one spends most of its CPU time in a slow exponential."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.swapaxes(-1, -2)
    scores = scores.astype(mx.float32)
    if mask is not None:
        scores = mx.where(mask, scores, -math.inf)
    # The weights do not depend on what is taken off, so that no gradient need go through it.
    largest = mx.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = power_on_cpu(math.e, scores - largest)
    # Dividing after the product touches head_dim values a query instead of N.
    return ((weights.astype(v.dtype) @ v) / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def power_on_cpu(base: float, x: mx.array) -> mx.array:
    """base to the x: an exponential in a third of the time of `exp` in MLX's x86 build."""
    return mx.power(mx.array(base, dtype=x.dtype), x)
