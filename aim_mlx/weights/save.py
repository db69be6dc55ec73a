"""Our folder format: model.safetensors under our names, and a config.json that says everything.

A LiT model's folder keeps its tokenizer's files too. All are written under temporary names, flushed
to the disk and renamed, config.json last: a folder with a config.json of ours is complete.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import CheckpointError, OutputError
from aim_mlx.files import TEMPORARY, Content, disk_errors, publish
from aim_mlx.weights.checkpoint import STORED, TRAINED_KEY
from aim_mlx.weights.config_json import FORMAT, ModelConfig, our_values
from aim_mlx.weights.files import OUR_FILE, TOKENIZER_FILES
from aim_mlx.weights.quantize import Quantization, Specs, pack, packed_specs, quantized_names
from aim_mlx.weights.safetensors_file import all_finite
from aim_mlx.weights.safetensors_writer import SafetensorsWriter
from aim_mlx.weights.sizes import check_shapes, expected_shapes
from aim_mlx.weights.strict_json import at, read_object, show

Weights = Mapping[str, mx.array] | Iterable[tuple[str, mx.array]]

_ADVICE = "make room or choose another place"
WORK_FOLDER = "training"  # beside the model: how it came about, and what training goes on from


def provenance(
    source: str | None = None, layout: str | None = None, trained: bool = True, **more: Any
) -> dict[str, Any]:
    """Where weights came from and what wrote them, for `save_checkpoint`; JSON values only."""
    history = {"source": source, "layout": layout, "trained": trained, **more}
    return {"aim_mlx": _version("aim-mlx"), "mlx": _version("mlx"), **history}


def save_checkpoint(
    folder: str | os.PathLike[str],
    weights: Weights,
    config: ModelConfig,
    preprocess: PreprocessConfig,
    provenance: Mapping[str, Any] | None = None,
    *,
    dtype: mx.Dtype | Mapping[str, mx.Dtype] | None = None,
    quantization: Quantization | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a folder that `open_checkpoint` reads; returns it.

    `weights` are in our names: a mapping, or pairs that are written as they come, so that they need
    not fit in memory together. `dtype` is one for all or one for each name; where it is None a
    mapping keeps its arrays' dtypes, and pairs are float32. `quantization` packs the products of
    the trunks as they are written. `extra_files` are of TOKENIZER_FILES. An existing folder must be
    empty but for a WORK_FOLDER, or hold this format and `overwrite` be given. Raises OutputError
    where the folder cannot be written, leaving nothing half done, and CheckpointError for weights
    that are not finite or not those of `config`.
    """
    folder = Path(folder)
    values = our_values(config, preprocess, provenance or {}, quantization)
    config_text = json.dumps(values, indent=1, allow_nan=False).encode() + b"\n"
    pairs: Iterable[tuple[str, mx.array]]
    shapes = expected_shapes(config)
    kept: Mapping[str, mx.Dtype] = dict.fromkeys(shapes, mx.float32)
    if isinstance(weights, Mapping):
        arrays = dict(cast(Mapping[str, mx.array], weights))
        pairs = arrays.items()
        check_shapes({name: tuple(array.shape) for name, array in arrays.items()}, shapes)
        kept = {name: array.dtype for name, array in arrays.items()}
    else:
        pairs = weights
    if dtype is not None:
        kept = dtype if isinstance(dtype, Mapping) else dict.fromkeys(shapes, dtype)
    specs = {name: (_stored_name(kept[name]), shape) for name, shape in shapes.items()}
    trained = "false" if values["provenance"].get("trained") is False else "true"
    metadata = {"format": "mlx", TRAINED_KEY: trained}

    def write_weights(file: BinaryIO) -> None:
        _write_tensors(file, pairs, specs, metadata, quantization)

    contents = {OUR_FILE: write_weights, **(extra_files or {}), "config.json": config_text}
    _publish(folder, contents, overwrite)
    return folder


