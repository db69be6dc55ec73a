"""Any accepted checkpoint to our folder format, tensor by tensor, cast or quantised on the way.

What that costs is the cosine of embeddings before and after. For it each checkpoint runs block by
block and holds the weights of one block at a time, in float32, so that the largest model needs half
a gigabyte.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.backend import dtype_named, mx, nn
from aim_mlx.config import PreprocessConfig, VisionConfig
from aim_mlx.errors import UsageError
from aim_mlx.models.layers import Block, norm_of
from aim_mlx.models.vision import Preprocessor
from aim_mlx.weights.checkpoint import STORED, Checkpoint, open_checkpoint
from aim_mlx.weights.config_json import ModelConfig
from aim_mlx.weights.files import TOKENIZER_FILES
from aim_mlx.weights.load import iter_weights
from aim_mlx.weights.quantize import Quantization, quantized_names
from aim_mlx.weights.safetensors_file import open_regular
from aim_mlx.weights.save import check_folder, provenance, save_checkpoint
from aim_mlx.weights.sizes import IMAGE, expected_shapes
from aim_mlx.weights.strict_json import at, read_bytes

_NATIVE_PATCHES = 16  # a side, where a model has no size of its own


def similarity(before: Checkpoint, after: Checkpoint) -> list[float]:
    """The cosine of the two image vectors (mean of the final tokens) of each probe picture.

    Of a LiT model the image tower is compared. Raises UsageError for checkpoints of other sizes.
    """
    if before.vision != after.vision:
        raise UsageError("only two checkpoints of the same sizes can be compared")
    pixels = _pixels(before.vision, before.preprocess)
    a, b = (_vectors(checkpoint, pixels) for checkpoint in (before, after))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return [min(1.0, float(cosine)) for cosine in (a * b).sum(axis=1) / lengths]


def probe_pictures(size: int) -> np.ndarray:
    """Four seeded pictures, uint8 (4, size, size, 3): a gradient, shapes, clouds and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    gradient = np.stack([x, y, 1 - (x + y) / 2], axis=-1)
    shapes = np.ones((size, size, 3)) * [0.2, 0.3, 0.5]
    shapes[(x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.08] = [0.9, 0.6, 0.1]
    shapes[(abs(x - 0.75) < 0.15) & (abs(y - 0.3) < 0.2)] = [0.1, 0.7, 0.3]
    clouds = np.zeros((size, size, 3))
    for frequency in (1, 2, 3, 5, 8):
        phase = rng.uniform(0, 2 * np.pi, (2, 3))
        wave = np.sin(2 * np.pi * frequency * x[..., None] + phase[0])
        clouds += wave * np.cos(2 * np.pi * frequency * y[..., None] + phase[1]) / frequency
    clouds = (clouds - clouds.min()) / (clouds.max() - clouds.min())
    noise = rng.random((size, size, 3))
    return (np.stack([gradient, shapes, clouds, noise]) * 255).astype(np.uint8)


def _pixels(config: VisionConfig, preprocess: PreprocessConfig) -> mx.array:
    """The pictures at the model's own size, normalised: float32 (4, S, S, 3)."""
    pictures = probe_pictures(config.image_size or _NATIVE_PATCHES * config.patch_size)
    scaled = (pictures / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    return mx.array(scaled.astype(np.float32))


def _vectors(checkpoint: Checkpoint, pixels: mx.array) -> np.ndarray:
    """Pixels (B, S, S, 3) -> float64 (B, D), the mean of the final tokens."""
    x = pixels
    for stage in _stages(checkpoint):
        x = stage(x)
        mx.eval(x)
    return np.array(x.mean(axis=1)).astype(np.float64)


def _stages(checkpoint: Checkpoint) -> Iterator[nn.Module]:
    """The encoder in pieces, each with its weights; one is made when the last is done."""
    config, start = checkpoint.vision, IMAGE if checkpoint.kind == "lit" else ""
    yield _filled(_Patches(config), checkpoint, f"{start}preprocessor.")
    for i in range(config.num_blocks):
        yield _filled(Block(config), checkpoint, f"{start}trunk.blocks.{i}.")
    yield _filled(norm_of(config), checkpoint, f"{start}trunk.post_trunk_norm.")


class _Patches(Preprocessor):
    """The preprocessor with a grid of its own: pixels (B, S, S, 3) -> tokens (B, N, D)."""

    def __call__(self, pixels: mx.array) -> mx.array:  # type: ignore[override]
        side = pixels.shape[1] // self._config.patch_size
        return super().__call__(pixels, (side, side))


def _filled(module: nn.Module, checkpoint: Checkpoint, prefix: str) -> nn.Module:
    weights = iter_weights(checkpoint, mx.float32, prefix)
    module.load_weights([(name.removeprefix(prefix), array) for name, array in weights])
    return module


LARGEST_EXTRA = 32 * 2**20  # bytes of one of the tokenizer's files; CLIP's largest has 4 million


@dataclass(frozen=True)
class Conversion:
    """What was converted, `model` if its name is known.

    `cosines` compares image vectors before and after, None if left out.
    """

    source: str
    folder: str
    model: str | None
    layout: str
    kind: str
    dtype_before: str
    dtype: str
    quantization: dict[str, Any] | None
    tensors_quantized: int
    parameters: int
    bytes_before: int
    bytes: int
    cosines: tuple[float, ...] | None


def convert_checkpoint(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    config: ModelConfig | None = None,
    overwrite: bool = False,
    compare: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Writes a checkpoint of any layout as a folder of ours; memory holds a few tensors at a time.

    `dtype` None keeps each tensor's own, bit for bit; a quantised source is unpacked. `progress` is
    called with the tensors done and their number. Raises CheckpointError for an unsound source,
    UsageError for what cannot be done to it, OutputError where the folder cannot be written. Warns
    as `load` does.
    """
    before = open_checkpoint(source, config)
    before.warn()
    _check(before, Path(folder), dtype, quantization)
    check_folder(Path(folder), overwrite)
    history = {
        "source": str(before.path),
        "dtype": dtype or before.dtype,
        "quantization": None if quantization is None else asdict(quantization),
        "files": [
            {"name": file.path.name, "bytes": file.size, "sha256": sha256_of(file.path)}
            for file in before.files
        ],
    }
    rewrite(before, folder, history, dtype, quantization, overwrite, progress)
    after = open_checkpoint(folder)
    return Conversion(
        source=str(source),
        folder=str(folder),
        model=before.model,
        layout=before.layout,
        kind=before.kind,
        dtype_before=before.dtype,
        dtype=after.dtype,
        quantization=None if quantization is None else asdict(quantization),
        tensors_quantized=len(after.quantized),
        parameters=after.parameters,
        bytes_before=before.nbytes,
        bytes=after.nbytes,
        cosines=tuple(similarity(before, after)) if compare else None,
    )


def _check(
    before: Checkpoint, folder: Path, dtype: str | None, quantization: Quantization | None
) -> None:
    """Raises UsageError for a conversion that makes no sense."""
    dtype_named(dtype)
    if folder.exists() and any(
        file.path.resolve().parent == folder.resolve() for file in before.files
    ):
        raise UsageError(f"{at(folder)} is the source itself: choose another folder to write")
    if quantization is None:
        return
    if before.quantization is not None:
        raise UsageError(
            f"{at(before.path)} is quantised already: quantise the weights it was made from"
        )
    if not quantized_names(expected_shapes(before.config), quantization):
        raise UsageError(
            f"no weight of this model has rows of a multiple of {quantization.group_size} numbers: "
            "choose a smaller group size"
        )


def rewrite(
    checkpoint: Checkpoint,
    folder: str | os.PathLike[str],
    history: Mapping[str, Any],
    dtype: str | None = None,
    quantization: Quantization | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes an opened checkpoint as a folder of ours, a LiT model with its tokenizer's files.

    `history` is what the new folder says of its past; the checkpoint's own goes with it. Raises as
    `save_checkpoint` does.
    """
    target = None if dtype is None else dtype_named(dtype)
    total = len(expected_shapes(checkpoint.config))

    def weights() -> Iterator[tuple[str, mx.array]]:
        for done, pair in enumerate(iter_weights(checkpoint, target), 1):
            yield pair
            if progress is not None:
                progress(done, total)

    return save_checkpoint(
        folder,
        weights(),
        checkpoint.config,
        checkpoint.preprocess,
        provenance(
            layout=checkpoint.layout,
            trained=checkpoint.trained,
            **history,
            earlier=checkpoint.provenance or None,
        ),
        dtype=_stored_dtypes(checkpoint) if target is None else target,
        quantization=quantization,
        extra_files=_tokenizer_files(checkpoint.folder) if checkpoint.kind == "lit" else {},
        overwrite=overwrite,
    )


def _stored_dtypes(checkpoint: Checkpoint) -> dict[str, mx.Dtype]:
    """The stored dtype of each of our tensors; of a packed one that of its scales, or float32."""
    kinds = {s.ours: checkpoint.tensors[s.sources[-1]].dtype for s in checkpoint.steps()}
    return {name: STORED.get(kind, mx.float32) for name, kind in kinds.items()}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a whole file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a LiT model's tokenizer, as they are; raises CheckpointError for huge ones."""
    paths = [folder / name for name in TOKENIZER_FILES]
    return {p.name: read_bytes(p, LARGEST_EXTRA) for p in paths if os.path.lexists(p)}
