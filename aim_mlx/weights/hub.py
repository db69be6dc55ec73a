"""Models from the Hugging Face Hub, through its own client and into its own cache.

- Only the files a model needs are asked for: never a pickle, never code.
- Every file must have the digest that the Hub lists for it; the client itself compares sizes only.
- Then a record is written beside the files. A folder with a record is complete: a pinned one is
  used again without a request. Weights come last, so that a killed download is never taken for one.
"""

import glob
import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aim_mlx import __version__
from aim_mlx.errors import CheckpointError
from aim_mlx.registry import find_model
from aim_mlx.weights.files import INDEX_FILE, WEIGHT_FILES
from aim_mlx.weights.hub_cache import complete, in_cache, record, recorded, remember, shard_names
from aim_mlx.weights.hub_errors import Unreachable, explained
from aim_mlx.weights.strict_json import LARGEST_JSON, show

SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
LARGEST_SMALL = 32 * 2**20  # bytes; the tokenizer of the published models has two million

_REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it; `digest` is its sha256, or its git blob's sha1, in hex."""

    name: str
    size: int | None
    digest: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a repo at one commit."""

    repo: str
    commit: str
    files: dict[str, RemoteFile]


def is_repo_id(text: str) -> bool:
    """Whether a text has the form owner/name, which a path may have too."""
    return bool(_REPO.fullmatch(text)) and ".." not in text and "--" not in text


def fetch_model(
    model: str, revision: str | None = None, *, offline: bool = False, progress: type | None = None
) -> Path:
    """`fetch` for a registry name, at its pinned revision unless another is given, or a repo id.

    Raises UsageError for a name that is neither, and what `fetch` raises.
    """
    if is_repo_id(model):
        return fetch(model, revision, offline=offline, progress=progress)
    spec = find_model(model)
    if spec.repo is None:
        raise CheckpointError(
            f"no weights of {model} are published: give a checkpoint's folder, or make an "
            f"untrained one with 'aim-mlx init {model} FOLDER'"
        )
    return fetch(spec.repo, revision or spec.revision, offline=offline, progress=progress)


def fetch(
    repo: str, revision: str | None = None, *, offline: bool = False, progress: type | None = None
) -> Path:
    """The folder with a model repo's configuration, tokenizer and weights, downloaded if needed.

    `revision` is a commit, a branch or a tag, by default "main". `progress` is a class of bars as
    tqdm's; without one nothing is shown. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    Raises CheckpointError where the files cannot be had, OutputError where they cannot be stored.
    """
    revision = _checked(repo, revision)
    if _COMMIT.fullmatch(revision) and (folder := recorded(repo, revision)):
        return folder
    if offline or _offline_everywhere():
        if folder := cached(repo, revision):
            return folder
        raise CheckpointError(
            f"{repo} at {revision} is not complete on this disk, and the network is not to be "
            f"used: run 'aim-mlx download {repo} --revision {revision}' where it may be"
        )
    try:
        listing = _list(repo, revision)
    except Unreachable:
        if folder := cached(repo, revision):
            return folder
        raise
    folder = recorded(repo, listing.commit) or _download(listing, progress or _silent())
    remember(folder, revision)
    return folder


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The folder of a repo whose weights are all on this disk, else None; no request is made.

    A folder that another program filled serves if it has a config.json and complete weights.
    """
    revision = _checked(repo, revision)
    return recorded(repo, revision) or complete(repo, revision)


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


