"""A checkpoint on disk: opened with every check before a tensor is read, then loaded."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from aim_mlx.backend import DTYPES
from aim_mlx.config import HEAD_DIM, LiTConfig, PreprocessConfig, VisionConfig
from aim_mlx.errors import (
    UNTRAINED,
    AssumedHeadsWarning,
    CheckpointError,
    UntrainedModelWarning,
)
from aim_mlx.models.visual_tokens import VisualTokensConfig
from aim_mlx.registry import MODELS
from aim_mlx.weights.config_json import ModelConfig, Stated, read_config
from aim_mlx.weights.files import WeightFiles, weight_files
from aim_mlx.weights.layouts import AIMV1_ONLY, HEAD, detect_layout, layout_named
from aim_mlx.weights.preprocess_json import read_preprocessing
from aim_mlx.weights.quantize import Quantization, packed_names, packed_specs, quantized_names
from aim_mlx.weights.rules import KEEP, Layout, Rule, plan, shape_in_ours
from aim_mlx.weights.safetensors_file import CheckedFile, TensorInfo
from aim_mlx.weights.sizes import check_shapes, config_from_tensors, expected_shapes
from aim_mlx.weights.strict_json import at, show
from aim_mlx.weights.towers import TOWERS, Tower, find_tower, groups_beside
from aim_mlx.weights.visual_tokens import visual_config, visual_layout

DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
STORED = {kind: DTYPES[name] for kind, name in DTYPE_NAMES.items()}
TRAINED_KEY = "aim_mlx_trained"

_PACKED = {"U32", "U8"}
_SNAPSHOT = re.compile(r"/models--([\w.-]{1,200})/snapshots/", re.ASCII)  # in the Hub's cache


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files, names, shapes and sizes were all found sound and in agreement.

    `kind` is "vision" or "lit", and `config` of that kind. `dtype` is the stored one, or "mixed";
    `parameters` counts them unpacked. `trained` is False only for weights that were made untrained,
    as for tests. `heads_assumed` says that HEAD_DIM gave the heads of a model of unknown sizes.
    Of a multimodal model only its `tower` counts, of AIMv1 with its classifier only the encoder;
    `beside` counts the other tensors by their names.
    """

    path: Path
    layout: str
    kind: str
    config: ModelConfig
    preprocess: PreprocessConfig
    files: tuple[CheckedFile, ...]
    dtype: str
    parameters: int
    quantization: Quantization | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    trained: bool = True
    heads_assumed: bool = False
    tower: Tower | None = None
    visual_tokens: VisualTokensConfig | None = None
    beside: Mapping[str, int] = field(default_factory=dict)

    def remarks(self) -> list[UserWarning]:
        """What whoever uses the weights must know of them."""
        remarks: list[UserWarning] = []
        if self.trained is False:
            remarks.append(UntrainedModelWarning(UNTRAINED))
        if self.heads_assumed:
            remarks.append(
                AssumedHeadsWarning(
                    f"no config.json states the heads of {at(self.path)}: assumed {HEAD_DIM} "
                    "channels each, as in the published models. With another width the vectors are "
                    "wrong: add the config.json that it was published with, or give config="
                )
            )
        return remarks

    def warn(self, stacklevel: int = 2) -> None:
        """Warns of all that `remarks` has."""
        for remark in self.remarks():
            warnings.warn(remark, stacklevel=stacklevel + 1)

    @property
    def model(self) -> str | None:
        """The published model or the repo that it is a copy of, where a path on its way says so."""
        places, history = [str(self.path.absolute())], self.provenance
        while isinstance(history, dict) and history:
            places.append(str(history.get("source")))
            history = history.get("earlier")
        snapshot = next((m for m in map(_SNAPSHOT.search, places) if m), None)
        if snapshot is None:
            return None
        repo = snapshot[1].replace("--", "/", 1)
        return next((spec.name for spec in MODELS.values() if spec.repo == repo), repo)

    @property
    def vision(self) -> VisionConfig:
        """The sizes of the vision encoder, which in a LiT model is the image tower."""
        return _vision_of(self.config)

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.files[0].path.parent

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The model's tensors under the names they have in the files."""
        return _tensors(self.files, self.tower)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def quantized(self) -> list[str]:
        """The names, ours, of the weights that are stored packed."""
        return quantized_names(expected_shapes(self.config), self.quantization)

    def steps(self) -> list[Rule]:
        """How each of our tensors is made from those in the files, in the order of the files.

        The sources of a quantised weight are the tensors that hold it.
        """
        if self.quantization is None:
            layout = layout_named(self.layout, self.kind, self.vision.family)
            return plan(layout, self.tensors)
        parts = {name: packed_names(name, self.quantization) for name in self.quantized}
        rest = {part for names in parts.values() for part in names[1:]}
        return [Rule(n, parts.get(n, (n,)), KEEP) for n in self.tensors if n not in rest]


