"""The loop of a run: files to rows of a store, each content decoded once, block by block."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np

from aim_mlx.embedding.plan import looked_at
from aim_mlx.encoder.encoder import Embedded, EmbedOptions, Encoder
from aim_mlx.errors import AimError, ImageError, OutputError
from aim_mlx.images import Content, Listing, Skip, changed, is_beyond_times
from aim_mlx.store.rows import Row
from aim_mlx.store.writer import StoreWriter
from aim_mlx.wording import counted

# Reasons that lie in a file's place or its disk: another file with this content may do well.
_OF_THE_PLACE = ("unreadable", "vanished", "changed", "not_regular")


class EmbedReport(Protocol):
    """What a run says while it goes on."""

    def listed(self, listing: Listing) -> None: ...
    def unchanged(self, count: int) -> None: ...
    def skipped(self, skip: Skip) -> None: ...
    def embedded(self, path: str) -> None: ...
    def noted(self, note: str) -> None: ...


class EmbedRun:
    """One run into a store that is open; counts what became of the files it was given."""

    def __init__(
        self,
        store: StoreWriter,
        encoder: Encoder,
        options: EmbedOptions,
        report: EmbedReport,
        stop: Callable[[], bool],
    ):
        self._store, self._encoder, self._options = store, encoder, options
        self._report, self._stop = report, stop
        self._failed: dict[str, ImageError] = {}  # by the digest of what failed
        self._again: list[str] = []
        self.computed = self.reused = 0
        self._first_frames = self._beyond_times = 0
        self.skipped: list[dict[str, Any]] = []

    def embed(self, paths: Sequence[str], block: int) -> None:
        """Embeds files in order; whole blocks are committed, also where it ends before its time.

        Raises Interrupted where it was asked to stop.
        """
        while paths:
            self._again = []
            self._embed(paths, block)
            paths = self._again
        if self._first_frames:
            self._report.noted(
                "the first frame was embedded of "
                f"{counted(self._first_frames, 'image')} with several"
            )
        if self._beyond_times:
            self._report.noted(
                "times of change outside the years 1677 to 2262 were brought within them "
                f"({self._beyond_times} of the files): there only a new size shows that a file "
                "changed"
            )

    def _embed(self, paths: Sequence[str], block: int) -> None:
        store = self._store
        rows = self._encoder.embed_stream(paths, self._options, block, self._stop, store.has)
        try:
            with closing(rows):
                for row in rows:
                    self._take(row)
                    if (row.index + 1) % block == 0 or row.index + 1 == len(paths):
                        store.end_block()
        except OutputError:
            raise
        except AimError:
            store.commit()
            raise
        store.commit()

    def _take(self, row: Embedded) -> None:
        """What became of one file: a row of the store, or a skip."""
        content, failure = row.content, row.failure
        if content is not None and row.repeats:
            self._reuse(row.path, content)
        elif content is not None and (change := changed(row.path, content)) is not None:
            self._skip(row.path, change, content)
        elif failure is not None:
            if content is not None and failure.reason not in _OF_THE_PLACE:
                self._failed[content.digest] = failure
            self._skip(row.path, failure, content)
        elif content is not None:
            file = (row.path, content.digest, content.size, content.mtime_ns)
            self._add(Row(*file, row.width, row.height), row.vector, row.multi_frame)
            self.computed += 1

    def _reuse(self, path: str, content: Content) -> None:
        found = self._store.find(content.digest)
        if found is not None:
            row, vector, first_frame = found
            row = replace(row, path=path, size=content.size, mtime_ns=content.mtime_ns)
            self._add(row, vector, first_frame)
            self.reused += 1
        elif (failure := self._failed.get(content.digest)) is not None:
            self._skip(path, failure, content)
        else:  # the first file with this content failed, not the content
            self._again.append(path)

    def _add(self, row: Row, vector: np.ndarray, first_frame: bool) -> None:
        self._store.add(row, vector, first_frame)
        self._first_frames += first_frame
        self._beyond_times += is_beyond_times(row.mtime_ns)
        self._report.embedded(row.path)

    def _skip(self, path: str, failure: ImageError, content: Content | None) -> None:
        skip = Skip(path, failure.reason, failure.detail)
        record = skip_record(skip, content)
        self._store.skip(record)
        self.skipped.append(record)
        self._report.skipped(skip)


def skip_record(skip: Skip, content: Content | None = None) -> dict[str, Any]:
    """A skip as it is written down, with size and time of the file where they are known."""
    found = (content.size, content.mtime_ns) if content else looked_at(skip.path)
    size, mtime_ns = found or (None, None)
    return {**asdict(skip), "size": size, "mtime_ns": mtime_ns}
