"""Our folder format: model.safetensors under our names, and a config.json that says everything.

Both are written under temporary names, flushed to the disk and renamed, the weights first: a folder
with a config.json of ours is complete.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.config import PreprocessConfig, VisionConfig, to_dict
from aim_mlx.errors import CheckpointError, OutputError
from aim_mlx.weights.files import OUR_FILE
from aim_mlx.weights.finite import all_finite
from aim_mlx.weights.hub_config import FORMAT, FORMAT_VERSION
from aim_mlx.weights.opening import TRAINED_KEY
from aim_mlx.weights.sizes import check_shapes, expected_shapes
from aim_mlx.weights.strict_json import at, read_object, show
from aim_mlx.weights.writer import SafetensorsWriter

Weights = Mapping[str, mx.array] | Iterable[tuple[str, mx.array]]

_STORED = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}
_TEMPORARY = ".aim-mlx.tmp"  # what the names of unfinished files end with


def provenance(
    source: str | None = None, layout: str | None = None, trained: bool = True, **more: Any
) -> dict[str, Any]:
    """Where weights came from and what wrote them, for `save_checkpoint`; JSON values only."""
    facts = {"source": source, "layout": layout, "trained": trained, **more}
    return {"aim_mlx": _version("aim-mlx"), "mlx": _version("mlx"), **facts}


def save_checkpoint(
    folder: str | os.PathLike[str],
    weights: Weights,
    config: VisionConfig,
    preprocess: PreprocessConfig,
    provenance: Mapping[str, Any] | None = None,
    *,
    dtype: mx.Dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a folder that `open_checkpoint` reads; returns it.

    `weights` are in our names: a mapping, or pairs that are written as they come, so that they need
    not fit in memory together (`dtype` then is float32 unless given). A mapping keeps its arrays'
    dtypes where `dtype` is None. An existing folder must be empty, or hold this format and
    `overwrite` be given. Raises OutputError where the folder cannot be written, leaving nothing
    half done, and CheckpointError for weights that are not finite or not those of `config`.
    """
    folder = Path(folder)
    facts = dict(provenance or {})
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "vision",
        "encoder": to_dict(config),
        "preprocessing": to_dict(preprocess),
        "provenance": facts,
    }
    config_text = json.dumps(values, indent=1, allow_nan=False).encode() + b"\n"
    pairs: Iterable[tuple[str, mx.array]]
    if isinstance(weights, Mapping):
        pairs = cast(Mapping[str, mx.array], weights).items()
        specs = _specs(dict(pairs), expected_shapes(config), dtype)
    else:
        pairs, stored = weights, _stored_name(dtype or mx.float32)
        specs = {name: (stored, shape) for name, shape in expected_shapes(config).items()}
    trained = "false" if facts.get("trained") is False else "true"
    metadata = {"format": "mlx", TRAINED_KEY: trained}

    def write_weights(file: BinaryIO) -> None:
        writer = SafetensorsWriter(file, specs, metadata)
        _write_tensors(writer, pairs, specs)

    def write_config(file: BinaryIO) -> None:
        file.write(config_text)

    _publish(folder, {OUR_FILE: write_weights, "config.json": write_config}, overwrite)
    return folder


def _specs(
    weights: dict[str, mx.array], expected: dict[str, tuple[int, ...]], dtype: mx.Dtype | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each tensor to be written; CheckpointError for other tensors."""
    check_shapes({name: tuple(array.shape) for name, array in weights.items()}, expected)
    return {
        name: (_stored_name(dtype or weights[name].dtype), shape)
        for name, shape in expected.items()
    }


def _stored_name(dtype: mx.Dtype) -> str:
    for known, name in _STORED.items():
        if dtype == known:
            return name
    raise CheckpointError(f"weights are saved as float32, float16 or bfloat16, got {dtype}")


def _write_tensors(
    writer: SafetensorsWriter,
    items: Iterable[tuple[str, mx.array]],
    specs: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    """Writes each tensor as it comes; only one is held at a time."""
    written: dict[str, tuple[int, ...]] = {}
    for name, array in items:
        if name in written:
            raise CheckpointError(f"tensor {show(name)} came twice: expected once")
        written[name] = tuple(array.shape)
        if name not in specs or specs[name][1] != written[name]:
            check_shapes({name: written[name]}, {name: specs[name][1]} if name in specs else {})
        stored = specs[name][0]
        bits = _bits(array, stored)
        if not all_finite(bits, stored):
            raise CheckpointError(
                f"tensor {show(name)} is not finite as {stored}: expected finite weights"
            )
        writer.write(name, bits)
    check_shapes(written, {name: shape for name, (_, shape) in specs.items()})
    writer.finish()


def _bits(array: mx.array, stored: str) -> np.ndarray:
    """The array as numpy in a stored dtype, bfloat16 as uint16."""
    for dtype, name in _STORED.items():
        if name == stored:
            array = array.astype(dtype)
    return np.asarray(array.view(mx.uint16) if stored == "BF16" else array)


def _publish(folder: Path, contents: Mapping[str, Any], overwrite: bool) -> None:
    """Writes named files into a folder, in order; on any failure it is left as it was."""
    temporary = {name: folder / f".{name}.{os.getpid()}{_TEMPORARY}" for name in contents}
    with _as_output_error(folder):
        created = _prepare(folder, overwrite)
        new = [folder / name for name in contents if not os.path.lexists(folder / name)]
        try:
            for name, write in contents.items():
                with open(temporary[name], "xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
            for name, path in temporary.items():
                os.replace(path, folder / name)
            _sync_folder(folder)
        except BaseException:
            with suppress(OSError):
                for path in [*temporary.values(), *new]:
                    path.unlink(missing_ok=True)
                if created:
                    folder.rmdir()
            raise


@contextmanager
def _as_output_error(folder: Path) -> Iterator[None]:
    """A failing disk becomes one line; errors of the weights pass as they are."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{at(folder)} cannot be written: {error.strerror or error}; "
            "make room or choose another place"
        ) from error


def _prepare(folder: Path, overwrite: bool) -> bool:
    """Makes the folder or finds that it may be written into; returns whether it was made."""
    if not os.path.lexists(folder):
        folder.mkdir()
        return True
    if not folder.is_dir():
        raise OutputError(f"{at(folder)} is not a folder: choose another name")
    names = {entry.name for entry in folder.iterdir() if not entry.name.endswith(_TEMPORARY)}
    if names and not overwrite:
        raise OutputError(
            f"{at(folder)} is not empty: choose another folder, or say to overwrite it"
        )
    if names and not _is_ours(folder):
        raise OutputError(
            f"{at(folder)} holds something else than an aim-mlx model: choose another"
        )
    for entry in folder.glob(f"*{_TEMPORARY}"):  # of a run that was killed
        entry.unlink()
    return False


def _is_ours(folder: Path) -> bool:
    try:
        return read_object(folder / "config.json").get("format") == FORMAT
    except CheckpointError:
        return False


def _sync_folder(folder: Path) -> None:
    """Makes the renames durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
