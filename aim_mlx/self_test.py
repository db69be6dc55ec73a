"""Small networks computed on this machine, beside the numbers of the PyTorch implementation.

Heads are 128 channels wide, as in the published models. The weights are noise from random bits that
are the same everywhere, so the package only carries what the reference makes of them, in
`assets/self_test.safetensors`; `python -m tests.parity.test_self_test_parity` writes it.
"""

import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from pathlib import Path

import numpy as np

from aim_mlx.backend import TF32, device_name, mx, nn, tree_flatten
from aim_mlx.config import LiTConfig, PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.weights.sizes import expected_shapes
from aim_mlx.words.lit import LiT

Outputs = dict[str, np.ndarray]

EXPECTED = Path(__file__).parent / "assets" / "self_test.safetensors"
VISION = VisionConfig(256, 352, 2, 2, 14, 224)
NATIVE = replace(VISION, image_size=None)
LIT = LiTConfig(VISION, TextConfig(256, 352, 2, 2, 200, 77, 199), 64)
NATIVE_SIZE = (15 * 14, 17 * 14)  # 255 patches, no multiple of a kernel's tile
EVERY = 17  # of the tokens, one is compared
PHOTO_SIZE = 56
_TEXT_LENGTHS = (77, 32, 5, 42)
_PROJECTIONS = 4  # numbers compared of each parameter's gradient

# The largest differences that pass, of the size of the numbers. With OpenBLAS's kernels up to
# 5.6e-6, 6.6e-3, 4.7e-2, 1.5e-5 and 0 were seen.
_MOST = {"float32": 6e-5, "float16": 2e-2, "bfloat16": 0.15, "gradients": 1.5e-4, "pixels": 1e-5}
_MOST_IN_TF32 = _MOST | {"float32": 2e-2, "gradients": 0.1}  # as many bits as float16 has


@dataclass(frozen=True)
class Difference:
    """The largest of a kind, in the output named, divided by the size of that output's numbers."""

    kind: str
    output: str
    largest: float
    most: float

    @property
    def passed(self) -> bool:
        return self.largest <= self.most  # NaN does not


def run(expected: Mapping[str, np.ndarray]) -> list[Difference]:
    """How far this machine is from what was expected: in each dtype, in training, in a photo."""
    photo = expected["photo"].tobytes()
    small = Encoder(VisionEncoder(VISION), PreprocessConfig.hub(PHOTO_SIZE))
    computed = {
        "float32": outputs(mx.float32, photo),
        "float16": outputs(mx.float16, photo),
        "bfloat16": outputs(mx.bfloat16, photo),
        "gradients": gradients(),
        "pixels": {"pixels": small.preprocess([photo])[0]},
    }
    return [_largest(kind, found, expected) for kind, found in computed.items()]


def outputs(dtype: mx.Dtype, photo: bytes) -> Outputs:
    """What the encoders make of noise and of an encoded photo."""
    lit, native = lit_model(), VisionEncoder(NATIVE)
    native.load_weights(_arrays(weights(NATIVE)))
    for model in (lit, native):
        model.set_dtype(dtype)
    preprocessing = PreprocessConfig.hub(VISION.image_size)
    words = LiT(lit.image_encoder, preprocessing, lit=lit)
    pixels, ids = images(), text_ids()
    any_size = Encoder(native, PreprocessConfig.hub(None))
    computed = {
        "tokens": words.features(pixels).tokens[:, ::EVERY],
        "native tokens": any_size.features(native_image()).tokens[:, ::EVERY],
        "image vectors": words.encode_image(pixels),
        "text vectors": words.encode_text(ids),
        "logits": words.logits(pixels, ids),
    }
    found = {name: np.array(value.astype(mx.float32)) for name, value in computed.items()}
    return found | {"vector of the photo": words.embed([photo])}


