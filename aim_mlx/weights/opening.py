"""A checkpoint on disk: opened with every check before a tensor is read, then loaded."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from aim_mlx.config import PreprocessConfig, VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.files import weight_files
from aim_mlx.weights.hub_config import FORMAT, ConfigFacts, check_facts, read_config
from aim_mlx.weights.layouts import Layout, detect_layout, layout_named
from aim_mlx.weights.mapping import Step, plan, shape_in_ours
from aim_mlx.weights.safety import CheckedFile, TensorInfo, check_file
from aim_mlx.weights.sizes import (
    check_shapes,
    expected_lit_shapes,
    expected_shapes,
    lit_sizes_from_tensors,
    vision_config_from_tensors,
)
from aim_mlx.weights.strict_json import at, read_object, show

DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TRAINED_KEY = "aim_mlx_trained"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files, names, shapes and sizes were all found sound and in agreement.

    `config` is the vision encoder's (for kind "lit" the image tower's). `dtype` is the stored one,
    or "mixed". `trained` is False only for weights that were made untrained, as for tests.
    """

    path: Path
    layout: str
    kind: str
    config: VisionConfig
    preprocess: PreprocessConfig
    files: tuple[CheckedFile, ...]
    dtype: str
    parameters: int
    provenance: dict[str, Any] = field(default_factory=dict)
    trained: bool = True

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors under the names they have in the files."""
        return {name: info for file in self.files for name, info in file.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    def steps(self) -> list[Step]:
        """How each of our tensors is made from those in the files, in the order of the files."""
        return plan(layout_named(self.layout, self.kind), self.tensors)


def open_checkpoint(path: str | os.PathLike[str], config: VisionConfig | None = None) -> Checkpoint:
    """Checks a folder or a single .safetensors file; no tensor is read.

    A single file uses config.json and preprocessor_config.json beside it. `config` takes the place
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
    _check_dtypes(tensors)
    layout = detect_layout(tensors)
    found = _check_sizes(layout, tensors, facts, config)
    if facts is not None:
        _check_kind(config_path, facts, layout)
        check_facts(config_path, facts, found)
    provenance = facts.provenance if facts is not None else {}
    return Checkpoint(
        path=path,
        layout=layout.name,
        kind=layout.kind,
        config=found,
        preprocess=_preprocess(folder, facts, found),
        files=files,
        dtype=_stored_dtype(tensors),
        parameters=sum(prod(info.shape) for info in tensors.values()),
        provenance=provenance,
        trained=_is_trained(provenance, files),
    )


def _check_dtypes(tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if info.dtype not in DTYPE_NAMES:
            raise CheckpointError(
                f"tensor {show(name)} has dtype {info.dtype}: expected "
                f"{', '.join(DTYPE_NAMES)} for weights"
            )


def _check_kind(path: Path, facts: ConfigFacts, layout: Layout) -> None:
    if facts.kind != layout.kind:
        words = {"vision": "a vision encoder", "lit": "a LiT model"}
        raise CheckpointError(
            f"{at(path)} states {words[facts.kind]}, the weights beside it are "
            f"{words[layout.kind]}: use the config.json they were published with"
        )


def _check_sizes(
    layout: Layout,
    tensors: Mapping[str, TensorInfo],
    facts: ConfigFacts | None,
    given: VisionConfig | None,
) -> VisionConfig:
    """The encoder's sizes, from `given` or from the tensors; every shape is as they demand."""
    shapes = {
        step.ours: shape_in_ours(step, [tensors[name].shape for name in step.sources])
        for step in plan(layout, tensors)
    }

    def names(ours: str) -> str:
        return ", ".join(map(show, layout.source_names(ours))) or show(ours)

    heads = given.num_heads if given else facts.num_heads if facts else None
    eps = given.rms_norm_eps if given else facts.rms_norm_eps if facts else None
    if layout.kind == "lit":
        sizes = lit_sizes_from_tensors(shapes, heads, eps, names)
        found, expected = sizes.vision, expected_lit_shapes(sizes)
    else:
        found = vision_config_from_tensors(shapes, heads, eps, names)
        expected = expected_shapes(given or found)
    check_shapes(shapes, expected, names)
    if given is not None and given != found:
        raise CheckpointError(f"config= states {given}, the weights have {found}: correct config=")
    return found


def _preprocess(folder: Path, facts: ConfigFacts | None, config: VisionConfig) -> PreprocessConfig:
    """Our own config.json, else preprocessor_config.json, else timm's, else the Hub's values."""
    if facts is not None and facts.source == FORMAT and facts.preprocess is not None:
        return facts.preprocess
    path = folder / "preprocessor_config.json"
    if os.path.lexists(path):
        from aim_mlx.images import config_from_preprocessor_json

        return config_from_preprocessor_json(read_object(path), config.patch_size)
    if facts is not None and facts.preprocess is not None:
        return facts.preprocess
    return PreprocessConfig.hub(config.image_size, config.patch_size)


def _stored_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    stored = Counter(info.dtype for info in tensors.values())
    return DTYPE_NAMES[next(iter(stored))] if len(stored) == 1 else "mixed"


def _is_trained(provenance: Mapping[str, Any], files: tuple[CheckedFile, ...]) -> bool:
    """The mark of untrained weights is in the file too, so that it survives without its config."""
    marked = any(file.metadata.get(TRAINED_KEY) == "false" for file in files)
    return not marked and provenance.get("trained") is not False
