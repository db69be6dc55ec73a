"""Stores made with --shard on several machines become the one that a single machine would make."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aim_mlx.errors import OutputError, UsageError
from aim_mlx.files import disk_errors, sync_folder
from aim_mlx.store import lists, manifest
from aim_mlx.store.folder import hidden_beside, load_rows, remove
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import Catalog
from aim_mlx.store.shards import Shard, read_table, vectors_of
from aim_mlx.store.verify import verify
from aim_mlx.store.writer import StoreWriter, writing

_PART_ROWS, _PART_BYTES = 4096, 32 << 20  # what is read and sorted into place at a time


@dataclass(frozen=True)
class Merged:
    """The account of the merged store: listed == embedded + skipped + ignored."""

    output: str
    stores: int
    listed: int
    embedded: int
    skipped: int
    ignored: int
    seconds: float

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


class _Share:
    """One store with the lists of its last run."""

    def __init__(self, folder: Path):
        self.store = EmbeddingStore(folder)
        self.name = repr(str(folder))
        self.header, self.files = lists.read_files(folder)
        share = self.header.get("share")
        if share is None:
            raise UsageError(
                f"{self.name} was made without --shard, so it is not a share: "
                "give the stores of --shard 1/n to n/n"
            )
        self.number, self.count = share


def merge(folders: Sequence[Path], target: Path) -> Merged:
    """Writes a store with the rows of all shares, sorted by path; it appears by one rename.

    Raises UsageError where the stores are not each share of one division once, OutputError where
    one is not sound, finished and of the same vectors and files as the others, and for a target
    that is there already. Memory does not grow with the vectors.
    """
    started = time.monotonic()
    if target.is_symlink() or (target.exists() and not _is_empty(target)):
        raise OutputError(f"{str(target)!r} exists: choose a new folder")
    shares = sorted(map(_Share, folders), key=lambda share: share.number)
    _check_division(shares)
    first = shares[0]
    for share in shares:
        _check_like(share, first)
    for share in shares:
        _check_sound(share)
    files = _all_files(shares)
    skips = sorted(
        (skip for share in shares for skip in share.store.skipped),
        key=lambda skip: os.fsencode(skip["path"]),
    )
    # Each share has met all files that are ignored; a stray one more or less is no matter.
    ignored = max(share.header["ignored"] for share in shares)
    own = sum(share.header["listed"] - share.header["ignored"] for share in shares)
    header = {
        **first.header,
        "listed": own + ignored,
        "ignored": ignored,
        "share": None,
        "output": lists.place(target),
        "folder": lists.started_in(first.store.folder),
    }
    with _appearing(target) as writer:
        writer.begin(first.store.manifest)
        writer.start_run(header, files, skips)
        _copy(shares, writer)
        settled = {path for share in shares for path in share.store._state.skipped}
        for skip in skips:
            if skip["path"] in settled:
                writer.skip(skip)
        writer.end_block()
        writer.commit()
        writer.compact(())
        merged = Merged(
            output=str(target),
            stores=len(shares),
            listed=own + ignored,
            embedded=own - len(skips),
            skipped=len(skips),
            ignored=ignored,
            seconds=round(time.monotonic() - started, 3),
        )
        writer.finish(asdict(merged), skips)
    return merged


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not os.listdir(folder)


def _check_division(shares: Sequence[_Share]) -> None:
    """Raises UsageError unless these are the shares 1 to n of n, each once."""
    count = shares[0].count
    given = Counter((share.number, share.count) for share in shares)
    expected = Counter((number, count) for number in range(1, count + 1))
    wrong = [f"{n}/{of} is missing" for n, of in expected - given]
    for n, of in given - expected:
        names = [s.name for s in shares if (s.number, s.count) == (n, of)]
        wrong.append(f"{n}/{of} is one too many ({' and '.join(names[:5])})")
    if wrong:
        raise UsageError(
            f"expected the stores of --shard 1/{count} to {count}/{count}, each once: "
            f"{', '.join(wrong[:5])}"
        )


def _check_like(share: _Share, first: _Share) -> None:
    """Raises OutputError where two shares have different vectors or lists of files."""
    name = manifest.difference(share.store.manifest, first.store.manifest)
    if name is not None:
        raise OutputError(
            f"{share.name} and {first.name} have different vectors (their {name} differs): "
            "embed one of them again as the other was"
        )
    if share.header.get("all_files") != first.header.get("all_files"):
        raise OutputError(
            f"{share.name} and {first.name} were made from different lists of files: embed "
            "both again, from the same photos under the same names"
        )


def _check_sound(share: _Share) -> None:
    findings = verify(share.store)
    if findings.faults:
        raise OutputError(f"{share.name}: {findings.faults[0]}")
    if not findings.complete:
        raise OutputError(
            f"the last run into {share.name} was not finished: run the same embed again, then merge"
        )


def _all_files(shares: Sequence[_Share]) -> list[str]:
    """The list that was divided; raises OutputError where the shares do not make it up."""
    files = sorted((path for share in shares for path in share.files), key=os.fsencode)
    if lists.digest_of_paths(files) != shares[0].header.get("all_files"):
        raise OutputError(
            "the shares do not make up the list of files that was divided: embed all again"
        )
    return files


@contextmanager
def _appearing(target: Path) -> Iterator[StoreWriter]:
    """A new store in a hidden folder, which takes the target's place at the end.

    What a crash left there is overwritten. All happens under the lock of the hidden folder, so that
    of two merges into one target the second is refused and touches nothing of the first.
    """
    folder = hidden_beside(target)
    with writing(folder, overwrite=True) as writer:
        try:
            with disk_errors("write", target, "the stores are as they were"):
                yield writer
                os.rename(folder, target)
                sync_folder(target.parent)
        except BaseException:
            if folder.is_dir():
                remove(folder)
            raise


def _copy(shares: Sequence[_Share], writer: StoreWriter) -> None:
    """All rows into one store, sorted by the bytes of their paths."""
    catalog, shards = Catalog(), []
    for share in shares:
        load_rows(share.store.folder, share.store._state.shards, catalog)
        shards += [(share.store.folder, shard) for shard in share.store._state.shards]
    _check_unique(catalog, [folder for folder, _ in shards])
    order = sorted(range(len(catalog)), key=lambda row: os.fsencode(catalog.path(row)))
    frames = {path for share in shares for path in share.store._state.first_frames}
    dim = shares[0].store.dim
    part = max(1, min(_PART_ROWS, _PART_BYTES // (4 * dim)))
    for start in range(0, len(order), part):
        rows = order[start : start + part]
        for row, vector in zip(rows, _vectors(rows, catalog, shards, dim), strict=True):
            writer.add(catalog.row(row), vector, catalog.path(row) in frames)
            writer.end_block()


def _check_unique(catalog: Catalog, folders: Sequence[Path]) -> None:
    """Raises OutputError for a path with two rows; `folders` are those of the shards."""
    for row in range(len(catalog)):
        if (other := catalog.find(path := catalog.path(row))) not in (row, None):
            a, b = (repr(str(folders[catalog.place(each)[0]])) for each in (row, other))
            raise OutputError(
                f"{path!r} has a row in {a} and in {b}: embed the shares again into new folders"
            )


def _vectors(
    rows: Sequence[int], catalog: Catalog, shards: Sequence[tuple[Path, Shard]], dim: int
) -> np.ndarray:
    """The vectors of these rows, float32 (n, D); each shard they are in is read once."""
    vectors = np.empty((len(rows), dim), np.float32)
    shard_of, place = np.array([catalog.place(row) for row in rows]).T
    for number in np.unique(shard_of):
        mine = shard_of == number
        folder, shard = shards[number]
        vectors[mine] = vectors_of(read_table(folder, shard, ["embedding"]))[place[mine]]
    return vectors