def open_checkpoint(
    path: str | os.PathLike[str], config: ModelConfig | None = None, visual_tokens: bool = False
) -> Checkpoint:
    """Checks a folder or a single .safetensors file; no tensor is read.

    A single file uses the JSON files beside it. `config` takes the place of config.json, which then
    is not read. `visual_tokens` opens Ovis2's head and embedding table too. Raises CheckpointError,
    and UsageError for `visual_tokens` of another model.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if config is not None:
        stated = Stated.by_argument(config)
    elif os.path.lexists(folder / "config.json"):
        stated = read_config(folder / "config.json")
    else:
        stated = Stated("")
    if not os.path.lexists(path):
        raise CheckpointError(f"{at(path)} does not exist: expected a folder or a file")
    ours = stated.config is not None
    if path.is_dir():
        found = weight_files(folder, ours, visual_tokens)
    else:
        found = WeightFiles.single(path)
    tower = None if ours else _find_tower(found, stated)
    files, beside = found.files, {}
    if tower is not None:
        beside = groups_beside(tower, found.names)
    elif not ours:
        files, beside = _without_head(files)
    tensors = _tensors(files, tower)
    if stated.config is not None:
        sizes = stated.config
        layout = layout_named("ml-aim-mlx", stated.kind or "", _vision_of(sizes).family)
        _check_ours(stated, sizes, tensors)
    else:
        _check_dtypes(tensors)
        layout = detect_layout(tensors) if tower is None else layout_named(tower.layout)
        sizes = _sizes(layout, tensors, stated)
    return Checkpoint(
        path=path,
        layout=layout.name,
        kind=layout.kind,
        config=sizes,
        preprocess=_preprocess(folder, stated, sizes, layout, tower),
        files=files,
        dtype=_stored_dtype(tensors),
        parameters=sum(prod(shape) for shape in expected_shapes(sizes).values()),
        quantization=stated.quantization,
        provenance=stated.provenance,
        trained=_is_trained(stated.provenance, files),
        heads_assumed=not ours and _heads_are_silent(stated, sizes),
        tower=tower,
        visual_tokens=_visual_tokens(files, tower, sizes, stated) if visual_tokens else None,
        beside=beside,
    )


def _visual_tokens(
    files: Iterable[CheckedFile], tower: Tower | None, sizes: ModelConfig, stated: Stated
) -> VisualTokensConfig:
    """The sizes of Ovis2's head and table, whose tensors fit them."""
    layout = visual_layout(tower)
    names = {name for rule in layout.rules for name in rule.sources}
    tensors = {n: info for n, info in _tensors(files, None).items() if n in names}
    _check_dtypes(tensors)
    vision = sizes.vision if isinstance(sizes, LiTConfig) else sizes
    return visual_config(layout, tensors, vision.embed_dim, stated.visual_tokens)


def _find_tower(found: WeightFiles, stated: Stated) -> Tower | None:
    """The tower of a multimodal model; CheckpointError where one is stated and none is there."""
    tower = find_tower(found.names)
    if tower is None and stated.multimodal:
        places = ", ".join(tower.prefix for tower in TOWERS)
        raise CheckpointError(
            f"{stated.place} states a multimodal model, but none of its {len(found.names)} tensors "
            f"is one of an AIMv2 tower: expected names that begin with one of {places}"
        )
    return tower


def _tensors(files: Iterable[CheckedFile], tower: Tower | None) -> dict[str, TensorInfo]:
    """All tensors of these files, or only those of a tower."""
    return {
        name: info
        for file in files
        for name, info in file.tensors.items()
        if tower is None or tower.holds(name)
    }


