"""The vision encoders, AIMv2 (arXiv 2411.14402) and AIMv1 (arXiv 2401.08541).

- patches of 14 x 14 pixels, projected with a bias, normalised, then positions are added
- learned positions for one fixed size; sin-cos positions for native resolution and in AIMv1
- a trunk of blocks and a final norm
- no class token: every output token is a patch
- parameters are named as in the reference's MLX files, so those load unchanged
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from aim_mlx.backend import check_not_forked, mx, nn
from aim_mlx.config import VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.models.layers import Trunk, norm_of
from aim_mlx.models.positions import resize_positions, sincos_positions


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder makes of a batch; nothing is computed before it is read.

    tokens: (B, N, D) after the final norm, in the encoder's dtype
    grid:   (h, w) patches, N = h * w in raster order
    layers: index as asked for -> that block's output (B, N, D), before the final norm
    visual_tokens: (B, M, width) for Ovis2's language model, where they were loaded
    """

    tokens: mx.array
    grid: tuple[int, int]
    layers: dict[int, mx.array] = field(default_factory=dict)
    visual_tokens: mx.array | None = None


class PatchProjection(nn.Module):
    """The weights of the patch convolution: weight (D, p, p, 3), bias (D,)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        p = config.patch_size
        self.weight = mx.zeros((config.embed_dim, p, p, 3))
        self.bias = mx.zeros((config.embed_dim,))

    def __call__(self, patches: mx.array) -> mx.array:
        """(B, N, p*p*3) -> (B, N, D). Patches do not overlap, so the convolution is one product."""
        return mx.addmm(self.bias, patches, self.weight.reshape(self.weight.shape[0], -1).T)


class Patchifier(nn.Module):
    """Normalised pixels (B, H, W, 3) -> normed patch vectors (B, N, D)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self._patch_size = config.patch_size
        self.proj = PatchProjection(config)
        self.norm = norm_of(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        B, H, W, _ = pixels.shape
        p = self._patch_size
        h, w = H // p, W // p
        patches = pixels.reshape(B, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5)
        return self.norm(self.proj(patches.reshape(B, h * w, p * p * 3)))


class Preprocessor(nn.Module):
    """Pixels (B, H, W, 3) -> tokens with positions (B, N, D)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self._config = config
        self.patchifier = Patchifier(config)
        if config.grid is not None and not config.sincos:
            self.pos_embed = mx.zeros((1, config.grid**2, config.embed_dim))

    def __call__(self, pixels: mx.array, grid: tuple[int, int]) -> mx.array:
        tokens = self.patchifier(pixels)
        return tokens + self._positions(grid).astype(tokens.dtype)

    def _positions(self, grid: tuple[int, int]) -> mx.array:
        if self._config.sincos:
            return mx.array(sincos_positions(*grid, self._config.embed_dim))
        trained = self._config.grid
        if grid == (trained, trained):
            return self.pos_embed
        return resize_positions(self.pos_embed, *grid)


class VisionEncoder(nn.Module):
    """A vision encoder; source: apple/ml-aim, `AIMv2VisionEncoder` and, without its head, `AIM`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.preprocessor = Preprocessor(config)
        self.trunk = Trunk(config)

    def __call__(
        self,
        pixels: mx.array,
        layers: Sequence[int] = (),
        interpolate_positions: bool = False,
    ) -> Features:
        """Normalised pixels (B, H, W, 3) -> Features.

        `layers` names blocks (negative from the end). MLX computes what is read: where only
        `layers` are, no block after the last of them costs anything. A fixed-size model takes
        another size only with `interpolate_positions`. Raises UsageError for sizes or layers that
        do not exist.
        """
        check_not_forked()
        grid = self._grid(pixels, interpolate_positions)
        tokens, outputs = self.trunk(self.preprocessor(pixels, grid), layers=layers)
        return Features(tokens, grid, outputs)

    def _grid(self, pixels: mx.array, interpolate: bool) -> tuple[int, int]:
        """The patch grid (h, w) of a batch; raises UsageError if the model cannot take its size."""
        p, size = self.config.patch_size, self.config.image_size
        if pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise UsageError(f"expected pixels of shape (B, H, W, 3), got {tuple(pixels.shape)}")
        _, H, W, _ = pixels.shape
        if H % p or W % p or not H or not W:
            raise UsageError(f"image height and width must be multiples of {p}, got {H} x {W}")
        if size is not None and (H, W) != (size, size) and not interpolate:
            raise UsageError(
                f"this model takes {size} x {size} images, got {H} x {W}: resize them, or pass "
                "interpolate_positions=True"
            )
        return H // p, W // p
