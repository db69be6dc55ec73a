"""Where an image's time goes on the CPU: `python -m benchmarks.profile_encoder [--threads N]`.

Each operation runs on arrays of its real shape, one image, evaluated by itself, in every block in
turn, so that weights come from memory as they do in a forward pass. Counted is processor time,
which other programs on the machine disturb less than the clock. With --threads 1 this is one of
the streams that embed runs side by side, one for each core.
"""

import argparse
import math
import time
from collections.abc import Callable

from aim_mlx.backend import BLAS, mx, tree_flatten
from aim_mlx.config import VisionConfig
from aim_mlx.models.layers import Block, gated
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.registry import DEFAULT_MODEL, MODELS, find_model

Operation = Callable[[Block], mx.array]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_encoder")
    names = [name for name, spec in MODELS.items() if spec.family == "AIMv2"]
    parser.add_argument("--model", default=DEFAULT_MODEL, choices=names)
    parser.add_argument("--threads", type=int, default=1, help="of one matrix product")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    config = find_model(options.model).config
    if not isinstance(config, VisionConfig) or config.image_size is None:
        parser.error("choose a vision encoder of one image size")
    model = noisy_encoder(config)
    pixels = noise(1, config.image_size, config.image_size, 3)
    work: dict[str, Callable[[], None]] = {
        name: lambda o=operation: over_blocks(model, o)
        for name, operation in block_operations(config, (config.grid or 0) ** 2)
    }
    work["whole"] = lambda: mx.eval(model(pixels).tokens)
    with BLAS.limited_to(options.threads):
        rows = least_ms(work, options.repeats)
    whole = rows.pop("whole")
    print("| operation, all blocks | ms | share |\n|---|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.0f} | {value / whole:.0%} |")
    total = sum(rows.values())
    print(f"| sum of these | {total:.0f} | {total / whole:.0%} |")
    print(f"| one forward pass, whole | {whole:.0f} | 100% |")


def block_operations(config: VisionConfig, N: int) -> list[tuple[str, Operation]]:
    """The operations of layers.Block on the CPU, by name, in order."""
    D, F, heads, d = config.embed_dim, config.mlp_hidden_dim, config.num_heads, config.head_dim
    x, out, fused = noise(1, N, D), noise(1, N, D), noise(1, N, 3 * D)
    hidden, up = noise(1, N, F), noise(1, N, F)
    q, k, v = (noise(1, heads, N, d) for _ in range(3))
    scores, sums = noise(1, heads, N, N), noise(1, heads, N, 1)
    e = mx.array(math.e)

    def split_heads(_: Block) -> mx.array:
        return mx.contiguous(fused.reshape(1, N, 3, heads, d).transpose(2, 0, 3, 1, 4))

    return [
        ("product qkv", lambda block: block.attn.qkv(x)),
        ("product q kT", lambda _: q @ k.swapaxes(-1, -2)),
        ("product weights v", lambda _: scores @ v),
        ("product attention out", lambda block: block.attn.proj(x)),
        ("product fc1", lambda block: block.mlp.fc1(x)),
        ("product fc3", lambda block: block.mlp["fc3"](x)),
        ("product fc2", lambda block: block.mlp.fc2(hidden)),
        ("copies of q, k, v by head", split_heads),
        ("copy of heads together", lambda _: mx.contiguous(q.transpose(0, 2, 1, 3))),
        ("scale of q", lambda _: q * 0.1),
        ("softmax: largest", lambda _: scores.max(axis=-1, keepdims=True)),
        ("softmax: difference", lambda _: scores - sums),
        ("softmax: exponential", lambda _: mx.power(e, scores)),
        ("softmax: sum", lambda _: scores.sum(axis=-1, keepdims=True)),
        ("softmax: quotient", lambda _: q / sums),
        ("silu of the gate, times up", lambda _: gated(hidden, up)),
        ("norm 1", lambda block: block.norm_1(x)),
        ("norm 2", lambda block: block.norm_2(x)),
        ("addition 1", lambda _: x + out),
        ("addition 2", lambda _: out + x),
    ]


def over_blocks(model: VisionEncoder, operation: Operation) -> None:
    for block in model.trunk.blocks:
        mx.eval(operation(block))


def noisy_encoder(config: VisionConfig) -> VisionEncoder:
    """Gains of one and weights that keep activations near one: no overflow, no denormals."""
    model = VisionEncoder(config)
    for name, value in dict(tree_flatten(model.parameters())).items():
        if value.ndim > 1:
            model.load_weights([(name, noise(*value.shape) * 0.03)], strict=False)
    mx.eval(model.parameters())
    return model


def noise(*shape: int) -> mx.array:
    array = mx.random.normal(shape)
    mx.eval(array)
    return array


def least_ms(work: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The least processor time of each in milliseconds, measured in turn: machines have moods."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, each in work.items():
            started = time.process_time()
            each()
            times[name].append(time.process_time() - started)
    return {name: 1e3 * min(values[1:]) for name, values in times.items()}


if __name__ == "__main__":
    main()
