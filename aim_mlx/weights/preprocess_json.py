"""What transformers' CLIPImageProcessor writes of itself -> PreprocessConfig, or a refusal."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aim_mlx.config import PreprocessConfig, is_real
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.strict_json import at, read_object

# The second is what transformers 5 writes, for all of a model's inputs.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_BICUBIC = 3


def read_preprocessing(folder: Path, patch_size: int) -> PreprocessConfig | None:
    """What the files of transformers in a folder state, None where there are none.

    Raises CheckpointError where it cannot be done here, or where two files differ.
    """
    stated = {}
    for name in PROCESSOR_FILES:
        path = folder / name
        if not os.path.lexists(path):
            continue
        values = read_object(path)
        if name == PROCESSOR_FILES[1]:
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


def config_from_preprocessor_json(values: Any, patch_size: int) -> PreprocessConfig:
    """The fields as transformers' CLIPImageProcessor writes them -> how to preprocess.

    `do_resize` and `do_center_crop` both false mean native resolution. Raises CheckpointError in
    one sentence for whatever else this package would do differently.
    """
    if not isinstance(values, Mapping):
        raise _refused("an object", values)
    for name in ("do_rescale", "do_normalize"):
        if not _flag(values, name):
            raise _refused(f"{name} true", values.get(name))
    factor = values.get("rescale_factor", 1 / 255)
    if not is_real(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise _refused("rescale_factor 1/255", factor)
    resize, crop = _flag(values, "do_resize"), _flag(values, "do_center_crop")
    if resize != crop:
        raise _refused("do_resize and do_center_crop alike", f"{resize} and {crop}")
    if values.get("do_pad"):
        raise _refused("do_pad false", values["do_pad"])
    mean, std = _triple(values, "image_mean"), _triple(values, "image_std")
    if not resize:
        return PreprocessConfig(None, None, mean, std, patch_size)
    resample = values.get("resample", _BICUBIC)
    if type(resample) is not int or resample != _BICUBIC:
        raise _refused("resample 3 (bicubic)", resample)
    return PreprocessConfig(_shortest_edge(values), _crop_size(values), mean, std, patch_size)


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name, True)
    if type(value) is not bool:
        raise _refused(f"{name} true or false", value)
    return value


def _triple(values: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    value = values.get(name)
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(is_real, value)):
        raise _refused(f"{name} of three numbers", value)
    return value[0], value[1], value[2]


def _shortest_edge(values: Mapping[str, Any]) -> int:
    size = values.get("size")
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        size = size["shortest_edge"]
    if type(size) is not int:
        raise _refused('size as {"shortest_edge": pixels}', values.get("size"))
    return size


def _crop_size(values: Mapping[str, Any]) -> int:
    size = values.get("crop_size")
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        size = size["height"] if size["height"] == size["width"] else None
    if type(size) is not int:
        raise _refused("a square crop_size", values.get("crop_size"))
    return size


def _refused(expected: str, got: Any) -> CheckpointError:
    return CheckpointError(f"expected {expected}, got {got!r:.80}")
