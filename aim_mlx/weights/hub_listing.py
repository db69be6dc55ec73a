"""The files of a model repo as the Hub lists them: sound names, with their sizes and digests."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aim_mlx import __version__
from aim_mlx.weights.hub_errors import explained
from aim_mlx.weights.strict_json import parse_object, show

LARGEST_LISTING = 8 * 2**20  # bytes; a repo of ten thousand files needs two million
COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it; `digest` is its sha256, or its git blob's sha1, in hex.

    A mirror may list names only: then both are None.
    """

    name: str
    size: int | None
    digest: str | None

    def fault(self, path: Path) -> str | None:
        """How a file on this disk differs from the listed one, or None."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"came with {size} bytes, expected {self.size}"
        if self.digest is None:
            return None
        digest = hashlib.sha256()
        if len(self.digest) == 40:  # a small file, kept in git itself
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with open(path, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
        if digest.hexdigest() != self.digest:
            return f"came with digest {digest.hexdigest()[:12]}, expected {self.digest[:12]}"
        return None


@dataclass(frozen=True)
class RepoListing:
    """The files of a repo at one commit."""

    repo: str
    commit: str
    files: dict[str, RemoteFile]


def list_repo(repo: str, revision: str) -> RepoListing:
    """The repo's files with their sizes and digests, in one request."""
    with explained(repo, revision):
        values = parse_object(_request_list(repo, revision), f"the Hub's list of {repo}")
        commit, entries = values.get("sha"), values.get("siblings") or []
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise ValueError(f"commit {show(commit)}")
        if COMMIT.fullmatch(revision) and commit != revision:
            raise ValueError(f"commit {commit} for {revision}")
        files = [_remote_file(entry) for entry in entries]
        if len({file.name for file in files}) < len(files):
            raise ValueError("one file listed twice")
        return RepoListing(repo, commit, {file.name: file for file in files})


def _request_list(repo: str, revision: str) -> bytes:
    """What the Hub answers, bounded in bytes: the client itself would read whatever comes."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    name = quote(revision, safe="")
    url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{name}?blobs=true"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    answer = bytearray()
    with get_session().stream("GET", url, headers=headers(), timeout=timeout) as response:
        hf_raise_for_status(response)
        for block in response.iter_bytes():
            answer += block
            if len(answer) > LARGEST_LISTING:
                raise ValueError(f"a list of more than {LARGEST_LISTING} bytes")
    return bytes(answer)


def _remote_file(entry: dict[str, Any]) -> RemoteFile:
    """An entry of the list, whose digest will name a file in the cache; ValueError if unsound."""
    large = entry.get("lfs") or {}
    file = RemoteFile(
        entry["rfilename"], entry.get("size"), large.get("sha256") or entry.get("blobId")
    )
    if not isinstance(file.name, str):
        raise ValueError(f"a file named {show(file.name)}")
    if file.size is not None and (type(file.size) is not int or file.size < 0):
        raise ValueError(f"size {show(file.size)} of {show(file.name)}")
    if file.digest is not None and not _DIGEST.fullmatch(file.digest):
        raise ValueError(f"digest {show(file.digest)} of {show(file.name)}")
    return file


def headers() -> dict[str, str]:
    """Of every request: who asks, the user's token, and that files come as they are."""
    from huggingface_hub.utils import build_hf_headers

    known = build_hf_headers(library_name="aim-mlx", library_version=__version__)
    return known | {"Accept-Encoding": "identity"}
