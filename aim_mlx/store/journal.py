"""The journal: one line a transaction, flushed to the disk; what it says is in the store is.

A shard, or a skipped image, counts from the moment its line is complete. A last line that was cut
by a crash never happened. Every line has a checksum, and the first says how many bytes were
published with it in one piece: where they are not all there it was no crash, and no shard a stray.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aim_mlx.errors import OutputError
from aim_mlx.files import disk_errors, flush, open_regular, publish, read_regular
from aim_mlx.store.lists import PATH, SHA256, SKIP, Damaged, Kind, check, parse, whole
from aim_mlx.store.shards import MOST_ROWS, Shard, number_of

NAME = "journal.jsonl"
_REPAIR = "restore the file, or embed again with --overwrite"
_LARGEST = 1 << 30  # bytes; a million skips are a quarter of it
_NAME = Kind("the name of a shard", lambda v: isinstance(v, str) and number_of(v) is not None)
_LINE = {
    "base?": whole(),
    "added?": [{"name": _NAME, "rows": whole(1, MOST_ROWS), "bytes": whole(1), "sha256": SHA256}],
    "removed?": [_NAME],
    "skipped?": [SKIP],
    "first_frames?": [PATH],
    "whole?": [PATH],
    "finished?": {
        **{name: whole() for name in ("listed", "embedded", "skipped", "ignored")},
        "files": SHA256,
    },
}


@dataclass
class State:
    """What a journal says: the live shards in the order of their rows, the last skip of each path.

    `first_frames` are the paths of images with several frames; `finished` is the summary of the
    last run, None while one is not finished: then `tried` are the paths that it has skipped.
    """

    shards: list[Shard] = field(default_factory=list)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    first_frames: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)
    finished: dict[str, Any] | None = None

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def apply(self, record: Mapping[str, Any]) -> None:
        """Takes one line into account: shards removed and added, images skipped, run finished."""
        removed = set(record.get("removed", ()))
        added = [
            Shard(each["name"], each["rows"], each["bytes"], each["sha256"])
            for each in record.get("added", ())
        ]
        shards = self.shards
        place = next((i for i, each in enumerate(shards) if each.name in removed), len(shards))
        rest = [each for each in shards[place:] if each.name not in removed]
        self.shards = [*shards[:place], *added, *rest]
        for skip in record.get("skipped", ()):
            self.skipped[skip["path"]] = dict(skip)
            self.tried.add(skip["path"])
        self.first_frames.difference_update(record.get("whole", ()))
        self.first_frames.update(record.get("first_frames", ()))
        self.finished = record.get("finished")
        if self.finished is not None:
            self.tried.clear()


class Journal:
    """The journal of a store that this process writes; `state` is what it says so far."""

    def __init__(self, folder: Path, new: bool = False):
        self.path = folder / NAME
        self.state, self._size = (State(), 0) if new else read(self.path)

    def append(
        self,
        added: Sequence[Shard] = (),
        removed: Iterable[str] = (),
        skipped: Iterable[Mapping[str, Any]] = (),
        first_frames: Iterable[str] = (),
        whole: Iterable[str] = (),
        finished: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one transaction; raises OSError, and then it never happened.

        `whole` are paths that are no longer among the first frames.
        """
        record = _without_empty(
            added=[asdict(shard) for shard in added],
            removed=list(removed),
            skipped=[dict(skip) for skip in skipped],
            first_frames=list(first_frames),
            whole=list(whole),
            finished=None if finished is None else dict(finished),
        )
        line = _line(record)
        if os.lstat(self.path).st_nlink > 1:  # a backup made of links, which is not to change
            self.rewrite()
        with open_regular(self.path, "r+b") as file:
            file.truncate(self._size)  # what a crash left of a line
            file.seek(self._size)
            file.write(line)
            flush(file)
        self._size += len(line)
        self.state.apply(record)

    def rewrite(self) -> None:
        """Replaces the journal by one that says the same in as few lines as it takes."""
        state = self.state
        record = _without_empty(
            added=[asdict(shard) for shard in state.shards],
            skipped=list(state.skipped.values()),
            first_frames=sorted(state.first_frames),
            finished=state.finished,
        )
        self._replace(_line(record))

    def clear(self) -> None:
        """Forgets everything."""
        self._replace(b"")
        self.state = State()

    def _replace(self, data: bytes) -> None:
        content = _line({"base": len(data)}) + data
        publish({self.path: content})
        self._size = len(content)


def read(path: Path) -> tuple[State, int]:
    """What a journal says, and the bytes of its complete lines; raises OutputError."""
    with disk_errors("read", path, _REPAIR):
        data = read_regular(path, _LARGEST)
    data = data[: data.rfind(b"\n") + 1]
    state, least = State(), 1
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            record = _parsed(line)
        except Damaged as error:
            raise OutputError(
                f"line {number} of {str(path)!r} is damaged ({error}): {_REPAIR}"
            ) from error
        state.apply(record)
        if number == 1:
            least = len(line) + 1 + record.get("base", 0)
    if len(data) < least:
        raise OutputError(f"{str(path)!r} is damaged, its end is missing: {_REPAIR}")
    return state, len(data)


def _without_empty(**record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value not in (None, [])}


def _line(record: Mapping[str, Any]) -> bytes:
    """A JSON object a line, its first member the checksum of the rest."""
    text = json.dumps(record).encode()
    return b'{"crc32": "%08x", "record": %s}\n' % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, Any]:
    """The record of a line; raises Damaged for one that is not as it was written."""
    record = parse(line, {"record": {}})["record"]
    if _line(record) != line + b"\n":
        raise Damaged("its checksum does not fit")
    check(record, _LINE)
    return record
