"""The journal: one line a transaction, flushed to the disk; what it says is in the store is.

A shard, or a skipped image, counts from the moment its line is complete. A line that was cut by a
crash never happened.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aim_mlx.durable import flush, publish
from aim_mlx.errors import OutputError
from aim_mlx.store.shards import Shard

NAME = "journal.jsonl"


@dataclass
class State:
    """What a journal says: the live shards in the order of their rows, the last skip of each path.

    `first_frames` are the paths of images with several frames; `finished` is the summary of the
    last run, None while one is not finished.
    """

    shards: list[Shard] = field(default_factory=list)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    first_frames: set[str] = field(default_factory=set)
    finished: dict[str, Any] | None = None

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def apply(self, record: Mapping[str, Any]) -> None:
        """Takes one line into account: shards removed and added, images skipped, run finished."""
        removed = set(record.get("removed", ()))
        added = [Shard(**shard) for shard in record.get("added", ())]
        place = next((i for i, shard in enumerate(self.shards) if shard.name in removed), None)
        place = len(self.shards) if place is None else place
        kept = [shard for shard in self.shards[:place] if shard.name not in removed]
        rest = [shard for shard in self.shards[place:] if shard.name not in removed]
        self.shards = [*kept, *added, *rest]
        for skip in record.get("skipped", ()):
            self.skipped[skip["path"]] = dict(skip)
        self.first_frames.update(record.get("first_frames", ()))
        self.finished = record.get("finished")


class Journal:
    """The journal of a store that this process writes; `state` is what it says so far."""

    def __init__(self, folder: Path, afresh: bool = False):
        self.path = folder / NAME
        self.state, self._size = (State(), 0) if afresh else read(self.path)

    def append(
        self,
        added: Sequence[Shard] = (),
        removed: Iterable[str] = (),
        skipped: Iterable[Mapping[str, Any]] = (),
        first_frames: Iterable[str] = (),
        finished: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one transaction; raises OSError, and then it never happened."""
        record = _record(added, removed, skipped, first_frames, finished)
        line = _line(record)
        with open(self.path, "r+b" if self.path.exists() else "xb") as file:
            file.truncate(self._size)  # what a crash left of a line
            file.seek(self._size)
            file.write(line)
            flush(file)
        self._size += len(line)
        self.state.apply(record)

    def rewrite(self) -> None:
        """Replaces the journal by one that says the same in as few lines as it takes."""
        state = self.state
        skipped, frames = state.skipped.values(), sorted(state.first_frames)
        self._replace(_line(_record(state.shards, (), skipped, frames, state.finished)))

    def clear(self) -> None:
        """Forgets everything."""
        self._replace(b"")
        self.state = State()

    def _replace(self, data: bytes) -> None:
        publish({self.path: lambda file: file.write(data)})
        self._size = len(data)


def read(path: Path) -> tuple[State, int]:
    """What a journal says, and the bytes of its complete lines; raises OutputError."""
    state, size = State(), 0
    try:
        data = path.read_bytes() if os.path.lexists(path) else b""
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            state.apply(json.loads(line))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise OutputError(
                f"line {number} of {str(path)!r} is damaged: restore the file, or embed again with "
                "--overwrite"
            ) from error
        size += len(line) + 1
    return state, size


def _record(
    added: Sequence[Shard],
    removed: Iterable[str],
    skipped: Iterable[Mapping[str, Any]],
    first_frames: Iterable[str],
    finished: Mapping[str, Any] | None,
) -> dict[str, Any]:
    record = {
        "added": [asdict(shard) for shard in added],
        "removed": list(removed),
        "skipped": [dict(skip) for skip in skipped],
        "first_frames": list(first_frames),
        "finished": None if finished is None else dict(finished),
    }
    return {name: value for name, value in record.items() if value not in (None, [])}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
