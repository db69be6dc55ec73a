"""Models from the Hugging Face Hub, into the cache of its own client.

The client transfers, resumes and locks. What is added here:
- Only the files a model needs are asked for: never a pickle, never code, of a multimodal model's
  shards only those that hold its tower.
- Every file must have the size and digest that the Hub lists for it. The list alone decides where
  a file goes and how many bytes are taken, as the client's own `hf_hub_download` writes to
  whatever path an ETag names.
- Then a record is written beside the files. A folder with a record is complete: a pinned one is
  used again without a request. Weights come last, so that a killed download is never taken for one.
"""

import hashlib
import json
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.files import publish
from aim_mlx.registry import find_model
from aim_mlx.weights.files import INDEX_FILE, TOKENIZER_FILES, WEIGHT_FILES, read_index
from aim_mlx.weights.hub_errors import Unreachable, explained
from aim_mlx.weights.hub_listing import COMMIT, RemoteFile, RepoListing, headers, list_repo
from aim_mlx.weights.preprocess_json import PROCESSOR_FILES
from aim_mlx.weights.strict_json import LARGEST_JSON, read_object, show
from aim_mlx.weights.towers import find_tower, tower_shards

SMALL_FILES = ("config.json", *PROCESSOR_FILES, *TOKENIZER_FILES)
RECORD = ".aim-mlx.json"
LARGEST_SMALL = 32 * 2**20  # bytes; the tokenizer of the published models has two million
LARGEST_WEIGHTS = 64 * 2**30  # bytes of one file; the largest published one has 11 billion

_REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)


def is_repo_id(text: str) -> bool:
    """Whether a text has the form owner/name, which a path may have too."""
    return bool(_REPO.fullmatch(text)) and ".." not in text and "--" not in text


def fetch_model(
    model: str,
    revision: str | None = None,
    *,
    offline: bool = False,
    progress: type | None = None,
    visual_tokens: bool = False,
) -> Path:
    """`fetch` for a registry name, at its pinned revision unless another is given, or a repo id.

    Raises UsageError for a name that is neither, and what `fetch` raises.
    """
    if is_repo_id(model):
        return fetch(
            model, revision, offline=offline, progress=progress, visual_tokens=visual_tokens
        )
    spec = find_model(model)
    if spec.folder is not None:
        if revision is not None:
            raise UsageError(f"{model} comes with this package: leave out the revision")
        return spec.folder
    if spec.pickle is not None:
        raise CheckpointError(
            f"{model} is published as a pickle, which can run code: download {spec.pickle} and, in "
            f"a clone of this package, run 'python -m convert {spec.pickle.rpartition('/')[2]} "
            "FOLDER', which reads its weights alone"
        )
    if spec.repo is None:
        raise CheckpointError(
            f"no weights of {model} are published: give a checkpoint's folder, or make an "
            f"untrained one with 'aim-mlx init {model} FOLDER'"
        )
    return fetch(spec.repo, revision or spec.revision, offline=offline, progress=progress)


def fetch(
    repo: str,
    revision: str | None = None,
    *,
    offline: bool = False,
    progress: type | None = None,
    visual_tokens: bool = False,
) -> Path:
    """The folder with a model repo's configuration, tokenizer and weights, downloaded if needed.

    `revision` is a commit, a branch or a tag, by default "main". `progress` is a class of bars as
    tqdm's; without one nothing is shown. `visual_tokens` gets Ovis2's head and embedding table
    too. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    Raises CheckpointError where the files cannot be had, OutputError where they cannot be stored.
    """
    revision = _checked(repo, revision)
    if COMMIT.fullmatch(revision) and (folder := _recorded(repo, revision, visual_tokens)):
        return folder
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        if folder := cached(repo, revision, visual_tokens):
            return folder
        raise CheckpointError(
            f"{repo} at {revision} is not complete on this disk, and the network is not to be "
            f"used: run 'aim-mlx download {repo} --revision {revision}' where it may be"
        )
    try:
        listing = list_repo(repo, revision)
    except Unreachable:
        if folder := cached(repo, revision, visual_tokens):
            return folder
        raise
    folder = _recorded(repo, listing.commit, visual_tokens)
    folder = folder or _download(listing, progress, visual_tokens)
    _remember(folder, revision)
    return folder


def cached(repo: str, revision: str | None = None, visual_tokens: bool = False) -> Path | None:
    """The folder of a repo whose weights are all on this disk, else None; no request is made.

    A folder that another program filled serves if it has a config.json and complete weights.
    """
    revision = _checked(repo, revision)
    if folder := _recorded(repo, revision, visual_tokens):
        return folder
    config = _in_cache(repo, "config.json", revision)
    if config is None:
        return None
    folder = config.parent
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return folder
    try:
        shards = tower_shards(read_index(folder / INDEX_FILE), visual_tokens)
    except CheckpointError:
        return None
    return folder if all((folder / name).is_file() for name in shards) else None


def _checked(repo: str, revision: str | None) -> str:
    """The revision; CheckpointError for a repo or a revision that could name another place."""
    if not is_repo_id(repo):
        raise CheckpointError(f"expected a repo as owner/name, got {show(repo)}")
    revision = revision or "main"
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise CheckpointError(
            f"expected a commit, branch or tag of {repo} as revision, got {show(revision)}"
        )
    return revision


