"""`python -m benchmarks.soak`: photos of many sizes at native resolution, and the memory they take.

Each size needs buffers of its own, which MLX keeps for whoever asks next. Ends with 1 where these
and what is in use pass a limit.
"""

import argparse
import io
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from PIL import Image

from aim_mlx.backend import device_name, mx, tree_flatten
from aim_mlx.config import PreprocessConfig, VisionConfig
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.registry import MODELS
from aim_mlx.weights.initial import initial_weights

GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--model", default="aimv2-large-patch14-native", choices=list(MODELS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--limit", type=float, default=3.0, help="GB beside the weights")
    options = parser.parse_args()
    config = MODELS[options.model].config
    if not isinstance(config, VisionConfig) or not config.native:
        parser.error("choose a model of native resolution")
    encoder = with_random_weights(config)
    weights = sum(value.nbytes for value in dict(tree_flatten(encoder.model.parameters())).values())
    most = largest(encoder, photos(options.images))
    taken = (most - weights) / GB
    print(
        f"{options.images} photos of as many sizes, {options.model} on {device_name()}: "
        f"{taken:.2f} GB beside {weights / GB:.2f} GB of weights, at most {options.limit:.2f}"
    )
    if taken > options.limit:
        raise SystemExit(1)


def with_random_weights(config: VisionConfig) -> Encoder:
    model = VisionEncoder(config)
    model.load_weights([(name, mx.array(v)) for name, v in initial_weights(config, seed=0)])
    return Encoder(model, PreprocessConfig.hub(config.image_size))


def photos(count: int) -> list[bytes]:
    """JPEGs, no two of one size: sides of 160 to 1600 pixels."""
    rng, encoded = np.random.default_rng(0), []
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    sizes: set[tuple[int, int]] = set()
    while len(sizes) < count:
        width, height = (int(side) for side in rng.integers(160, 1600, 2))
        sizes.add((width, height))
    for size in sorted(sizes, key=lambda size: rng.random()):
        file = io.BytesIO()
        coarse.resize(size).save(file, "jpeg")
        encoded.append(file.getvalue())
    return encoded


def largest(encoder: Encoder, images: Sequence[bytes]) -> int:
    """The most bytes in use, and kept for use, at any time while images are embedded."""
    mx.reset_peak_memory()
    kept = done = 0
    with closing(encoder.embed_stream(images)) as rows:
        for row in rows:
            if row.failure is not None:
                raise SystemExit(f"photo {row.index} has no vector: {row.failure}")
            kept, done = max(kept, mx.get_cache_memory()), done + 1
    if done != len(images):
        raise SystemExit(f"{done} of {len(images)} photos were computed")
    return mx.get_peak_memory() + kept


if __name__ == "__main__":
    main()