def _stored_name(dtype: mx.Dtype) -> str:
    for name, known in STORED.items():
        if dtype == known:
            return name
    raise CheckpointError(f"weights are saved as float32, float16 or bfloat16, got {dtype}")


def _write_tensors(
    file: BinaryIO,
    items: Iterable[tuple[str, mx.array]],
    specs: Specs,
    metadata: Mapping[str, str],
    how: Quantization | None,
) -> None:
    """Writes each tensor as it comes, packed if it is to be; only one is held at a time."""
    shapes = {name: shape for name, (_, shape) in specs.items()}
    packed = set(quantized_names(shapes, how))
    stored = dict(specs)
    for name in packed:
        if how is not None:
            stored |= packed_specs(name, shapes[name], how, specs[name][0])
    writer = SafetensorsWriter(file, stored, metadata)
    written: dict[str, tuple[int, ...]] = {}
    for name, array in items:
        if name in written:
            raise CheckpointError(f"tensor {show(name)} came twice: expected once")
        written[name] = tuple(array.shape)
        if shapes.get(name) != written[name]:
            check_shapes({name: written[name]}, {name: shapes[name]} if name in shapes else {})
        parts = {name: array} if how is None or name not in packed else pack(name, array, how)
        for part, values in parts.items():
            writer.write(part, _bits(part, values, stored[part][0]))
    check_shapes(written, shapes)
    writer.finish()


def _bits(name: str, array: mx.array, stored: str) -> np.ndarray:
    """The array in its stored form, bfloat16 as uint16; CheckpointError where it is not finite."""
    if stored not in STORED:  # packed
        return np.asarray(array)
    array = array.astype(STORED[stored])
    bits = np.asarray(array.view(mx.uint16) if stored == "BF16" else array)
    if not all_finite(bits, stored):
        raise CheckpointError(
            f"tensor {show(name)} is not finite as {stored}: expected finite weights"
        )
    return bits


def _publish(folder: Path, contents: Mapping[str, Content], overwrite: bool) -> None:
    """Writes named files into a folder, in order; on any failure it is left as it was."""
    with disk_errors("write", folder, _ADVICE):
        created = _prepare(folder, overwrite)
        try:
            publish({folder / name: content for name, content in contents.items()})
            for name in set(TOKENIZER_FILES) - set(contents):  # of the model that is overwritten
                (folder / name).unlink(missing_ok=True)
        except BaseException:
            if created:
                with suppress(OSError):
                    folder.rmdir()
            raise


def check_folder(folder: Path, overwrite: bool) -> bool:
    """Whether a folder exists; OutputError if it does and may not be written into."""
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise OutputError(f"{at(folder)} is not a folder: choose another name")
    with disk_errors("write", folder, _ADVICE):
        names = {entry.name for entry in folder.iterdir() if not entry.name.endswith(TEMPORARY)}
    names -= {WORK_FOLDER}
    if names and not overwrite:
        raise OutputError(
            f"{at(folder)} is not empty: choose another folder, or say to overwrite it"
        )
    if names and not (_is_ours(folder) or _is_half_written(folder, names)):
        raise OutputError(
            f"{at(folder)} holds something else than an aim-mlx model: choose another"
        )
    return True


def _prepare(folder: Path, overwrite: bool) -> bool:
    """Makes the folder or finds that it may be written into; returns whether it was made."""
    if not check_folder(folder, overwrite):
        folder.mkdir()
        return True
    for entry in folder.glob(f"*{TEMPORARY}"):  # of a run that was killed
        entry.unlink()
    return False


def _is_ours(folder: Path) -> bool:
    try:
        return read_object(folder / "config.json").get("format") == FORMAT
    except CheckpointError:
        return False


def _is_half_written(folder: Path, names: set[str]) -> bool:
    """Whether it is a training's folder, with its page or killed while its model was written."""
    trained = (folder / WORK_FOLDER / "run.json").is_file()
    return trained and names <= {OUR_FILE, "report.html", *TOKENIZER_FILES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
