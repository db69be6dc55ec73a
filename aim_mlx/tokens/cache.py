"""Tokens of a frozen trunk on disk, computed once: float16 shards, known by the images' content.

FOLDER/KEY/tokens-000000.npy ... are arrays of records (digest, sum, tokens), each written whole by
one rename and never changed; the sum is the tokens' SHA-256. KEY stands for the encoder, its
preprocessing and the layers, which FOLDER/KEY/identity.json states. What is there is never computed
again, whatever its name.

Images are computed in blocks of the list that fill() is given, and whole blocks are kept: a run
that was interrupted computes the others in the batches that it would have had.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.encoder.encoder import Encoder
from aim_mlx.encoder.pipeline import block_size
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.files import TEMPORARY, disk_errors, locked, publish, regular
from aim_mlx.images import Content, ImageSource, Skip
from aim_mlx.tokens.source import frozen_tokens, token_identity, token_shape

_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 60.0  # the most work that a kill can cost
_READERS = 2  # threads that read tokens for the first time
_HEADER_BYTES = 256  # at most, of a shard; reckoned for every image, as time may close a shard

Progress = Callable[[int, int], None]  # images done, images to do
# Files and what their tokens are known by -> what is decoded in their place.
View = Callable[[Sequence[ImageSource], Sequence[str]], Sequence[ImageSource]]


class TokenCache:
    """The cached tokens of one encoder, in a folder that several may share.

    `limit` bounds the bytes of all shards in the folder, those of other encoders included. Raises
    UsageError for a native-resolution model, OutputError for a folder that cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        encoder: Encoder,
        layers: Sequence[int] = (),
        limit: int | None = None,
    ):
        self.shape = token_shape(encoder)
        self.limit = limit
        self.identity = token_identity(encoder, layers)
        self._encoder, self._layers = encoder, tuple(layers)
        self._root = Path(folder)
        self._folder = self._root / hashlib.sha256(_text(self.identity)).hexdigest()[:32]
        self._record = record_of(self.shape)
        self._shards: list[_OpenShard] = []
        self._where: dict[bytes, tuple[int, int]] = {}
        with self._storing():
            self._open_shards()

    def missing(self, digests: Sequence[str]) -> list[str]:
        """The digests whose tokens are not there, each once."""
        return [each for each in dict.fromkeys(digests) if _key(each) not in self._where]

    def bytes_to_add(self, digests: Sequence[str]) -> int:
        """What filling in these would take on the disk, at most."""
        return len(self.missing(digests)) * (self._record.itemsize + _HEADER_BYTES)

    def fits(self, digests: Sequence[str]) -> bool:
        """Whether filling in these stays within the limit."""
        return self.bytes_to_add(digests) <= self.room

    @property
    def room(self) -> float:
        """The bytes left below the limit; less than 0 in a folder that was given more before."""
        return math.inf if self.limit is None else self.limit - self._used()

    def fill(
        self,
        images: Mapping[str, tuple[str, Content]],
        progress: Progress | None = None,
        view: View | None = None,
    ) -> list[Skip]:
        """Computes the tokens of images, key -> (path, content), that are not there yet.

        The key is the digest of the content, or of a view of it, which `view` then gives. Returns
        those that could not be decoded, with the reason. Whatever ends it early, whole blocks of
        images stay; the same call computes the others, to the same bits. Raises UsageError where
        the limit does not allow it, OutputError where the disk does not, and AimError for tokens
        that float16 cannot hold.
        """
        missing = self.missing(list(images))
        if not missing:
            return []
        if not self.fits(missing):
            raise UsageError(
                f"the tokens need {self.bytes_to_add(missing):,} bytes on top of {self._used():,}, "
                f"the limit is {self.limit:,}: raise it"
            )
        with self._storing():
            self._prepare(self.bytes_to_add(missing))
            with locked(self._folder):
                self._open_shards(clean=True)  # another process may have filled some in
                return self._compute(images, progress, view)

    def rows(self, digests: Sequence[str]) -> "CachedTokens":
        """The tokens of a list of images, to be read by their place in it."""
        places = np.array([self._where[_key(digest)] for digest in digests], np.int64)
        return CachedTokens(self._shards, places.reshape(-1, 2))

    def _compute(
        self,
        images: Mapping[str, tuple[str, Content]],
        progress: Progress | None,
        view: View | None,
    ) -> list[Skip]:
        """The tokens of those images that are not there, each in its block of them all."""
        keys = list(images)
        paths = [path for path, _ in images.values()]
        files: list[ImageSource] = [content.at(path) for path, content in images.values()]
        block = block_size(self._encoder.model, None)
        places = [i for i, key in enumerate(keys) if _key(key) not in self._where]
        shard, skips = _Shard(self._record, block), []
        chosen = view(files, keys) if view else files
        tokens = frozen_tokens(self._encoder, paths, self._layers, chosen, block, places)
        try:
            with closing(tokens) as rows:
                for done, row in enumerate(rows, 1):
                    if row.failure is not None:
                        skips.append(Skip.of(paths[row.index], row.failure))
                    else:
                        shard.add(_key(keys[row.index]), row.vector)
                    if done == len(places) or places[done] // block > row.index // block:
                        shard.end_block()
                    if shard.full:
                        self._publish(shard.take())
                    if progress is not None:
                        progress(done, len(places))
        finally:  # what was computed is kept, whatever came
            self._publish(shard.take())
        return skips

    def _storing(self) -> AbstractContextManager[None]:
        return disk_errors("keep tokens in", self._root, "finished shards are kept")

    def _publish(self, records: np.ndarray) -> None:
        if not len(records):
            return
        with _turn(self._root):
            for path in self._root.glob(f"*/.tokens-*{TEMPORARY}"):  # of runs that were killed
                path.unlink()
            needed = self._used() + records.nbytes + _HEADER_BYTES
            if self.limit is not None and needed > self.limit:
                raise OutputError(
                    f"{str(self._root)!r} has grown to its limit of {self.limit:,} bytes by "
                    "another's work: raise the limit, or choose another folder"
                )
            number = max((int(path.stem[7:]) + 1 for path in self._files()), default=0)
            path = self._folder / f"tokens-{number:06d}.npy"
            publish({path: lambda file: np.save(file, records, allow_pickle=False)})
        self._open_shard(path)

    def _prepare(self, needed: int) -> None:
        """Makes the folder; raises OutputError where the disk is too small."""
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise OutputError(
                f"the tokens need {needed:,} bytes, {str(self._root)!r} has {free:,} free: "
                "make room, choose another folder, or lower the limit to stream from the images"
            )
        publish({self._folder / "identity.json": _text(self.identity) + b"\n"})

    def _open_shards(self, clean: bool = False) -> None:
        self._shards.clear()
        self._where.clear()
        for path in self._files():
            if not self._open_shard(path) and clean:
                path.unlink()  # damaged: its images are computed again
        if clean:
            for path in self._folder.glob(f".*{TEMPORARY}"):  # of a run that was killed
                path.unlink()

    def _open_shard(self, path: Path) -> bool:
        """Maps a shard; False where it is not sound."""
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        try:
            records = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError:
            raise
        except Exception:  # of as many kinds as a header can be damaged in
            return False
        if records.dtype != self._record or records.ndim != 1:
            return False
        for row, digest in enumerate(_digests(path, records)):
            self._where[digest] = (len(self._shards), row)
        self._shards.append(_OpenShard(path, records))
        return True

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("tokens-[0-9]*.npy"))

    def _used(self) -> int:
        return sum(path.stat().st_size for path in self._root.glob("*/tokens-*.npy"))


