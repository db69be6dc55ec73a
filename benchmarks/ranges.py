"""The largest number at each point where half precision rounds, beside 65,504, float16's largest.

`python -m benchmarks.ranges [MODEL...]`: registry names (random weights are made, twice: as
training starts, and with noise in every tensor) or checkpoints. Everything is computed in float32.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

import aim_mlx
from aim_mlx.backend import mx, nn, tree_flatten
from aim_mlx.config import PreprocessConfig
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.models.layers import Attention, Block, gated
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.registry import MODELS
from aim_mlx.weights.initial import initial_weights
from benchmarks.material import PHOTOGRAPHS

_MOST = 65_504
_NOISE = 0.05  # twice what Xavier gives at a width of 1024: gains, biases and positions have it too

Look = Callable[[str, mx.array], mx.array]


def ranges(model: VisionEncoder, pixels: mx.array) -> dict[str, float]:
    """The largest of each kind in all blocks; fails where the encoder computes something else."""
    largest: dict[str, float] = defaultdict(float)

    def look(name: str, value: mx.array) -> mx.array:
        largest[name] = max(largest[name], float(mx.abs(value).max()))
        return value

    x, grid = _patches(model, pixels, look)
    for block in model.trunk.blocks:
        x = look("residual", x + _attended(block.attn, look("norms", block.norm_1(x)), look))
        x = look("residual", x + _fed_forward(block, look("norms", block.norm_2(x)), look))
    tokens = look("tokens", model.trunk.post_trunk_norm(x))
    whole = model(pixels).tokens
    error = float(mx.abs(tokens - whole).max() / mx.abs(whole).max())
    if error > 1e-4:  # float32 sums in another order
        raise SystemExit(f"this is not what the encoder computes: {error:.1e} apart")
    return dict(largest)


def _patches(
    model: VisionEncoder, pixels: mx.array, look: Look
) -> tuple[mx.array, tuple[int, int]]:
    p, patchifier = model.config.patch_size, model.preprocessor.patchifier
    grid = pixels.shape[1] // p, pixels.shape[2] // p
    norm, patchifier["norm"] = patchifier.norm, nn.Identity()
    look("patches", patchifier(pixels))
    patchifier.norm = norm
    return look("residual", model.preprocessor(pixels, grid)), grid


def _attended(attention: Attention, x: mx.array, look: Look) -> mx.array:
    B, N, D = x.shape
    heads = attention._heads
    qkv = look("qkv", attention.qkv(x)).reshape(B, N, 3, heads, D // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = look("scores", (q * (D // heads) ** -0.5) @ k.swapaxes(-1, -2))
    means = look("means of values", mx.softmax(scores, axis=-1) @ v)
    return look("proj", attention.proj(means.transpose(0, 2, 1, 3).reshape(B, N, D)))


def _fed_forward(block: Block, x: mx.array, look: Look) -> mx.array:
    if block.mlp.fc3 is None:
        raise SystemExit("this measures AIMv2's encoders, whose feed-forward networks are gated")
    gate, up = look("fc1", block.mlp.fc1(x)), look("fc3", block.mlp.fc3(x))
    return look("fc2", block.mlp.fc2(look("gate", gated(gate, up))))


def _encoders(name: str) -> Iterator[tuple[str, Encoder]]:
    if name not in MODELS:
        yield name, aim_mlx.load(name, dtype="float32")
        return
    config = MODELS[name].config
    assert isinstance(config, aim_mlx.VisionConfig)
    for kind in ("initial", "noise"):
        model, rng = VisionEncoder(config), np.random.default_rng(0)
        weights = dict(initial_weights(config, 0))
        if kind == "noise":
            weights = {
                n: mx.array(rng.normal("norm" in n, _NOISE, v.shape).astype(np.float32))
                for n, v in weights.items()
            }
        model.load_weights(list(weights.items()), strict=True)
        mx.eval(model.parameters())
        yield f"{name}, {kind}", Encoder(model, PreprocessConfig.hub(config.image_size))


def main(names: list[str]) -> None:
    photographs = sorted(PHOTOGRAPHS.glob("*.jpg"))[:2]
    for each in names or ["aimv2-large-patch14-224"]:
        for title, encoder in _encoders(each):
            pixels = [mx.array(encoder.preprocess([path])) for path in photographs]
            found = [ranges(encoder.model, each) for each in pixels]
            parameters = dict(tree_flatten(encoder.model.parameters()))
            weights = [float(mx.abs(value).max()) for value in parameters.values()]
            print(f"{title}: {len(photographs)} photographs")
            for point in ["weights", *found[0]]:
                most = max(weights) if point == "weights" else max(each[point] for each in found)
                print(f"  {point:<16} {most:12,.4g}  float16 has {_MOST / most:,.0f} times as much")


if __name__ == "__main__":
    main(sys.argv[1:])
