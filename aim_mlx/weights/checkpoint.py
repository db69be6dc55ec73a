"""A checkpoint on disk: opened with every check before a tensor is read, then loaded."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from aim_mlx.config import HEAD_DIM, LiTConfig, PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.errors import AssumedHeadsWarning, CheckpointError, warn_of_untrained
from aim_mlx.registry import MODELS
from aim_mlx.weights.config_json import (
    FORMAT,
    KINDS,
    ConfigFacts,
    TowerFacts,
    check_facts,
    check_kind,
    read_config,
)
from aim_mlx.weights.files import weight_files
from aim_mlx.weights.layouts import (
    KEEP,
    Layout,
    Step,
    detect_layout,
    layout_named,
    plan,
    shape_in_ours,
)
from aim_mlx.weights.preprocess_json import config_from_preprocessor_json
from aim_mlx.weights.quantize import Quantization, packed_names, packed_specs, quantized_names
from aim_mlx.weights.safetensors_file import CheckedFile, TensorInfo, check_file
from aim_mlx.weights.sizes import (
    IMAGE,
    check_shapes,
    expected_shapes,
    projection_dim_from_tensors,
    text_config_from_tensors,
    vision_config_from_tensors,
)
from aim_mlx.weights.strict_json import at, read_object, show

ModelConfig = VisionConfig | LiTConfig
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TRAINED_KEY = "aim_mlx_trained"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

_PACKED = {"U32", "U8"}
_SNAPSHOT = re.compile(r"/models--([\w.-]{1,200})/snapshots/", re.ASCII)  # in the Hub's cache


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files, names, shapes and sizes were all found sound and in agreement.

    `kind` is "vision" or "lit", and `config` of that kind. `dtype` is the stored one, or "mixed";
    `parameters` counts them unpacked. `trained` is False only for weights that were made untrained,
    as for tests. `heads_assumed` says that HEAD_DIM gave the heads of a model of unknown sizes.
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

    def warn(self, stacklevel: int = 2) -> None:
        """Warns of what whoever uses the weights must know of them."""
        warn_of_untrained(self.trained, stacklevel + 1)
        if self.heads_assumed:
            warnings.warn(
                f"no config.json states the heads of {at(self.path)}: assumed {HEAD_DIM} channels "
                "each, as in the published models. With another width the vectors are wrong: add "
                "the config.json that it was published with, or give config=",
                AssumedHeadsWarning,
                stacklevel=stacklevel + 1,
            )

    @property
    def model(self) -> str | None:
        """The published model or the repo that it is a copy of, where a path on its way says so."""
        places, facts = [str(self.path.absolute())], self.provenance
        while isinstance(facts, dict) and facts:
            places.append(str(facts.get("source")))
            facts = facts.get("earlier")
        found = next((m for m in map(_SNAPSHOT.search, places) if m), None)
        if found is None:
            return None
        repo = found[1].replace("--", "/", 1)
        return next((spec.name for spec in MODELS.values() if spec.repo == repo), repo)

    @property
    def vision(self) -> VisionConfig:
        """The sizes of the vision encoder, which in a LiT model is the image tower."""
        return self.config.vision if isinstance(self.config, LiTConfig) else self.config

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.files[0].path.parent

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors under the names they have in the files."""
        return {name: info for file in self.files for name, info in file.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def quantized(self) -> list[str]:
        """The names, ours, of the weights that are stored packed."""
        return quantized_names(expected_shapes(self.config), self.quantization)

    def steps(self) -> list[Step]:
        """How each of our tensors is made from those in the files, in the order of the files.

        The sources of a quantised weight are the tensors that hold it.
        """
        if self.quantization is None:
            return plan(layout_named(self.layout, self.kind), self.tensors)
        parts = {name: packed_names(name, self.quantization) for name in self.quantized}
        rest = {part for names in parts.values() for part in names[1:]}
        return [Step(n, parts.get(n, (n,)), KEEP) for n in self.tensors if n not in rest]


def open_checkpoint(path: str | os.PathLike[str], config: ModelConfig | None = None) -> Checkpoint:
    """Checks a folder or a single .safetensors file; no tensor is read.

    A single file uses the JSON files beside it. `config` takes the place
    of config.json, which then is not read. Raises CheckpointError.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config_path = folder / "config.json"
    facts = None
    if config is None and os.path.lexists(config_path):
        facts = read_config(config_path)
    ours = facts is not None and facts.source == FORMAT
    if not os.path.lexists(path):
        raise CheckpointError(f"{at(path)} does not exist: expected a folder or a file")
    files = weight_files(folder, ours) if path.is_dir() else (check_file(path),)
    tensors = {name: info for file in files for name, info in file.tensors.items()}
    if facts is not None and facts.config is not None:
        layout, found = layout_named("ml-aim-mlx", facts.kind), facts.config
        _check_ours(config_path, tensors, found, facts.quantization)
    else:
        _check_dtypes(tensors)
        layout = detect_layout(tensors)
        if facts is not None:
            check_kind(config_path, facts, layout.kind)
        found = _check_sizes(layout, tensors, facts, config)
        if facts is not None:
            check_facts(config_path, facts, found)
    provenance = facts.provenance if facts is not None else {}
    return Checkpoint(
        path=path,
        layout=layout.name,
        kind=layout.kind,
        config=found,
        preprocess=_preprocess(folder, facts, found, layout),
        files=files,
        dtype=_stored_dtype(tensors),
        parameters=sum(prod(shape) for shape in expected_shapes(found).values()),
        quantization=facts.quantization if facts is not None else None,
        provenance=provenance,
        trained=_is_trained(provenance, files),
        heads_assumed=config is None and _heads_are_silent(facts, found),
    )


def _heads_are_silent(facts: ConfigFacts | None, found: ModelConfig) -> bool:
    """Whether nothing but a published model's sizes could say how many heads there are."""
    if any(spec.config == found for spec in MODELS.values()):
        return False
    if facts is None:
        return True
    towers = (facts.vision, facts.text) if isinstance(found, LiTConfig) else (facts.vision,)
    return facts.config is None and any(tower.num_heads is None for tower in towers)


def _check_dtypes(tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if info.dtype not in DTYPE_NAMES:
            hint = "; quantised weights need the config.json they were written with"
            raise CheckpointError(
                f"tensor {show(name)} has dtype {info.dtype}: expected "
                f"{', '.join(DTYPE_NAMES)} for weights{hint if info.dtype in _PACKED else ''}"
            )


def _check_ours(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    config: ModelConfig,
    quantization: Quantization | None,
) -> None:
    """Our own format states every size: each tensor, packed or not, must be exactly as stated."""
    shapes = expected_shapes(config)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {n: ("", s) for n, s in shapes.items()}
    for name in quantized_names(shapes, quantization):
        if quantization is not None:
            expected |= packed_specs(name, shapes[name], quantization, "")
    try:
        check_shapes(
            {name: info.shape for name, info in tensors.items()},
            {name: shape for name, (_, shape) in expected.items()},
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error} (the sizes are those of {at(path)})") from error
    plain = {n: info for n, info in tensors.items() if not expected[n][0]}
    _check_dtypes(plain)
    for name in tensors.keys() - plain.keys():
        if tensors[name].dtype != expected[name][0]:
            raise CheckpointError(
                f"tensor {show(name)} has dtype {tensors[name].dtype}: expected "
                f"{expected[name][0]} for weights quantised as {at(path)} states"
            )


def _check_sizes(
    layout: Layout,
    tensors: Mapping[str, TensorInfo],
    facts: ConfigFacts | None,
    given: ModelConfig | None,
) -> ModelConfig:
    """The model's sizes, from `given` or from the tensors; every shape is as they demand."""
    if given is not None and isinstance(given, LiTConfig) != (layout.kind == "lit"):
        raise CheckpointError(
            f"config= is a {type(given).__name__}, the weights are {KINDS[layout.kind]}: "
            "give the config of that kind"
        )
    shapes = {
        step.ours: shape_in_ours(step, [tensors[name].shape for name in step.sources])
        for step in plan(layout, tensors)
    }

    def names(ours: str) -> str:
        return ", ".join(map(show, layout.source_names(ours))) or show(ours)

    stated = facts or ConfigFacts("", layout.kind)
    vision: VisionConfig | TowerFacts = stated.vision
    text: TextConfig | TowerFacts = stated.text
    if isinstance(given, LiTConfig):
        vision, text = given.vision, given.text
    elif given is not None:
        vision = given
    heads, eps = vision.num_heads, vision.rms_norm_eps
    if layout.kind == "vision":
        found: ModelConfig = vision_config_from_tensors(shapes, heads, eps, names)
    else:
        scale = given.max_logit_scale if isinstance(given, LiTConfig) else stated.max_logit_scale
        optional: dict[str, Any] = {} if scale is None else {"max_logit_scale": scale}
        found = LiTConfig(
            vision_config_from_tensors(shapes, heads, eps, names, IMAGE),
            text_config_from_tensors(
                shapes, text.num_heads, text.rms_norm_eps, text.eos_token_id, names
            ),
            projection_dim_from_tensors(shapes, names),
            **optional,
        )
    check_shapes(shapes, expected_shapes(given or found), names)
    if given is not None and given != found:
        raise CheckpointError(f"config= states {given}, the weights have {found}: correct config=")
    return found


def _preprocess(
    folder: Path, facts: ConfigFacts | None, config: ModelConfig, layout: Layout
) -> PreprocessConfig:
    """Our own config.json, else the image processor's, else timm's, else the Hub's values."""
    stated = facts.preprocess if facts is not None else None
    if facts is not None and facts.source == FORMAT and stated is not None:
        return stated
    vision = config.vision if isinstance(config, LiTConfig) else config
    size, patch = vision.image_size, vision.patch_size
    found = _image_processor(folder, patch) or stated or PreprocessConfig.hub(size, patch)
    if layout.name == "timm" and not found.native:
        return replace(found, crop_rounding="half_even")  # torchvision crops there
    return found


def _image_processor(folder: Path, patch_size: int) -> PreprocessConfig | None:
    """What the files of transformers state of the image processor, which must be one thing."""
    stated = {}
    for name in PROCESSOR_FILES:
        path = folder / name
        if not os.path.lexists(path):
            continue
        values = read_object(path)
        if name == PROCESSOR_FILES[1]:  # what transformers 5 writes, for all of a model's inputs
            if "image_processor" not in values:
                continue
            values = values["image_processor"]
        try:
            stated[name] = config_from_preprocessor_json(values, patch_size)
        except CheckpointError as error:
            raise CheckpointError(f"{at(path)}: {error}") from error
    if len(set(stated.values())) > 1:
        raise CheckpointError(
            f"{' and '.join(PROCESSOR_FILES)} in {at(folder)} state different preprocessing: "
            "remove the one that the model was not published with"
        )
    return next(iter(stated.values()), None)


def _stored_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """The dtype of all tensors that are not packed, or "mixed"."""
    stored = Counter(info.dtype for info in tensors.values() if info.dtype not in _PACKED)
    return DTYPE_NAMES[next(iter(stored))] if len(stored) == 1 else "mixed"


def _is_trained(provenance: Mapping[str, Any], files: tuple[CheckedFile, ...]) -> bool:
    """The mark of untrained weights is in the file too, so that it survives without its config."""
    marked = any(file.metadata.get(TRAINED_KEY) == "false" for file in files)
    return not marked and provenance.get("trained") is not False
