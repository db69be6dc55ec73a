"""A converted checkpoint against the PyTorch reference: block by block, on seeded pictures."""

import gc
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import aim_mlx
from aim_mlx.backend import DTYPES, device_name, mx
from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.images import preprocess
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.load import load_weights
from aim_mlx.weights.strict_json import at
from convert.conversion import load_one, only
from convert.reference import OUR_TOWER, Outputs, reference_outputs, weights_are_direct
from convert.report import Comparison, Difference, Report, difference
from convert.source import Source

_SHAPES = ((1.0, 1.4), (1.3, 1.0))  # height and width of the pictures, in units of their side
_NATIVE_SIDE = 160  # pixels: 150 to 180 patches, which native models take unscaled


def verify(source: Source, folder: Path, pictures: list[np.ndarray] | None = None) -> Report:
    """Compares a written folder with the source it was made from.

    In float32 the source's weights run through both networks (by way of the folder, where it holds
    them without loss); in the folder's own dtype, what it holds runs through ours. Its tensors must
    be the source's, bit for bit after the cast.
    """
    written = open_checkpoint(folder)
    config = written.vision
    if written.config != source.checkpoint.config:
        raise CheckpointError(f"{at(folder)} is not made from the source: convert it again")
    pictures = seeded_pictures(written.preprocess) if pictures is None else pictures
    images = [preprocess(Image.fromarray(p), written.preprocess)[None] for p in pictures]
    expected = reference_outputs(source.checkpoint, config, images)
    gc.collect()  # the reference's weights, before ours are loaded
    lossless = written.dtype in ("float32", source.checkpoint.dtype)
    exact = written if lossless else source.checkpoint
    dtypes = dict.fromkeys(["float32", *({written.dtype} & set(DTYPES))])
    return Report(
        facts=_facts(source, written, images),
        tensors=len(written.tensors),
        changed=tuple(_changed(source.checkpoint, written)),
        comparisons=tuple(
            _compare(exact if dtype == "float32" else written, dtype, images, expected)
            for dtype in dtypes
        ),
    )


def seeded_pictures(config: PreprocessConfig) -> list[np.ndarray]:
    """Pictures uint8 (H, W, 3), upright and wide: smooth shapes under noise, always the same."""
    side = config.shortest_edge or _NATIVE_SIDE
    rng = np.random.default_rng(0)
    pictures = []
    for high, wide in _SHAPES:
        height, width = round(side * high), round(side * wide)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        noisy = smooth + rng.normal(0, 12, smooth.shape)
        pictures.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return pictures


def _compare(
    checkpoint: Checkpoint, dtype: str, images: list[np.ndarray], expected: list[Outputs]
) -> Comparison:
    """Our outputs in one dtype against the reference's, each over all images."""
    model = _encoder(checkpoint, DTYPES[dtype])
    differences: dict[str, list[Difference]] = {}
    cosines = []
    for pixels, reference in zip(images, expected, strict=True):
        ours = _outputs(model, pixels, DTYPES[dtype])
        for name, value in reference.items():
            differences.setdefault(name, []).append(difference(name, ours[name], value))
        cosines.append(_cosine(ours["final tokens"], reference["final tokens"]))
    return Comparison(dtype, tuple(map(_over_images, differences.values())), tuple(cosines))


def _encoder(checkpoint: Checkpoint, dtype: mx.Dtype) -> VisionEncoder:
    """Our encoder with a checkpoint's weights, of a LiT model its image tower."""
    model = VisionEncoder(checkpoint.vision)
    steps, start = checkpoint.steps(), 0
    if checkpoint.kind == "lit":
        tower, head = OUR_TOWER
        start = len(tower)
        steps = [s for s in steps if s.ours.startswith(tower) and not s.ours.startswith(head)]
    weights = load_weights(only(checkpoint, steps), dtype)
    model.load_weights([(name[start:], array) for name, array in weights.items()], strict=True)
    return model


def _outputs(model: VisionEncoder, pixels: np.ndarray, dtype: mx.Dtype) -> Outputs:
    features = model(mx.array(pixels).astype(dtype), layers=range(model.config.num_blocks))
    named: dict[str, Any] = {f"block {i}": value for i, value in features.layers.items()}
    named["final tokens"] = features.tokens
    return {name: np.array(value.astype(mx.float32)) for name, value in named.items()}


def _over_images(each: list[Difference]) -> Difference:
    """One row for an output: the largest differences, the mean of the means."""
    return Difference(
        each[0].name,
        float(np.mean([d.size for d in each])),
        max(d.largest for d in each),
        float(np.mean([d.mean for d in each])),
        max(d.of_bar for d in each),
    )


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the mean-pooled embeddings of one image."""
    a, b = (tokens.astype(np.float64).mean(axis=(0, 1)) for tokens in (ours, theirs))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _changed(source: Checkpoint, written: Checkpoint) -> Iterator[str]:
    """Names of written tensors that are not the source's in the written dtype."""
    steps = {step.ours: step for step in source.steps()}
    for step in written.steps():
        ours = load_one(written, step, None)
        if not mx.array_equal(ours, load_one(source, steps[step.ours], ours.dtype)):
            yield step.ours


def _facts(source: Source, written: Checkpoint, images: list[np.ndarray]) -> dict[str, str]:
    """The circumstances, for the record; names only, no places on this machine's disk."""
    names = ", ".join(file["name"] for file in source.history["files"])
    direct = (
        "the source's own tensors"
        if weights_are_direct(source.checkpoint)
        else ("the source's tensors, renamed through the layout table")
    )
    covered = (
        "the vision encoder"
        if written.kind == "vision"
        else (
            "the image tower without its attention pool; not covered: pool, projections, text tower"
        )
    )
    reference = f"transformers {version('transformers')}, eager attention"
    if written.vision.family == "aimv1":
        reference = "the formulas of AIMv1"
    sizes = ", ".join(f"{each.shape[1]} x {each.shape[2]}" for each in images)
    return {
        "source": f"{names} ({source.checkpoint.layout} layout, {source.checkpoint.dtype})",
        "compared": covered,
        "pictures": f"{len(images)} seeded, preprocessed to (height x width) {sizes}",
        "reference": f"{reference}, torch {version('torch')}, float32, with {direct}",
        "ours": f"aim-mlx {aim_mlx.__version__}, mlx {version('mlx')}, on {device_name()}, "
        f"{platform.system()} {platform.machine()}",
    }
