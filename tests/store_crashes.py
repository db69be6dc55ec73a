"""Runs with an encoder of no cost on a disk that can be cut off at any of its operations.

As a program, `python -m tests.store_crashes JOB`: runs the job again and again in processes of its
own, each killed at another point, and leaves what they left. It does no work before it forks, so
that no thread is lost by it.
"""

import builtins
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.config import PreprocessConfig
from aim_mlx.embedding import job as embedding
from aim_mlx.embedding.job import Summary, embed_files
from aim_mlx.embedding.selection import Job, Rules, Selection
from aim_mlx.encoder.encoder import Embedded, EmbedOptions, Encoder
from aim_mlx.errors import ImageError
from aim_mlx.files import LOCK
from aim_mlx.images import Contents, Listing, Skip
from aim_mlx.images.contents import reading
from aim_mlx.store import journal, lists, manifest, writer
from aim_mlx.store.manifest import describe
from aim_mlx.store.reader import EmbeddingStore
from tests.small import SMALL

DIM = 9
BLOCK = 2
_FSYNC = os.fsync
SHARD_ROWS = 5


class StubEncoder(Encoder):
    """Vectors that tell the content of their files, at no cost.

    The last number is how many images were computed together, as the sums of a real encoder depend
    on it: it shows where a run made other batches than one that was not interrupted.
    """

    def __init__(self):
        model: Any = SimpleNamespace(config=SMALL)
        super().__init__(model, PreprocessConfig.hub(56), identity={"model": "stub", "path": "-"})
        self.weights_digest = "0" * 64

    @property
    def dtype(self):
        return mx.float32

    def dim(self, options: EmbedOptions) -> int:
        return DIM

    def embed_stream(self, images: Any, options=None, block=None, stop=None, known=None):
        contents = Contents(known or (lambda digest: False))
        block = block or len(images)
        for start in range(0, len(images), block):
            part = range(start, min(start + block, len(images)))
            rows = [_embedded(index, images[index], contents) for index in part]
            together = sum(row.output is not None for row in rows)
            for row in rows:
                if row.output is not None:
                    row.output[-1] = together
            yield from rows


STUB = StubEncoder()


def _embedded(index: int, path: str, contents: Contents) -> Embedded:
    row = Embedded(index, path)
    try:
        with reading(path) as (row.content, file):
            data = file.read()
        row.repeats = not contents.is_new(row.content, index)
        if not row.repeats and data.startswith(b"bad"):
            raise ImageError("not_image", "it begins with bad")
    except ImageError as failure:
        row.failure = failure
        return row
    if not row.repeats:
        row.output, row.multi_frame = vector_of(data), data.startswith(b"film")
        row.width, row.height = len(data), 1
    return row


def vector_of(data: bytes) -> np.ndarray:
    """float32 (DIM,), all but the last number decided by the content."""
    numbers = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)[: DIM - 1]
    return np.append(numbers, 0).astype(np.float32)


class Silent:
    """A report to nobody."""

    def listed(self, listing: Listing) -> None: ...
    def unchanged(self, count: int) -> None: ...
    def skipped(self, skip: Skip) -> None: ...
    def embedded(self, path: str) -> None: ...
    def noted(self, note: str) -> None: ...


class Notes(Silent):
    """A report that keeps what was noted."""

    def __init__(self):
        self.notes: list[str] = []

    def noted(self, note: str) -> None:
        self.notes.append(note)


@contextmanager
def small_steps() -> Iterator[None]:
    """Blocks of two images, each a commit, and shards of five rows."""
    with (
        mock.patch.object(embedding, "block_size", lambda *_: BLOCK),
        mock.patch.object(writer, "_SECONDS", 0.0),
        mock.patch.object(writer, "_SHARD_ROWS", SHARD_ROWS),
    ):
        yield


def run(photos: Path, output: Path, report: Any = None, **rules: bool) -> Summary:
    """embed_files() in small steps, without waiting for the disk: no power fails here."""
    flush = _no_flush if os.fsync is _FSYNC else os.fsync
    job = Job(Selection((str(photos),)), output, EmbedOptions(), Rules(**rules))
    with (
        small_steps(),
        mock.patch.object(os, "fsync", flush),
        mock.patch.object(embedding, "describe", lambda *_: dict(_manifest())),
    ):
        return embed_files(job, lambda: STUB, report or Silent())


def _no_flush(handle: int) -> None:
    pass


@cache
def _manifest() -> dict[str, Any]:
    """The same in all runs."""
    return describe(STUB, EmbedOptions()) | {"created": ""}


