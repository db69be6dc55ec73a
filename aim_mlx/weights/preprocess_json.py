"""What image processors of transformers write of themselves -> PreprocessConfig, or a refusal."""

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
_NEVER_CROPS = "Ovis2ImageProcessor"  # unless it says so; CLIP's crops unless it says not


def read_preprocessing(
    folder: Path, patch_size: int, pads: bool = False
) -> PreprocessConfig | None:
    """What the files of transformers in a folder state, None where there are none.

    `pads` says that the model's own code pads images to a square of `crop_size`. Raises
    CheckpointError where what is stated cannot be done here, or where two files differ.
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
            stated[name] = config_from_preprocessor_json(values, patch_size, pads)
        except CheckpointError as error:
            raise CheckpointError(f"{at(path)}: {error}") from error
    if len(set(stated.values())) > 1:
        raise CheckpointError(
            f"{' and '.join(PROCESSOR_FILES)} in {at(folder)} state different preprocessing: "
            "remove the one that the model was not published with"
        )
    return next(iter(stated.values()), None)


def config_from_preprocessor_json(
    values: Any, patch_size: int, pads: bool = False
) -> PreprocessConfig:
    """The fields as transformers' CLIPImageProcessor writes them -> how to preprocess.

    `do_resize` and `do_center_crop` both false mean native resolution; a resize to a square with no
    crop squashes. Raises CheckpointError in one sentence for whatever else this package would do
    differently.
    """
    if not isinstance(values, Mapping):
        raise _refused("an object", values)
    for name in ("do_rescale", "do_normalize"):
        if not _flag(values, name):
            raise _refused(f"{name} true", values.get(name))
    factor = values.get("rescale_factor", 1 / 255)
    if not is_real(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise _refused("rescale_factor 1/255", factor)
    resize = _flag(values, "do_resize")
    crop = _flag(values, "do_center_crop", values.get("image_processor_type") != _NEVER_CROPS)
    size = values.get("size")
    squashes = resize and not crop and isinstance(size, Mapping) and "height" in size
    if resize != crop and not (squashes or pads):
        raise _refused("do_resize and do_center_crop alike", f"{resize} and {crop}")
    if values.get("do_pad"):
        raise _refused("do_pad false", values["do_pad"])
    rest: dict[str, Any] = {  # checked where it goes
        "mean": values.get("image_mean"),
        "std": values.get("image_std"),
        "patch_size": patch_size,
    }
    if not resize:
        return PreprocessConfig(None, None, **rest)
    resample = values.get("resample", _BICUBIC)
    if type(resample) is not int or resample != _BICUBIC:
        raise _refused("resample 3 (bicubic)", resample)
    if squashes and not pads:
        side = _side(values, "size", "height", "width")
        return PreprocessConfig(side, side, fit="squash", **rest)
    crop_size = _side(values, "crop_size", "height", "width")
    if pads:
        return PreprocessConfig(crop_size, crop_size, fit="pad", **rest)
    edge = _side(values, "size", "shortest_edge")
    return PreprocessConfig(edge, crop_size, **rest)


def _flag(values: Mapping[str, Any], name: str, default: bool = True) -> bool:
    value = values.get(name, default)
    if type(value) is not bool:
        raise _refused(f"{name} true or false", value)
    return value


def _side(values: Mapping[str, Any], name: str, *keys: str) -> int:
    """A size in pixels, as a number or stated alike under each of the keys."""
    size = values.get(name)
    if isinstance(size, Mapping) and set(size) == set(keys):
        size = size[keys[0]] if size[keys[0]] == size[keys[-1]] else None
    if type(size) is not int:
        raise _refused(
            f"{name} as one number of pixels, or as {' and '.join(keys)}", values.get(name)
        )
    return size


def _refused(expected: str, got: Any) -> CheckpointError:
    return CheckpointError(f"expected {expected}, got {got!r:.80}")