def gradients() -> Outputs:
    """That of each parameter for a sum of logits, projected on a few directions of noise."""
    model, pixels, ids = lit_model(), mx.array(images()), text_ids()
    of_logits = mx.array(gradient_of_logits())

    def loss() -> mx.array:
        logits = model.logits(model.encode_image(pixels), model.encode_text(ids))
        return (logits * of_logits).sum()

    _, gradient = nn.value_and_grad(model, loss)()
    return {name: projected(name, np.array(value)) for name, value in tree_flatten(gradient)}


def projected(name: str, gradient: np.ndarray) -> np.ndarray:
    """The gradient of a parameter as a few numbers, float32, to each of which all of it counts."""
    directions = noise(f"directions of {name}", (_PROJECTIONS, gradient.size))
    return (directions @ gradient.reshape(-1).astype(np.float64)).astype(np.float32)


def lit_model() -> LiTModel:
    model = LiTModel(LIT)
    model.load_weights(_arrays(weights(LIT)))
    return model


def weights(config: VisionConfig | LiTConfig) -> dict[str, np.ndarray]:
    """Noise of a size that keeps activations near one, for every parameter."""
    values = {name: noise(name, shape) for name, shape in expected_shapes(config).items()}
    for name, value in values.items():
        if "norm" in name:
            values[name] = 1 + value / 2
        elif name.endswith("weight") and "embedding" not in name:
            values[name] = value * np.float32(1.7 / prod(value.shape[1:]) ** 0.5)
        if name.endswith("qkv.weight"):  # each token attends to few others
            values[name][: 2 * len(value) // 3] *= 1.5
    if isinstance(config, LiTConfig):
        values["log_logit_scale"] = np.array(2.5, np.float32)
    return values


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 from -1 to 1 with 24 random bits, which NumPy promises never to change."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(prod(shape)) >> np.uint64(40)
    return (bits.astype(np.float32) / 2**23 - 1).reshape(shape)


def images() -> np.ndarray:
    """Two normalised images, float32 (2, H, W, 3)."""
    return 2 * noise("images", (2, 224, 224, 3))


def native_image() -> np.ndarray:
    return 2 * noise("native image", (1, *NATIVE_SIZE, 3))


def gradient_of_logits() -> np.ndarray:
    return noise("gradient of the logits", (2, len(_TEXT_LENGTHS)))


def text_ids() -> np.ndarray:
    """Texts of several lengths, padded with the end token, int (C, L)."""
    end = LIT.text.eos_token_id
    ids = noise("texts", (len(_TEXT_LENGTHS), LIT.text.context_length))
    ids = ((ids + 1) / 2 * end).astype(np.int32)
    for row, length in zip(ids, _TEXT_LENGTHS, strict=True):
        row[length - 1 :] = end
    return ids


def line(differences: list[Difference]) -> str:
    """The machine, the differences and the verdict, to be pasted into a report."""
    device = mx.device_info()
    chip = f"{device.get('device_name')} ({device.get('architecture')})"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    numbers = ", ".join(f"{each.kind} {each.largest:.1e}" for each in differences)
    failed = [
        f"{each.kind} differs by {each.largest:.1e} in {each.output}, at most {each.most:.0e}"
        for each in differences
        if not each.passed
    ]
    return (
        f"aim-mlx {version('aim-mlx')}, MLX {version('mlx')}, Python {platform.python_version()}, "
        f"{system}, {chip}, {device_name()}{', TF32' if TF32 else ''}: {numbers}: "
        f"{'FAILED: ' + '; '.join(failed) if failed else 'passed'}"
    )


def _largest(kind: str, computed: Outputs, expected: Mapping[str, np.ndarray]) -> Difference:
    apart = {}
    for name, values in computed.items():
        wanted = expected[name].astype(np.float64)
        size = np.sqrt((wanted**2).mean())
        apart[name] = float(np.abs(values - wanted).max() / size)
    output = max(apart, key=lambda name: (np.isnan(apart[name]), apart[name]))
    most = (_MOST_IN_TF32 if TF32 else _MOST)[kind]
    return Difference(kind, output, apart[output], most)


def _arrays(values: Mapping[str, np.ndarray]) -> list[tuple[str, mx.array]]:
    return [(name, mx.array(value)) for name, value in values.items()]
