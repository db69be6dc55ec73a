"""Which files of a folder are its weights: one file, or the shards that an index names."""

import os
from pathlib import Path

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.safetensors_file import CheckedFile, check_file
from aim_mlx.weights.strict_json import at, read_object, show

OUR_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# In this order: the first is the reference's MLX file, which needs no conversion.
WEIGHT_FILES = ("mlx_model.safetensors", OUR_FILE)


def weight_files(folder: Path, ours: bool = False) -> tuple[CheckedFile, ...]:
    """The checked weight files of a folder; `ours` looks only for the name our format writes.

    Raises CheckpointError when there are none or one is unsound; there is no fallback to another.
    """
    for name in (OUR_FILE,) if ours else WEIGHT_FILES:
        if _exists(folder / name):
            return (check_file(folder / name),)
    if not ours and _exists(folder / INDEX_FILE):
        return _shards(folder)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{at(folder)} cannot be listed: {error.strerror}") from error
    for name in names:
        if name.endswith((".bin", ".pth", ".pt", ".pkl")):
            check_file(folder / name)  # raises, with the sentence for such files
    raise CheckpointError(
        f"no weights in {at(folder)}: expected {', '.join(WEIGHT_FILES)} or {INDEX_FILE}"
    )


def _exists(path: Path) -> bool:
    """Whether a name is there, even as a broken link: that is an error, not passed over."""
    return path.is_symlink() or path.exists()


def _shards(folder: Path) -> tuple[CheckedFile, ...]:
    """The shards of an index, which must name each tensor of each shard, and no other."""
    index = folder / INDEX_FILE
    weight_map = read_index(index)
    files = tuple(_check_shard(folder, name) for name in sorted(set(weight_map.values())))
    found: dict[str, str] = {}
    for file in files:
        for tensor in file.tensors:
            if tensor in found:
                raise CheckpointError(
                    f"tensor {show(tensor)} is in two shards, {show(found[tensor])} and "
                    f"{show(file.path.name)}: expected in one; download the checkpoint again"
                )
            found[tensor] = file.path.name
    for tensor in [*weight_map, *found]:
        stated, real = weight_map.get(tensor), found.get(tensor)
        if stated != real:
            raise CheckpointError(
                f"{at(index)} puts tensor {show(tensor)} in {show(stated)}, it is in {show(real)}: "
                "download the checkpoint again"
            )
    return files


def read_index(index: Path, ending: str = ".safetensors") -> dict[str, str]:
    """Tensors to shards, each the plain name of a file: no way out of the folder.

    Raises CheckpointError.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{at(index)}: expected a weight_map from tensors to shards")
    for tensor, shard in weight_map.items():
        plain = isinstance(shard, str) and shard.endswith(ending) and not shard.startswith(".")
        if not plain or any(c in shard for c in "/\\:\0"):
            raise CheckpointError(
                f"{at(index)} puts tensor {show(tensor)} in {show(shard)}: expected the name of a "
                f"{ending} file in the same folder"
            )
    return weight_map


def _check_shard(folder: Path, name: str) -> CheckedFile:
    """A shard, which may be a link only within the folder or into the Hub cache's own blobs."""
    path = folder / name
    if not _exists(path):
        raise CheckpointError(
            f"missing shard {show(name)} in {at(folder)}: download the checkpoint again"
        )
    # Not Path.resolve, which raises RuntimeError where a link leads to itself.
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = [home]
    if home.parent.name == "snapshots":  # models--owner--name/snapshots/<revision>/<file>
        allowed.append(home.parents[1] / "blobs")
        allowed.append(home.parents[2] / "blobs")  # shared by all repos, where Xet stores files
    if not any(target.is_relative_to(root) for root in allowed):
        raise CheckpointError(
            f"shard {show(name)} is a link that leaves {at(folder)}: put the file itself there"
        )
    return check_file(path)
