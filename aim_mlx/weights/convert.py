"""Any accepted checkpoint to our folder format, tensor by tensor, cast or quantised on the way."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aim_mlx.backend import DTYPES, mx
from aim_mlx.errors import UsageError
from aim_mlx.weights.checkpoint import DTYPE_NAMES, Checkpoint, ModelConfig, open_checkpoint
from aim_mlx.weights.compare import similarity
from aim_mlx.weights.load import iter_weights
from aim_mlx.weights.quantize import Quantization, quantized_names
from aim_mlx.weights.safetensors_file import CheckedFile, open_regular
from aim_mlx.weights.save import EXTRA_FILES, check_folder, provenance, save_checkpoint
from aim_mlx.weights.sizes import expected_shapes
from aim_mlx.weights.strict_json import at, read_bytes

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
    save_checkpoint(
        folder,
        _counted(before, dtype, progress),
        before.config,
        before.preprocess,
        _history(before, dtype, quantization),
        dtype=_dtypes(before) if dtype is None else DTYPES[dtype],
        quantization=quantization,
        extra_files=_tokenizer_files(before),
        overwrite=overwrite,
    )
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
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r:.80}")
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


def _counted(
    before: Checkpoint, dtype: str | None, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, mx.array]]:
    """The tensors one at a time; a cast that overflows is found here, with what to do."""
    total = len(expected_shapes(before.config))
    weights = iter_weights(before, None if dtype is None else DTYPES[dtype])
    for done, pair in enumerate(weights, 1):
        yield pair
        if progress is not None:
            progress(done, total)


def _dtypes(before: Checkpoint) -> dict[str, mx.Dtype]:
    """The stored dtype of each of our tensors; of a packed one that of its scales, or float32."""
    stored = {}
    for step in before.steps():
        kind = before.tensors[step.sources[-1]].dtype
        stored[step.ours] = DTYPES[DTYPE_NAMES.get(kind, "float32")]
    return stored


def _history(
    before: Checkpoint, dtype: str | None, quantization: Quantization | None
) -> dict[str, Any]:
    """What the new folder says of its past; the source's own history goes with it."""
    return provenance(
        source=str(before.path.resolve()),
        layout=before.layout,
        trained=before.trained,
        dtype=dtype or before.dtype,
        quantization=None if quantization is None else asdict(quantization),
        files=[
            {"name": file.path.name, "bytes": file.size, "sha256": _digest(file)}
            for file in before.files
        ],
        earlier=before.provenance or None,
    )


def _digest(file: CheckedFile) -> str:
    """The SHA-256 of a whole file, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(2**20))
    with open_regular(file.path) as stream:
        while count := stream.readinto(block):  # type: ignore[attr-defined]
            digest.update(block[:count])
    return digest.hexdigest()


def _tokenizer_files(before: Checkpoint) -> dict[str, bytes]:
    """The files of a LiT model's tokenizer, as they are; raises CheckpointError for huge ones."""
    if before.kind != "lit":
        return {}
    paths = [before.folder / name for name in EXTRA_FILES]
    return {p.name: read_bytes(p, LARGEST_EXTRA) for p in paths if os.path.lexists(p)}