class _OpenShard:
    """A mapped shard, which remembers whose tokens were compared with their sum."""

    def __init__(self, path: Path, records: np.ndarray):
        self.path = path
        self.tokens = np.asarray(records["tokens"])
        self._sums = np.asarray(records["sum"])
        self.compared = np.zeros(len(records), bool)

    def compare(self, row: int) -> None:
        """Raises OutputError for tokens that are not what was written."""
        if _sum(self.tokens[row]) != self._sums[row].tobytes():
            raise OutputError(
                f"{str(self.path)!r} is damaged: remove it, and the same command computes its "
                "tokens again"
            )
        self.compared[row] = True


class CachedTokens:
    """Memory-mapped tokens of a list of images."""

    def __init__(self, shards: Sequence[_OpenShard], places: np.ndarray):
        self.shape: tuple[int, int] = shards[0].tokens.shape[1:] if shards else (0, 0)
        self._shards = list(shards)
        self._places = places  # (images, 2): shard and row

    def batch(self, indices: Sequence[int] | np.ndarray) -> Sequence[np.ndarray]:
        """The tokens of images by their place in the list, float16 (N, D) each, still on disk.

        Raises OutputError, naming the file, where they are not what was written.
        """
        places = self._places[np.asarray(indices, np.int64)]
        chosen = [(self._shards[shard], row) for shard, row in places]
        new = [(shard, row) for shard, row in chosen if not shard.compared[row]]
        if new:
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(lambda each: each[0].compare(each[1]), new))
        return [shard.tokens[row] for shard, row in chosen]


