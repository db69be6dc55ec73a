"""The forward pass of the encoders, written once over the operations that every format has.

- the numbers of `models/`; large products and sums run in the graph's dtype, norms, softmaxes,
  pools and heads always in float32
- shapes are fixed: a graph is built for one batch size and one image size
- no tensor has more than four axes, as Core ML takes five at most
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from aim_mlx.config import PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.graphs.ops import Ops, T
from aim_mlx.models.layers import TrunkConfig, block_indices
from aim_mlx.models.positions import sincos_positions

Weights = Callable[[str], np.ndarray]  # a parameter by its name in our folders, in float32

FLOAT32 = "float32"
_MASKED = -1e30  # added to a score, it leaves a weight of zero


@dataclass(frozen=True, eq=False)
class Forward(Generic[T]):
    """Builds networks for batches of B from operations; `dtype` is that of the large products."""

    ops: Ops[T]
    weights: Weights
    dtype: str
    B: int

    def image_tokens(
        self,
        pixels: T,
        config: VisionConfig,
        preprocessing: PreprocessConfig,
        grid: tuple[int, int],
        layers: Sequence[int] = (),
        prefix: str = "",
    ) -> T:
        """RGB (B, H, W, 3) from 0 to 255 -> final tokens (B, N, D), or the mean of `layers`."""
        (h, w), p, D = grid, config.patch_size, config.embed_dim
        x = self._cast(self._normalised(pixels, preprocessing), self.dtype)
        # Rows of patches, then patches: each (p, p * 3).
        x = self.ops.reshape(x, (self.B * h, p, w, p * 3))
        x = self.ops.transpose(x, (0, 2, 1, 3))
        x = self.ops.reshape(x, (self.B, h * w, p * p * 3))
        start = f"{prefix}preprocessor."
        name = f"{start}patchifier.proj."
        x = self.linear(x, f"{name}weight", self.weights(f"{name}weight").reshape(D, -1))
        x = self.ops.add(x, self._constant(f"{name}bias"))
        x = self._norm(x, f"{start}patchifier.norm", config)
        x = self.ops.add(x, self._positions(config, grid, start))
        return self._trunk(x, config, h * w, prefix, layers)

    def text_vectors(self, ids: T, config: TextConfig, L: int, prefix: str) -> T:
        """Token ids (B, L) int32 -> the token at each first end token, (B, D) float32.

        A text without an end token gives zeros.
        """
        start = f"{prefix}preprocessor."
        name = f"{start}text_embedding.weight"
        x = self.ops.rows(_array(self.weights(name), self.dtype), ids, name)
        positions = self.weights(f"{start}positional_embedding")[:L]
        x = self.ops.add(x, self._own(f"{start}positional_embedding", positions))
        mask = np.where(np.tri(L, dtype=bool), 0.0, _MASKED).astype(np.float32)
        causal = self.ops.constant(mask.reshape(1, 1, L, L), "causal")
        x = self._blocks(x, config, L, prefix, config.num_blocks, causal)[-1]
        x = self.ops.matmul(self._first_end(ids, config, L), self._cast(x, FLOAT32))
        x = self._norm(x, f"{prefix}trunk.post_trunk_norm", config, FLOAT32)
        return self.ops.reshape(x, (self.B, config.embed_dim))

    def pooled(self, tokens: T, D: int, how: str = "mean") -> T:
        """Tokens (B, N, D) -> their mean, or with "max" the largest of each channel, (B, D)."""
        tokens = self._cast(tokens, FLOAT32)
        pooled = self.ops.mean(tokens, 1) if how == "mean" else self.ops.largest(tokens, 1)
        return self.ops.reshape(pooled, (self.B, D))

    def attended(self, tokens: T, queries: np.ndarray, name: str) -> T:
        """Tokens (B, N, D), folded queries (K, D) -> the tokens' weighted means (B, K, D)."""
        tokens = self._cast(tokens, FLOAT32)
        scores = self.ops.transpose(self.linear(tokens, name, queries, FLOAT32), (0, 2, 1))
        return self.ops.matmul(self.ops.softmax(scores), tokens)

    def averaged(self, means: T, queries: int, heads: int, D: int) -> T:
        """Means (B, queries * heads, D) -> those over the queries (B, heads, D)."""
        if queries == 1:
            return means
        each = self.ops.reshape(means, (self.B, queries, heads, D))
        return self.ops.reshape(self.ops.mean(each, 1), (self.B, heads, D))

    def projected(self, means: T, values: np.ndarray, heads: int, name: str) -> T:
        """Means (B, heads, D) and a value projection (D, D): head i by its rows alone -> (B, D)."""
        D = values.shape[0]
        means = self.ops.transpose(means, (1, 0, 2))
        split = values.reshape(heads, D // heads, D).swapaxes(1, 2)
        x = self.ops.matmul(means, self._own(name, split, FLOAT32))
        return self.ops.reshape(self.ops.transpose(x, (1, 0, 2)), (self.B, D))

    def linear(self, x: T, name: str, weight: np.ndarray, dtype: str | None = None) -> T:
        """x (..., D), a weight (out, D) -> (..., out), in the graph's dtype unless one is given."""
        return self.ops.linear(x, _array(weight, dtype or self.dtype), name)

    def add(self, x: T, name: str, values: np.ndarray) -> T:
        """x and a constant in float32."""
        return self.ops.add(x, self._own(name, values, FLOAT32))

    def scaled(self, x: T, by: float | np.ndarray) -> T:
        """x times a number, or one for each channel, in float32."""
        return self.ops.multiply(x, self.ops.constant(np.asarray(by, np.float32)))

    def unit(self, x: T, D: int) -> T:
        """Vectors (B, D) of length one, in float32; zeros stay."""
        x = self._cast(x, FLOAT32)
        squares = self.ops.mean(self.ops.multiply(x, x), -1)
        tiny = self.ops.constant(np.array(1e-30, np.float32))
        inverse = self.ops.rsqrt(self.ops.add(squares, tiny))
        return self.scaled(self.ops.multiply(x, inverse), 1 / math.sqrt(D))

    def _normalised(self, pixels: T, preprocessing: PreprocessConfig) -> T:
        """RGB from 0 to 255 to what the checkpoint takes, in float32."""
        mean, std = (np.array(each) for each in (preprocessing.mean, preprocessing.std))
        scaled = self.scaled(self._cast(pixels, FLOAT32), 1 / (255 * std))
        return self.ops.add(scaled, self.ops.constant((-mean / std).astype(np.float32)))

    def _positions(self, config: VisionConfig, grid: tuple[int, int], start: str) -> T:
        if config.sincos:
            return self._own("positions", sincos_positions(*grid, config.embed_dim))
        return self._constant(f"{start}pos_embed")

    def _trunk(self, x: T, config: VisionConfig, N: int, prefix: str, layers: Sequence[int]) -> T:
        """The final norm's tokens, or the mean of the outputs of `layers` in float32."""
        wanted = list(block_indices(layers, config.num_blocks).values())
        depth = max(wanted) + 1 if wanted else config.num_blocks
        outputs = self._blocks(x, config, N, prefix, depth)
        if not wanted:
            return self._norm(outputs[-1], f"{prefix}trunk.post_trunk_norm", config)
        total = self._cast(outputs[wanted[0]], FLOAT32)
        for index in wanted[1:]:
            total = self.ops.add(total, self._cast(outputs[index], FLOAT32))
        return self.scaled(total, 1 / len(wanted))

    def _blocks(
        self, x: T, config: TrunkConfig, N: int, prefix: str, depth: int, mask: T | None = None
    ) -> list[T]:
        """What each of the first blocks gives, (B, N, D)."""
        outputs = []
        for i in range(depth):
            name = f"{prefix}trunk.blocks.{i}."
            normed = self._norm(x, f"{name}norm_1", config)
            x = self.ops.add(x, self._attention(normed, f"{name}attn.", config, N, mask))
            normed = self._norm(x, f"{name}norm_2", config)
            x = self.ops.add(x, self._mlp(normed, f"{name}mlp.", config))
            outputs.append(x)
        return outputs

    def _attention(self, x: T, name: str, config: TrunkConfig, N: int, mask: T | None) -> T:
        heads, D = config.num_heads, config.embed_dim
        qkv = self._product(x, f"{name}qkv")

        def part(index: int, axes: tuple[int, ...]) -> T:
            each = self.ops.slice(qkv, 2, index * D, (index + 1) * D)
            split = self.ops.reshape(each, (self.B, N, heads, D // heads))
            return self.ops.transpose(split, axes)

        q, k, v = part(0, (0, 2, 1, 3)), part(1, (0, 2, 3, 1)), part(2, (0, 2, 1, 3))
        scale = _array(np.array(1 / math.sqrt(D // heads)), self.dtype)
        scores = self.ops.matmul(self.ops.multiply(q, self.ops.constant(scale)), k)
        scores = self._cast(scores, FLOAT32)
        if mask is not None:
            scores = self.ops.add(scores, mask)
        weights = self._cast(self.ops.softmax(scores), self.dtype)
        x = self.ops.transpose(self.ops.matmul(weights, v), (0, 2, 1, 3))
        return self._product(self.ops.reshape(x, (self.B, N, D)), f"{name}proj")

    def _mlp(self, x: T, name: str, config: TrunkConfig) -> T:
        if config.family == "aimv1":
            return self._product(self.ops.gelu(self._product(x, f"{name}fc1")), f"{name}fc2")
        gate, up = self._product(x, f"{name}fc1"), self._product(x, f"{name}fc3")
        silu = self.ops.multiply(gate, self.ops.sigmoid(gate))
        return self._product(self.ops.multiply(silu, up), f"{name}fc2")

    def _norm(self, x: T, name: str, config: TrunkConfig, dtype: str | None = None) -> T:
        """The family's norm, in float32, then in the graph's dtype unless one is given."""
        x = self._cast(x, FLOAT32)
        if config.family == "aimv1":
            x = self.ops.add(x, self.scaled(self.ops.mean(x, -1), -1.0))
        squares = self.ops.mean(self.ops.multiply(x, x), -1)
        epsilon = self.ops.constant(np.array(config.rms_norm_eps, np.float32))
        x = self.ops.multiply(x, self.ops.rsqrt(self.ops.add(squares, epsilon)))
        x = self.ops.multiply(x, self._constant(f"{name}.weight", FLOAT32))
        if config.family == "aimv1":
            x = self.ops.add(x, self._constant(f"{name}.bias", FLOAT32))
        return self._cast(x, dtype or self.dtype)

    def _first_end(self, ids: T, config: TextConfig, L: int) -> T:
        """(B, 1, L) float32: 1 at each text's first end token, 0 elsewhere."""
        is_end = self.ops.reshape(self.ops.equals(ids, config.eos_token_id), (self.B, 1, L))
        earlier = self.ops.constant(np.tri(L, k=-1, dtype=np.float32).T.copy(), "earlier")
        none_before = self.ops.equals(self.ops.matmul(is_end, earlier), 0)
        return self.ops.multiply(is_end, none_before)

    def _product(self, x: T, name: str) -> T:
        return self.linear(x, f"{name}.weight", self.weights(f"{name}.weight"))

    def _constant(self, name: str, dtype: str | None = None) -> T:
        return self._own(name, self.weights(name), dtype)

    def _own(self, name: str, values: np.ndarray, dtype: str | None = None) -> T:
        return self.ops.constant(_array(values, dtype or self.dtype), name)

    def _cast(self, x: T, dtype: str) -> T:
        return self.ops.cast(x, dtype)


def _array(values: np.ndarray, dtype: str) -> np.ndarray:
    """Raises CheckpointError for a value that float16 does not hold."""
    with np.errstate(over="ignore"):
        cast = np.asarray(values, dtype, order="C")
    if dtype != FLOAT32 and not np.isfinite(cast).all():
        raise CheckpointError(
            f"weights of up to {abs(values).max():.3g} overflow in {dtype}: write it in float32"
        )
    return cast
