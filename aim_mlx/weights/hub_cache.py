"""What of a Hub model is on this disk, and the record that says a download was finished."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.files import INDEX_FILE, WEIGHT_FILES
from aim_mlx.weights.strict_json import read_object, show

RECORD = ".aim-mlx.json"

_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)


def in_cache(repo: str, name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def recorded(repo: str, revision: str) -> Path | None:
    """The folder of a finished download, if each file of its record is there in full size."""
    path = in_cache(repo, RECORD, revision)
    if path is None:
        return None
    try:
        files = read_object(path)["files"]
        if all(os.path.getsize(path.parent / name) == f["size"] for name, f in files.items()):
            return path.parent
    except (CheckpointError, OSError, LookupError, TypeError, AttributeError):
        pass  # a file was deleted, or the record is not ours: as if there were none
    return None


def complete(repo: str, revision: str) -> Path | None:
    """The folder that another program filled, if nothing of its weights is missing."""
    config = in_cache(repo, "config.json", revision)
    if config is None:
        return None
    folder = config.parent
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return folder
    try:
        shards = shard_names(folder / INDEX_FILE)
    except CheckpointError:
        return None
    return folder if all((folder / name).is_file() for name in shards) else None


def shard_names(index: Path) -> list[str]:
    """The shards that an index names; CheckpointError for a name that is not a plain file's."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a weight_map from tensors to shards")
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise CheckpointError(
                f"{index} names the shard {show(name)}: expected the name of a .safetensors file "
                "in the same folder"
            )
    return sorted(set(weight_map.values()))


def record(folder: Path, repo: str, digests: dict[str, str | None]) -> None:
    """Writes the record; a cache that cannot be written to is checked again at every use."""
    with suppress(OSError):
        files = {
            name: {"size": (folder / name).stat().st_size, "digest": digest}
            for name, digest in digests.items()
        }
        values = {"repo": repo, "commit": folder.name, "files": files}
        _replace(folder / RECORD, json.dumps(values, indent=1))


def remember(folder: Path, revision: str) -> None:
    """Notes which commit a branch or tag was, where the client looks for it too."""
    ref = folder.parent.parent / "refs" / revision
    with suppress(OSError):
        if revision != folder.name and not (ref.is_file() and ref.read_text() == folder.name):
            ref.parent.mkdir(parents=True, exist_ok=True)
            _replace(ref, folder.name)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