def _in_cache(repo: str, name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _recorded(repo: str, revision: str, visual_tokens: bool) -> Path | None:
    """The folder of a finished download, if each file of its record is there in full size."""
    path = _in_cache(repo, RECORD, revision)
    if path is None:
        return None
    try:
        files = read_object(path)["files"]
        if INDEX_FILE in files:  # the tower may have come by itself
            needed = tower_shards(read_index(path.parent / INDEX_FILE), visual_tokens)
            if not needed <= files.keys():
                return None
        if all(os.path.getsize(path.parent / name) == f["size"] for name, f in files.items()):
            return path.parent
    except (CheckpointError, OSError, LookupError, TypeError, AttributeError):
        pass  # a file was deleted, or the record is not ours: as if there were none
    return None


def _record(folder: Path, listing: RepoListing, names: list[str]) -> None:
    """Writes the record; a cache that cannot be written to is checked again at every use."""
    digests = {name: listing.files[name].digest for name in names}
    with suppress(OSError):
        files = {n: {"size": os.path.getsize(folder / n), "digest": d} for n, d in digests.items()}
        values = {"repo": listing.repo, "commit": listing.commit, "files": files}
        publish({folder / RECORD: json.dumps(values, indent=1).encode()})


def _remember(folder: Path, revision: str) -> None:
    """Notes which commit a branch or tag was, where the client looks for it too."""
    ref = folder.parent.parent / "refs" / revision
    with suppress(OSError):
        if revision != folder.name and not (ref.is_file() and ref.read_text() == folder.name):
            ref.parent.mkdir(parents=True, exist_ok=True)
            publish({ref: folder.name.encode()})


def _download(listing: RepoListing, progress: type | None, visual_tokens: bool) -> Path:
    """Gets what is missing, small files first, and records that everything is there."""
    names: list[str] = list(SMALL_FILES)
    weights = [_choose_weights(listing)]
    if weights == [INDEX_FILE]:
        weight_map = read_index(_get(listing, INDEX_FILE, progress))
        weights = sorted(tower_shards(weight_map, visual_tokens))
        names.append(INDEX_FILE)
        if find_tower(weight_map):  # whose texts are for the language model
            names = [name for name in names if name not in TOKENIZER_FILES]
    for shard in weights:
        if shard not in listing.files:
            raise CheckpointError(f"{listing.repo} lacks the shard {show(shard)} of its index")
    names = [*(name for name in names if name in listing.files), *weights]
    folder = [_get(listing, name, progress) for name in names][-1].parent
    _record(folder, listing, names)
    return folder


def _largest(name: str) -> int:
    if name == INDEX_FILE:
        return LARGEST_JSON
    return LARGEST_SMALL if name in SMALL_FILES else LARGEST_WEIGHTS


def _choose_weights(listing: RepoListing) -> str:
    """The weight file to get, or the index of the shards; the first kind that there is."""
    for name in (*WEIGHT_FILES, INDEX_FILE):
        if name in listing.files:
            return name
    pickles = [n for n in sorted(listing.files) if n.endswith((".bin", ".pth", ".pt", ".pkl"))]
    got = f"it has {show(pickles[0])}, a pickle, which can run code" if pickles else "none is"
    raise CheckpointError(
        f"no weights to use in {listing.repo} at {listing.commit}: expected "
        f"{', '.join(WEIGHT_FILES)} or {INDEX_FILE}, {got}"
    )


def _get(listing: RepoListing, name: str, progress: type | None) -> Path:
    """One file in the cache, where the client keeps it, with the listed size and digest."""
    file, most = listing.files[name], _largest(name)
    if (file.size or 0) > most:
        raise CheckpointError(
            f"{name} of {listing.repo} has {file.size} bytes, expected at most {most}: "
            "not a model for this package"
        )
    with explained(listing.repo, listing.commit):
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import WeakFileLock

        cache, repo = Path(constants.HF_HUB_CACHE), f"models--{listing.repo.replace('/', '--')}"
        path = cache / repo / "snapshots" / listing.commit / name
        if path.is_file() and file.fault(path) is None:
            return path
        label = file.digest or hashlib.sha1(f"{listing.commit}/{name}".encode()).hexdigest()
        blob = cache / repo / "blobs" / label
        lock = cache / ".locks" / repo / f"{label}.lock"
        for folder in (path.parent, blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the client's own: others that fetch the file wait as well
            if not blob.is_file() or file.fault(blob) is not None:
                url = hf_hub_url(listing.repo, name, revision=listing.commit)
                _fill(blob, url, file, progress)
            path.unlink(missing_ok=True)
            path.symlink_to(os.path.relpath(blob, path.parent))
    return path


def _fill(blob: Path, url: str, file: RemoteFile, progress: type | None) -> None:
    """Downloads a file under a name of its own, checks it and gives it its name.

    The lock is held: what else is unfinished was left by killed downloads, which nobody takes up.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import tqdm

    for rest in blob.parent.glob(f"{blob.name}.*.incomplete"):
        rest.unlink()
    unfinished = blob.with_name(f"{blob.name}.{os.getpid()}.incomplete")
    most = _largest(file.name) if file.size is None else file.size
    try:
        with open(unfinished, "xb") as stream:
            http_get(
                url,
                _Limited(stream, most),  # pyright: ignore[reportArgumentType]
                headers=headers(),
                displayed_filename=file.name,
                tqdm_class=progress or partial(tqdm, disable=True),  # pyright: ignore[reportArgumentType]
            )
        if fault := file.fault(unfinished):
            raise CheckpointError(
                f"{file.name} {fault}: the download was damaged and is removed; run again"
            )
        os.replace(unfinished, blob)
    finally:
        unfinished.unlink(missing_ok=True)


class _Limited:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: BinaryIO, most: int):
        self._file, self._most = file, most
        self.tell, self.seek, self.truncate = file.tell, file.seek, file.truncate

    def write(self, block: bytes) -> None:
        if self.tell() + len(block) > self._most:
            raise CheckpointError(
                f"the Hub sends more than the {self._most} bytes that it lists: "
                "the download is damaged, run again later"
            )
        self._file.write(block)
