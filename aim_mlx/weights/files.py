"""Which files of a folder are its weights: one file, or the shards that an index names."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.safetensors_file import CheckedFile, check_file
from aim_mlx.weights.strict_json import at, read_object, show
from aim_mlx.weights.towers import tower_shards

OUR_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# In this order: the first is the reference's MLX file, which needs no conversion.
WEIGHT_FILES = ("mlx_model.safetensors", OUR_FILE)
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class WeightFiles:
    """The checked files that are needed of a checkpoint, and the names of all its tensors."""

    files: tuple[CheckedFile, ...]
    names: Collection[str]

    @classmethod
    def single(cls, path: Path) -> "WeightFiles":
        """One file with all tensors; raises CheckpointError where it is unsound."""
        file = check_file(path)
        return cls((file,), file.tensors)


def weight_files(folder: Path, ours: bool = False, visual_tokens: bool = False) -> WeightFiles:
    """The weights of a folder; `ours` looks only for the name our format writes.

    Of a multimodal model's shards only those with its tower are needed, with `visual_tokens` those
    with Ovis2's head and embedding table too. Raises CheckpointError when there are no weights or a
    file is unsound; there is no fallback to another.
    """
    for name in (OUR_FILE,) if ours else WEIGHT_FILES:
        if os.path.lexists(folder / name):  # even a broken link is not passed over
            return WeightFiles.single(folder / name)
    if not ours and os.path.lexists(folder / INDEX_FILE):
        return _shards(folder, visual_tokens)
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


def _shards(folder: Path, visual_tokens: bool) -> WeightFiles:
    """The needed shards of an index, which must name each tensor of each of them, and no other."""
    index = folder / INDEX_FILE
    weight_map = read_index(index)
    needed = tower_shards(weight_map, visual_tokens)
    stated = {name: shard for name, shard in weight_map.items() if shard in needed}
    files = tuple(check_file(shard) for shard in shard_paths(folder, stated))
    check_index(index, stated, [(t, file.path.name) for file in files for t in file.tensors])
    return WeightFiles(files, weight_map)


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


def shard_paths(folder: Path, weight_map: Mapping[str, str]) -> list[Path]:
    """The files that an index names, in order of their names.

    Each may be a link only within the folder or into the Hub cache's own blobs. Raises
    CheckpointError.
    """
    # Not Path.resolve, which raises RuntimeError where a link leads to itself.
    home = Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots":  # models--owner--name/snapshots/<revision>/<file>
        allowed.append(home.parents[1] / "blobs")
        allowed.append(home.parents[2] / "blobs")  # shared by all repos, where Xet stores files
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not os.path.lexists(path):
            raise CheckpointError(
                f"missing shard {show(path.name)} in {at(folder)}: download the checkpoint again"
            )
        target = Path(os.path.realpath(path))
        if not any(target.is_relative_to(root) for root in allowed):
            raise CheckpointError(
                f"shard {show(path.name)} is a link that leaves {at(folder)}: put the file itself "
                "there"
            )
    return paths


def check_index(
    index: Path, weight_map: Mapping[str, str], tensors: Iterable[tuple[str, str]]
) -> None:
    """Raises CheckpointError unless an index has exactly these pairs of tensor and shard."""
    shards: dict[str, str] = {}
    for tensor, shard in tensors:
        if tensor in shards:
            raise CheckpointError(
                f"tensor {show(tensor)} is in two shards, {show(shards[tensor])} and "
                f"{show(shard)}: expected in one; download the checkpoint again"
            )
        shards[tensor] = shard
    for tensor in [*weight_map, *shards]:
        stated, real = weight_map.get(tensor), shards.get(tensor)
        if stated != real:
            raise CheckpointError(
                f"{at(index)} puts tensor {show(tensor)} in {show(stated)}, it is in {show(real)}: "
                "download the checkpoint again"
            )
