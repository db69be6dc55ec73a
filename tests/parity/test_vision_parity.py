"""The vision encoder against transformers' Aimv2VisionModel, live, with noise in every tensor.

The noise keeps activations near one, so that an absolute tolerance means something: products of
unit vectors stay unit vectors, and what a block adds to the residual stream is divided by the
square root of the depth. Queries and keys are larger than that: the scores then spread enough for
each token to attend to few others, and a wrong scale, head or order of q, k, v shows.

Tolerance: a float32 sum of K terms in another order differs by about 6e-8 * sqrt(K) of its size,
3e-6 at K = 2816. Some fifty such sums follow each other, which adds up to 2e-5 where they are
independent; that is also the largest difference seen on x86. 1e-4 leaves room for other machines.
"""

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aim_mlx

pytestmark = pytest.mark.parity

CLOSE = 1e-4
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24}
LARGE |= {"num_attention_heads": 8, "image_size": 224, "is_native": False}
NATIVE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
NATIVE |= {"num_attention_heads": 2, "image_size": 224, "is_native": True}


def reference(sizes: dict[str, Any], seed: int = 0):
    """transformers' encoder of the given sizes with seeded noise in every parameter."""
    import torch
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    config = Aimv2VisionConfig(**sizes, patch_size=14, rms_norm_eps=1e-5, use_head=False)
    model = Aimv2VisionModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, deviation = noise_of(name, tuple(parameter.shape), sizes["num_hidden_layers"])
            parameter.normal_(mean, deviation, generator=generator)
    return model


def noise_of(name: str, shape: tuple[int, ...], depth: int) -> tuple[float, float]:
    """Mean and standard deviation of one parameter's noise."""
    if "norm" in name:
        return 1.0, 0.2
    if len(shape) == 1 or "position" in name:
        return 0.0, 0.3
    scale = np.prod(shape[1:]) ** -0.5
    if "q_proj" in name or "k_proj" in name:
        return 0.0, 1.5 * scale
    return 0.0, (2 * depth**-0.5 if "out_proj" in name or "down_proj" in name else 1.0) * scale


def reference_outputs(model, pixels: np.ndarray, blocks: list[int]) -> dict[str, np.ndarray]:
    """Final tokens and the named blocks' outputs for NHWC pixels, each (B, N, D)."""
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            outputs[name] = (output[0] if isinstance(output, tuple) else output).numpy().copy()

        return hook

    for i in blocks:
        model.encoder.layers[i].register_forward_hook(keep(f"block {i}"))
    with torch.inference_mode():
        nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        outputs["tokens"] = model(pixel_values=nchw).last_hidden_state.numpy()
    return outputs


def our_outputs(folder: Path, pixels: np.ndarray, blocks: list[int]) -> dict[str, np.ndarray]:
    features = aim_mlx.load(folder).features(pixels, layers=blocks)
    outputs = {f"block {i}": np.array(features.layers[i]) for i in blocks}
    return outputs | {"tokens": np.array(features.tokens)}


def compared(sizes: dict[str, Any], size: tuple[int, int], blocks: list[int], folder: Path):
    """Theirs and ours for one image, by way of the checkpoint that transformers writes itself."""
    pixels = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)
    model = reference(sizes)
    try:
        model.save_pretrained(folder)
        expected = reference_outputs(model, pixels, blocks)
        del model  # a copy of the large model takes 1.3 GB
        gc.collect()
        return expected, our_outputs(folder, pixels, blocks)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # pytest keeps the folders of three runs


def assert_close(name: str, actual: np.ndarray, expected: np.ndarray):
    assert actual.shape == expected.shape
    size = np.sqrt((expected.astype(np.float64) ** 2).mean())
    assert 0.3 < size < 3, f"{name} is of size {size:.2g}: the tolerance is for values near one"
    difference = np.abs(actual.astype(np.float64) - expected)
    assert difference.max() <= CLOSE, (
        f"{name}: largest difference {difference.max():.2e}, mean {difference.mean():.2e}"
    )


def test_large_at_its_full_size_equals_transformers(tmp_path):
    blocks = [0, 1, 11, 22, 23]
    expected, ours = compared(LARGE, (224, 224), blocks, tmp_path / "large")
    for name, value in expected.items():
        assert_close(name, ours[name], value)


@pytest.mark.parametrize("size", [(98, 210), (210, 98), (14, 70)])
def test_native_resolution_equals_transformers_on_grids_that_are_not_square(size, tmp_path):
    expected, ours = compared(NATIVE, size, [0, 1, 2, 3], tmp_path / "native")
    for name, value in expected.items():
        assert_close(name, ours[name], value)


def test_the_noise_makes_tokens_attend_to_few_others():
    """If attention were near uniform, a wrong scale or swapped heads would pass as rounding."""
    import torch

    model = reference(NATIVE)
    model.set_attn_implementation("eager")
    pixels = torch.randn(1, 3, 98, 210, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        attentions = model(pixel_values=pixels, output_attentions=True).attentions
    for weights in attentions:  # (1, heads, N, N); a uniform row has 1 / N as its largest
        assert weights.amax(-1).mean() > 5 / weights.shape[-1]