def _without_head(
    files: tuple[CheckedFile, ...],
) -> tuple[tuple[CheckedFile, ...], dict[str, int]]:
    """The files of AIMv1 without the head that may be saved with it, and its number of tensors."""
    names = {name for file in files for name in file.tensors}
    head = {name for name in names if HEAD.rule_for(name) is not None}
    if AIMV1_ONLY not in names or not head:
        return files, {}
    parts = [{n: info for n, info in file.tensors.items() if n not in head} for file in files]
    kept = (replace(file, tensors=part) for file, part in zip(files, parts, strict=True))
    return tuple(kept), {"head": len(head)}


def _vision_of(config: ModelConfig) -> VisionConfig:
    return config.vision if isinstance(config, LiTConfig) else config


def _heads_are_silent(stated: Stated, sizes: ModelConfig) -> bool:
    """Whether nothing but a published model's sizes could say how many heads there are."""
    if any(spec.config == sizes for spec in MODELS.values()):
        return False
    towers = (stated.vision, stated.text) if isinstance(sizes, LiTConfig) else (stated.vision,)
    return any("num_heads" not in tower for tower in towers)


def _check_dtypes(tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if info.dtype not in DTYPE_NAMES:
            hint = "; quantised weights need the config.json they were written with"
            raise CheckpointError(
                f"tensor {show(name)} has dtype {info.dtype}: expected "
                f"{', '.join(DTYPE_NAMES)} for weights{hint if info.dtype in _PACKED else ''}"
            )


def _check_ours(stated: Stated, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Our own format states every size: each tensor, packed or not, must be exactly as stated."""
    how, shapes = stated.quantization, expected_shapes(config)
    packed: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in quantized_names(shapes, how):
        packed |= packed_specs(name, shapes[name], how, "")  # pyright: ignore[reportArgumentType]
    try:
        check_shapes(
            {name: info.shape for name, info in tensors.items()},
            shapes | {name: shape for name, (_, shape) in packed.items()},
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error} (the sizes are those of {stated.place})") from error
    integers = {name: dtype for name, (dtype, _) in packed.items() if dtype}
    _check_dtypes({name: info for name, info in tensors.items() if name not in integers})
    for name, dtype in integers.items():
        if tensors[name].dtype != dtype:
            raise CheckpointError(
                f"tensor {show(name)} has dtype {tensors[name].dtype}: expected {dtype} for "
                f"weights quantised as {stated.place} states"
            )


def _sizes(layout: Layout, tensors: Mapping[str, TensorInfo], stated: Stated) -> ModelConfig:
    """The model's sizes: every tensor is as they demand, and nothing stated contradicts them."""
    stated.check_kind(layout.kind)
    shapes = {
        step.ours: shape_in_ours(step, [tensors[name].shape for name in step.sources])
        for step in plan(layout, tensors)
    }

    def names(ours: str) -> str:
        return ", ".join(map(show, layout.source_names(ours))) or show(ours)

    config = config_from_tensors(shapes, stated, layout, names)
    check_shapes(shapes, expected_shapes(config), names)
    stated.check(config)
    return config


def _preprocess(
    folder: Path, stated: Stated, config: ModelConfig, layout: Layout, tower: Tower | None
) -> PreprocessConfig:
    """Our own config.json, else the image processor's, else timm's, else the Hub's values."""
    if stated.config is not None and stated.preprocess is not None:
        return stated.preprocess
    vision = _vision_of(config)
    if tower is not None:
        return tower.preprocessing(folder, vision)
    published = PreprocessConfig.published(vision)
    preprocess = read_preprocessing(folder, vision.patch_size) or stated.preprocess or published
    if layout.name == "timm" and not preprocess.native:
        return replace(preprocess, crop_rounding="half_even")  # torchvision crops there
    return preprocess


def _stored_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """The dtype of all tensors that are not packed, or "mixed"."""
    stored = Counter(info.dtype for info in tensors.values() if info.dtype not in _PACKED)
    return DTYPE_NAMES[next(iter(stored))] if len(stored) == 1 else "mixed"


def _is_trained(provenance: Mapping[str, Any], files: tuple[CheckedFile, ...]) -> bool:
    """The mark of untrained weights is in the file too, so that it survives without its config."""
    marked = any(file.metadata.get(TRAINED_KEY) == "false" for file in files)
    return not marked and provenance.get("trained") is not False