def _offline_everywhere() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _list(repo: str, revision: str) -> Listing:
    """The repo's files with their sizes and digests, in one request."""
    with explained(repo, revision):
        from huggingface_hub import HfApi, constants

        api = HfApi(library_name="aim-mlx", library_version=__version__)
        info = api.model_info(
            repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files = {}
        for file in info.siblings or []:
            digest = file.lfs.sha256 if file.lfs else file.blob_id
            files[file.rfilename] = RemoteFile(file.rfilename, file.size, digest)
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise ValueError(f"commit {show(info.sha)}")
        if _COMMIT.fullmatch(revision) and info.sha != revision:
            raise ValueError(f"commit {info.sha} for {revision}")
        return Listing(repo, info.sha, files)


def _download(listing: Listing, progress: type) -> Path:
    """Gets what is missing, small files first, and records that everything is there."""
    weights = _choose_weights(listing)
    small = [name for name in SMALL_FILES if name in listing.files]
    limits = {name: LARGEST_SMALL for name in small} | {INDEX_FILE: LARGEST_JSON}
    names = [*small, weights]
    for name in names:
        size = listing.files[name].size
        if name in limits and size is not None and size > limits[name]:
            raise CheckpointError(
                f"{name} of {listing.repo} has {size} bytes, expected at most {limits[name]}: "
                "not a model for this package"
            )
    folder = [_get(listing, name, progress) for name in names][-1].parent
    if weights == INDEX_FILE:
        shards = shard_names(folder / INDEX_FILE)
        for shard in shards:
            if shard not in listing.files:
                raise CheckpointError(f"{listing.repo} lacks the shard {show(shard)} of its index")
        for shard in shards:
            _get(listing, shard, progress)
        names += shards
    record(folder, listing.repo, {name: listing.files[name].digest for name in names})
    return folder


def _choose_weights(listing: Listing) -> str:
    """The weight file to get, or the index of the shards; the first kind that there is."""
    for name in (*WEIGHT_FILES, INDEX_FILE):
        if name in listing.files:
            return name
    pickles = [n for n in sorted(listing.files) if n.endswith((".bin", ".pth", ".pt", ".pkl"))]
    found = f"it has {show(pickles[0])}, a pickle, which can run code" if pickles else "none is"
    raise CheckpointError(
        f"no weights to use in {listing.repo} at {listing.commit}: expected "
        f"{', '.join(WEIGHT_FILES)} or {INDEX_FILE}, {found}"
    )


def _get(listing: Listing, name: str, progress: type) -> Path:
    """One file in the cache with the listed digest; what was there with another is replaced."""
    with explained(listing.repo, listing.commit):
        from huggingface_hub import hf_hub_download

        for _ in range(2 if in_cache(listing.repo, name, listing.commit) else 1):
            path = Path(
                hf_hub_download(
                    listing.repo,
                    name,
                    revision=listing.commit,
                    library_name="aim-mlx",
                    library_version=__version__,
                    tqdm_class=progress,
                )
            )
            if path.parent.name != listing.commit:
                raise ValueError(f"commit {show(path.parent.name)} for {name}")
            fault = _fault(path, listing.files[name])
            if fault is None:
                _sweep(path)
                return path
            _remove(path)
    raise CheckpointError(
        f"{name} of {listing.repo} {fault}: the download was damaged and is removed; run again"
    )


def _fault(path: Path, file: RemoteFile) -> str | None:
    """How a file differs from its listing, or None."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"came with {size} bytes, expected {file.size}"
    if file.digest is None:  # a mirror that lists names only
        return None
    digest = hashlib.sha256()
    if len(file.digest) == 40:  # a small file, kept in git itself
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    if digest.hexdigest() != file.digest:
        return f"came with digest {digest.hexdigest()[:12]}, expected {show(file.digest[:12])}"
    return None


def _remove(path: Path) -> None:
    """Takes a file out of the cache, with the blob its link leads to."""
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Deletes what killed downloads of this file left: the client never uses nor removes it.

    The client's lock admits one download of a blob at a time, and this one is finished.
    """
    with suppress(OSError):
        blob = path.parent / os.readlink(path)
        for rest in blob.parent.glob(glob.escape(blob.name) + ".*.incomplete"):
            rest.unlink()


def _silent() -> type:
    """A class of bars that show nothing."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        monitor_interval = 0  # no thread for bars that are never drawn

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent
