"""A model as a file for apps: written aside, run and compared with MLX, then renamed."""

import functools
import importlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.files import disk_errors, flush, remove_leftovers, sync_folder, temporary
from aim_mlx.graphs.graph import HEADS, Graph, Head
from aim_mlx.loading import load
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.training.report import Report, Silent
from aim_mlx.weights.strict_json import at
from aim_mlx.words.zeroshot import ZeroShotHead

_SLOW = "off a Mac Core AI computes float16 slowly, an hour for AIMv2-large (or --no-compare)"
_ADVICE = "make room or choose another place"
_FURTHEST, _LOWEST_COSINE = 1e-4, 0.9999  # what float32 and float16 may differ from MLX
_LOWEST_OF_8_BITS = 0.999


@dataclass(frozen=True)
class _Format:
    """How a suffix is written: by which module, needing which package, which an extra installs.

    A folder of this kind has a file `marker` in it; a format without one is a file.
    """

    module: str
    package: str = "mlx"
    extra: str = ""
    marker: str = ""
    slow_in_float16: bool = False  # off a Mac


_FORMATS = {
    ".aimodel": _Format("aim_mlx.graphs.coreai", "coreai", "coreai", "main.mlirb", True),
    ".mlpackage": _Format("aim_mlx.graphs.coreml", "coremltools", "coreml", "Manifest.json"),
    ".mlxfn": _Format("aim_mlx.graphs.mlxfn"),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how its results differ from MLX's.

    Where it could not be run (`ran` is false) that is None, or with 8-bit weights how MLX's results
    with those differ.
    """

    path: str
    head: str
    dtype: str
    bits: int
    functions: dict[str, int]
    bytes: int
    seconds: float
    ran: bool
    difference: float | None
    cosine: float | None
    note: str
    exit_code: int = 0


def export_model(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    head: str = "embedding",
    dtype: str = "float16",
    batches: tuple[int, ...] = (1,),
    size: tuple[int, int] | None = None,
    bits: int = 16,
    image_input: bool = False,
    compare: bool = True,
    revision: str | None = None,
    offline: bool = False,
    overwrite: bool = False,
    progress: type[Any] | None = None,
    report: Report | None = None,
) -> Exported:
    """Writes a model as .aimodel, .mlpackage or .mlxfn, for apps without Python.

    `model`, `revision`, `offline` and `progress` are as for `load`; `head` is "embedding",
    "tokens", "text" or the folder of a probe or of saved labels. `bits` 8 packs the weights of a
    .mlpackage, and `image_input` gives it an input of Core ML's type of images. Without `compare`
    nothing is run. The rest is as for Graph. Raises UsageError for what the model or the format
    cannot do, CheckpointError for a head of another model, OutputError where the file cannot be
    written or differs from MLX.
    """
    start, target = time.monotonic(), Path(target)
    form = _format_of(target)
    _check_target(target, form, overwrite)
    encoder = load(model, dtype="float32", revision=revision, offline=offline, progress=progress)
    graph = Graph(encoder, _head(head, encoder), dtype, batches, size)
    writer = importlib.import_module(form.module)
    if target.suffix == ".mlpackage":
        writer.check(graph, bits, image_input)
        write = functools.partial(writer.write, bits=bits, image_input=image_input)
    elif bits != 16 or image_input:
        raise UsageError("8-bit weights and an image input are for .mlpackage: leave them out")
    else:
        write = writer.write
    inputs = {name: graph.sample(batch) for name, batch in graph.functions.items() if compare}
    expected = {name: graph.expected(x) for name, x in inputs.items()}
    graph.release()
    with _aside(target) as path:
        try:
            write(graph, path)
            if compare and form.slow_in_float16 and dtype == "float16" and sys.platform != "darwin":
                (report or Silent()).noted(_SLOW)
            outputs = writer.run(graph, path, inputs) if compare else {}
        except RuntimeError as error:  # as these libraries fail, on a full disk too
            reason = str(error.__cause__ or error)[:300]
            raise OutputError(
                f"cannot write {at(target)} and read it back: {reason}: {_ADVICE}"
            ) from error
        ran = bool(outputs)
        if bits == 8 and compare and not ran:
            outputs = writer.run_packed(graph, inputs)
        difference, cosine = _compared(outputs, expected, dtype, bits)
        _publish(path, target)
    return Exported(
        path=str(target),
        head=head,
        dtype=dtype,
        bits=bits,
        functions=graph.functions,
        bytes=sum(file.stat().st_size for file in _files(target)),
        seconds=time.monotonic() - start,
        ran=ran,
        difference=difference,
        cosine=cosine,
        note=writer.NOTE,
    )


def _format_of(target: Path) -> _Format:
    """The format of a file's suffix, which can be written here."""
    form = _FORMATS.get(target.suffix)
    if form is None:
        raise UsageError(f"expected a name with {', '.join(_FORMATS)}, got {target.name!r}")
    if importlib.util.find_spec(form.package) is None:
        raise UsageError(
            f"{target.suffix} needs the package {form.package!r}, which is not installed: "
            f"pip install 'aim-mlx[{form.extra}]'"
        )
    return form


def _check_target(target: Path, form: _Format, overwrite: bool) -> None:
    """Raises OutputError where the target is there and must stay."""
    with disk_errors("write", target, _ADVICE):
        if not target.parent.is_dir():
            raise OutputError(f"{at(target.parent)} is not a folder: make it, or choose another")
        if not os.path.lexists(target):
            return
        same = (target / form.marker).is_file() if form.marker else target.is_file()
    if not overwrite:
        raise OutputError(f"{at(target)} exists: choose another name, or --overwrite")
    if target.is_symlink() or not same:
        raise OutputError(f"{at(target)} is no {target.suffix} of a model: choose another name")


def _head(named: str, encoder: Encoder) -> Head:
    """The head of this name, or in this folder."""
    if named in HEADS:
        return named
    folder = Path(named)
    if (folder / "probe.json").is_file():
        probe = AttentiveProbe.load(folder, encoder)
        if "adapter" in probe.encoder.identity:
            raise UsageError(
                f"the encoder of {at(folder)} was fine-tuned: write both as a model with aim-mlx "
                "fuse, and give that"
            )
        return probe
    if (folder / "labels.json").is_file():
        return ZeroShotHead.load(folder)
    raise UsageError(
        f"head must be {', '.join(HEADS)}, or the folder of a probe or of saved labels, got "
        f"{named!r:.200}"
    )


def _compared(
    outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], dtype: str, bits: int
) -> tuple[float | None, float | None]:
    """The largest difference, and the lowest cosine of two rows, of all functions.

    The difference is a part of the largest number, where that is over one. Raises OutputError for
    results that are too far apart.
    """
    if not outputs:
        return None, None
    differences, cosines = [], []
    for name, wanted in expected.items():
        got = np.asarray(outputs[name], np.float64)
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise OutputError(
                f"what was written gives {got.shape} with numbers that are not finite, or another "
                f"shape than {wanted.shape}: nothing is kept; try --dtype float32"
            )
        differences.append(abs(got - wanted).max() / max(1.0, abs(wanted).max()))
        lengths = np.linalg.norm(got, axis=-1) * np.linalg.norm(wanted, axis=-1)
        cosines.append(((got * wanted).sum(axis=-1) / np.maximum(lengths, 1e-30)).min())
    furthest, lowest = float(max(differences)), min(1.0, float(min(cosines)))
    bar = _LOWEST_OF_8_BITS if bits == 8 else _LOWEST_COSINE
    if (furthest > _FURTHEST) if dtype == "float32" else (lowest < bar):
        raise OutputError(
            f"what was written differs from MLX by {furthest:.1e}, with a cosine of {lowest:.6f}: "
            f"expected at most {_FURTHEST:.0e} in float32, at least {_LOWEST_COSINE} in float16 "
            f"and {_LOWEST_OF_8_BITS} with 8-bit weights; nothing is kept, try --dtype float32"
        )
    return furthest, lowest


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A path of the target's name in a hidden folder beside it, which is gone afterwards."""
    folder = temporary(target)
    with disk_errors("write", target, _ADVICE):
        remove_leftovers(target)
        shutil.rmtree(folder, ignore_errors=True)  # of a killed process with our number
        folder.mkdir()
    try:
        with disk_errors("write", target, _ADVICE):
            yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(path: Path, target: Path) -> None:
    """Puts what is whole in the place of the target, which may be there."""
    for file in _files(path):
        with open(file, "rb") as written:
            flush(written)
    before = path.with_name("before")
    if os.path.lexists(target):
        os.replace(target, before)
    try:
        os.replace(path, target)
    except BaseException:
        if os.path.lexists(before):
            os.replace(before, target)
        raise
    sync_folder(target.parent)


def _files(path: Path) -> list[Path]:
    return [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
