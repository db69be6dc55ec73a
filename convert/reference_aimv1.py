"""The PyTorch reference for AIMv1, which no library has: the formulas of arXiv 2401.08541."""

from typing import Any

import numpy as np

from aim_mlx.config import VisionConfig


def aimv1_outputs(
    config: VisionConfig, weights: dict[str, Any], pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Every block's output and the final tokens (B, N, D) of one image (1, H, W, 3), in float32.

    `weights` are torch tensors under the names of apple/ml-aim.
    """
    import torch
    from torch.nn import functional

    def norm(x: Any, name: str) -> Any:
        shape, epsilon = (config.embed_dim,), config.rms_norm_eps
        return functional.layer_norm(
            x, shape, weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon
        )

    def heads(x: Any) -> Any:
        return x.unflatten(-1, (config.num_heads, config.head_dim)).transpose(1, 2)

    def attention(x: Any, name: str) -> Any:
        q, k, v = map(heads, (x @ weights[f"{name}.qkv.weight"].T).chunk(3, dim=-1))
        scores = (q @ k.transpose(-1, -2)) / config.head_dim**0.5
        x = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return x @ weights[f"{name}.proj.weight"].T

    def mlp(x: Any, name: str) -> Any:
        hidden = functional.gelu(x @ weights[f"{name}.fc1.weight"].T)
        return hidden @ weights[f"{name}.fc2.weight"].T

    outputs = {}
    with torch.inference_mode():
        nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        patches = "preprocessor.patchifier"
        kernel, bias = weights[f"{patches}.proj.weight"], weights[f"{patches}.proj.bias"]
        grid = functional.conv2d(nchw, kernel, bias, stride=config.patch_size)
        h, w = grid.shape[2:]
        x = norm(grid.flatten(2).transpose(1, 2), f"{patches}.norm")
        x = x + _positions(h, w, config.embed_dim)
        for i in range(config.num_blocks):
            block = f"trunk.blocks.{i}"
            x = x + attention(norm(x, f"{block}.norm_1"), f"{block}.attn")
            x = x + mlp(norm(x, f"{block}.norm_2"), f"{block}.mlp")
            outputs[f"block {i}"] = x.numpy()
        outputs["final tokens"] = norm(x, "trunk.post_trunk_norm").numpy()
    return outputs


def _positions(h: int, w: int, D: int) -> Any:
    """(h*w, D): sines and cosines of the column, then of the row."""
    import torch

    rates = 10_000.0 ** -(torch.arange(D // 4) / (D / 4))
    columns, rows = torch.arange(w).repeat(h), torch.arange(h).repeat_interleave(w)
    angles = [place[:, None] * rates for place in (columns, rows)]
    return torch.cat([part(angle) for angle in angles for part in (torch.sin, torch.cos)], dim=1)