class _Shard:
    """Records of whole blocks of images that wait to be written together."""

    def __init__(self, record: np.dtype, block: int):
        blocks = max(1, _SHARD_BYTES // (block * record.itemsize))
        self._records = np.empty(blocks * block, record)
        self._block = block
        self._count = self._whole = 0  # records, and those of blocks that have ended
        self._started = time.monotonic()

    def add(self, digest: bytes, tokens: np.ndarray | None) -> None:
        self._records[self._count]["digest"] = np.frombuffer(digest, np.uint8)
        self._records[self._count]["tokens"] = tokens
        self._records[self._count]["sum"] = np.frombuffer(
            _sum(self._records[self._count]["tokens"]), np.uint8
        )
        self._count += 1

    def end_block(self) -> None:
        self._whole = self._count

    @property
    def full(self) -> bool:
        """Whether a block has ended and the next has no room, or would come too late."""
        if not self._whole == self._count > 0:
            return False
        late = time.monotonic() - self._started >= _SHARD_SECONDS
        return late or self._count + self._block > len(self._records)

    def take(self) -> np.ndarray:
        """The records of whole blocks; those of a block that was not finished are dropped."""
        records, self._count, self._whole = self._records[: self._whole], 0, 0
        self._started = time.monotonic()
        return records


def record_of(shape: tuple[int, int]) -> np.dtype:
    """What a shard holds of an image whose tokens are (N, D)."""
    return np.dtype([("digest", "u1", (32,)), ("sum", "u1", (32,)), ("tokens", "<f2", shape)])


def _sum(tokens: np.ndarray) -> bytes:
    return hashlib.sha256(tokens.data).digest()


def _digests(path: Path, records: np.ndarray) -> Iterator[bytes]:
    """The digests in a shard, read one by one.

    Of a mapped file the system would read and keep what lies around each: half of the whole cache.
    """
    start = path.stat().st_size - records.nbytes
    with open(path, "rb", buffering=0) as file:
        for row in range(len(records)):
            yield os.pread(file.fileno(), 32, start + row * records.itemsize)


def _text(identity: Mapping[str, Any]) -> bytes:
    return json.dumps(identity, sort_keys=True, indent=1).encode()


def _key(digest: str) -> bytes:
    return bytes.fromhex(digest)


@contextmanager
def _turn(folder: Path):
    """Waits until no other process writes a shard below the folder, whichever encoder's.

    So nobody's unfinished shard is passed over where the limit is checked, and one that is there is
    a dead process's.
    """
    handle = regular(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