class Disk:
    """Calls `stop` just before the n-th operation that changes a file or folder, or amid a write.

    `count` are the operations so far; of many writes to one file every 16th is one. Flushes are
    such only where asked for: for a process that is killed they make no difference. `for_good`
    stops all further operations too, as the end of a process does.
    """

    def __init__(
        self, n: int, stop: Callable[[], None], flushes: bool = False, for_good: bool = False
    ):
        self._n, self._stop, self._flushes, self._for_good = n, stop, flushes, for_good
        self.count = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        names = ("replace", "rename", "unlink", "rmdir", "mkdir", "ftruncate", "pwrite")
        real_open, os_open = builtins.open, os.open
        watching: dict[str, Any] = {name: self._watching(getattr(os, name)) for name in names}
        if self._flushes:
            watching["fsync"] = self._watching(_no_flush)
        with mock.patch.multiple(os, **watching):

            def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
                call = self._watching(os_open) if flags & os.O_CREAT else os_open
                return call(path, flags, *rest, **more)

            def opened_file(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
                if not set(mode) & set("wax+"):
                    return real_open(path, mode, *rest, **more)
                return _File(self, self._watching(real_open)(path, mode, *rest, **more))

            with mock.patch.object(os, "open", opened), mock.patch("builtins.open", opened_file):
                yield

    def _watching(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **more: Any) -> Any:
            return self.do(lambda: call(*arguments, **more), lambda: None)

        return watched

    def do(self, whole: Callable[[], Any], half: Callable[[], Any]) -> Any:
        """One operation; `half` is what there is of it where it is stopped."""
        self.count += 1
        if self.count - 1 == self._n:
            half()
            self._stop()
        if self.count - 1 > self._n >= 0 and self._for_good:
            self._stop()
        return whole()


class _File:
    """A file whose writes are operations of a disk; nothing waits in a buffer."""

    def __init__(self, disk: Disk, file: Any):
        self._disk, self._file, self._writes = disk, file, 0

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._writes += 1
        if self._writes % 16 != 1:
            return self._put(data)
        return self._disk.do(lambda: self._put(data), lambda: self._put(data[: len(data) // 2]))

    def writelines(self, lines: Any) -> None:
        self.write(b"".join(lines))

    def _put(self, data: bytes) -> int:
        self._file.write(data)
        self._file.flush()
        return len(data)


def all_vectors(store: EmbeddingStore) -> np.ndarray:
    parts = [vectors for _, vectors in store.parts()]
    return np.concatenate(parts) if parts else np.empty((0, store.dim), np.float32)


def facts(output: Path) -> dict[str, Any]:
    """Everything of a finished store that must not depend on how it came about."""
    store = EmbeddingStore(output)
    header, files = lists.read_files(output)
    ours = {manifest.NAME, journal.NAME, lists.FILES, lists.SKIPPED, LOCK}
    return {
        "finished": store.finished,
        "rows": store.table().to_pylist(),
        "vectors": all_vectors(store).tobytes(),
        "skipped": store.skipped,
        "first frames": sorted(store._state.first_frames),
        "files": ({**header, "output": ""}, files),  # where it is
        "leftovers": set(os.listdir(output)) - ours - {shard.name for shard in store._state.shards},
    }


def killed_runs(job: dict[str, Any]) -> None:
    """A run killed at every point, and some at random times, each with its own folder.

    `job`: photos, into (the folder of the folders), before (what is in each to begin with), name
    (of the output), rules, last (only so many operations before the end), random (how many).
    """

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    into = Path(job["into"])
    # A first run that is not killed counts, and sets up what would cost each of the others a third
    # of a second. Arrow starts its threads anew after a fork, those of the run have ended.
    disk = Disk(-1, kill)
    shutil.copytree(job["before"], into / "warm")
    with disk.watched():
        run(Path(job["photos"]), into / "warm" / job["name"], **job["rules"])
    shutil.rmtree(into / "warm")
    started = time.monotonic()
    points = range(max(0, disk.count - job["last"]), disk.count)
    for n in points:
        code = _forked(job, f"{n:04}", Disk(n, kill))
        assert code == -signal.SIGKILL, f"{n}: {code}"
    seconds = (time.monotonic() - started) / len(points)
    rng = np.random.default_rng(0)
    for i in range(job["random"]):
        _forked(job, f"random-{i}", Disk(-1, kill), rng.uniform(0, 1.5 * seconds))


def _forked(job: dict[str, Any], name: str, disk: Disk, delay: float | None = None) -> int:
    """How a run in a process of its own ended, killed after `delay` seconds if one is given."""
    folder = Path(job["into"]) / name
    shutil.copytree(job["before"], folder)
    child = os.fork()
    if not child:
        code = 1
        try:
            with disk.watched():
                run(Path(job["photos"]), folder / job["name"], **job["rules"])
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    killed_runs(json.loads(sys.argv[1]))
