"""Images, or the rows of a store, to the labels of a zero-shot head."""

import csv
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from aim_mlx.encoder.encoder import EmbedOptions
from aim_mlx.errors import OutputError, UsageError
from aim_mlx.files import publish
from aim_mlx.images import Listing, Skip
from aim_mlx.report.contact_sheet import Origin
from aim_mlx.words.lit import LiT
from aim_mlx.words.zeroshot import ZeroShotHead

if TYPE_CHECKING:
    from aim_mlx.store.reader import EmbeddingStore

_ROWS_AT_ONCE = 4096
_FORMULA = re.compile(r"[=@\t\r\n]|[-+](?!\d+(\.\d+)?\Z)")  # how one begins; -1 is a number


@dataclass(frozen=True)
class Choice:
    """Which labels of an image are told: the `top` best of those with at least `threshold`.

    `top` None is the best one, or with `multi_label` all. Scores are probabilities over the labels,
    or with `multi_label` the cosine with each.
    """

    top: int | None = None
    threshold: float | None = None
    multi_label: bool = False

    def __post_init__(self):
        if self.top is not None and (type(self.top) is not int or self.top < 1):
            raise UsageError(f"top must be a whole number from 1, got {self.top!r}")
        low = -1.0 if self.multi_label else 0.0
        if self.threshold is not None and not low <= self.threshold <= 1:
            what = "a cosine" if self.multi_label else "a probability"
            raise UsageError(
                f"the threshold is {what}, from {low:g} to 1, got {self.threshold!r:.40}"
            )

    def of(self, labels: tuple[str, ...], scores: np.ndarray) -> tuple[tuple[str, float], ...]:
        """Labels and scores (C,) -> pairs, best first, equal ones in the order of the labels."""
        top = self.top or (len(labels) if self.multi_label else 1)
        best = np.argsort(-scores, kind="stable")[:top]
        low = -np.inf if self.threshold is None else self.threshold
        return tuple((labels[i], float(scores[i])) for i in best if scores[i] >= low)


@dataclass(frozen=True)
class Classified:
    """One image with its labels and their scores, best first; none where none is good enough.

    `row` counts the images, or is the row of the store; `multi_frame` is True where only the first
    of several frames was read.
    """

    path: str
    labels: tuple[tuple[str, float], ...]
    row: int
    multi_frame: bool = False


class Images:
    """Image files as a source: `load` gives the LiT model, once."""

    def __init__(self, listing: Listing, load: Callable[[], LiT], options: EmbedOptions):
        self.listing, self._options, self._load = listing, options, load

    @cached_property
    def lit(self) -> LiT:
        return self._load()

    def rows(
        self, head: ZeroShotHead, choice: Choice, skipped: Callable[[Skip], None]
    ) -> Generator[Classified, None, None]:
        """The labels of each image, in order; what cannot be embedded goes to `skipped`.

        Raises CheckpointError for a head of another model.
        """
        head.check(self.lit.weights_digest, str(self.lit.identity.get("model")))
        paths = self.listing.files
        with closing(self.lit.embed_stream(paths, self._options)) as rows:
            for row in rows:
                path = paths[row.index]
                if row.failure is not None:
                    skipped(Skip(path, row.failure.reason, row.failure.detail))
                else:
                    scores = head.scores(row.vector[None], choice.multi_label)[0]
                    labels = choice.of(head.labels, scores)
                    yield Classified(path, labels, row.index, row.multi_frame)

    @property
    def origin(self) -> Origin:
        """The model."""
        return Origin(self.lit.identity)

    def locate(self, row: Classified) -> Path:
        """Where the photo is."""
        return Path(self.listing.files[row.row])


class Stored:
    """Rows of a store, by their numbers, as a source; nothing is embedded again.

    Raises UsageError for a store whose vectors are not those that words are compared with.
    """

    def __init__(self, store: "EmbeddingStore", rows: Sequence[int], load: Callable[[], LiT]):
        check_words(store)
        self.listing = Listing(tuple(store.paths[row] for row in rows), 0, (), ())
        self._store, self._rows, self._load = store, rows, load

    @cached_property
    def lit(self) -> LiT:
        return self._load()

    def rows(
        self, head: ZeroShotHead, choice: Choice, skipped: Callable[[Skip], None]
    ) -> Generator[Classified, None, None]:
        """The labels of each row; nothing is skipped. Raises CheckpointError as Images does."""
        store = self._store
        head.check(store.manifest["weights"], f"the store {str(store.folder)!r}")
        for start in range(0, len(self._rows), _ROWS_AT_ONCE):
            part = self._rows[start : start + _ROWS_AT_ONCE]
            scored = head.scores(store.vectors[part], choice.multi_label)
            for row, scores in zip(part, scored, strict=True):
                yield Classified(store.paths[row], choice.of(head.labels, scores), row)

    @property
    def origin(self) -> Origin:
        """The store, and the model that made it."""
        return Origin(self._store.manifest["model"], self._store.folder)

    def locate(self, row: Classified) -> Path:
        """Where the photo was when it was embedded."""
        return self._store.locate(row.row)


def check_words(store: "EmbeddingStore") -> None:
    """Raises UsageError for a store whose vectors are not those that words are compared with."""
    pooling = store.manifest["pooling"]
    if pooling != "attention":
        raise UsageError(
            f"words can be compared with vectors of a LiT model's attention pooling, those of "
            f"{str(store.folder)!r} are of {pooling!r:.20} pooling: embed with a LiT model"
        )


def find_store(sources: Sequence[str]) -> "EmbeddingStore | None":
    """The store among the sources, which then is alone; raises UsageError where it is not."""
    stores = [source for source in sources if (Path(source) / "journal.jsonl").is_file()]
    if not stores:
        return None
    if len(sources) > 1:
        raise UsageError(f"{stores[0]!r} is a store of embeddings: give it alone")
    from aim_mlx.store.reader import EmbeddingStore

    return EmbeddingStore(stores[0])


def write_table(target: Path, rows: Iterable[Classified]) -> None:
    """Writes rows as they come, as CSV or JSON lines; complete or not at all.

    CSV has a line for each label, and one without a label for an image that has none; a text that
    a spreadsheet would take for a formula begins with an apostrophe. Raises OutputError.
    """
    write = _write_csv if target.suffix.lower() == ".csv" else _write_jsonl
    try:
        publish({target: lambda file: write(file, rows)})
    except OSError as error:
        raise OutputError(
            f"cannot write {str(target)!r}: {error.strerror or error}; nothing was kept"
        ) from error


def _write_csv(file: BinaryIO, rows: Iterable[Classified]) -> None:
    # Names that are not UTF-8 go out as the bytes they are.
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    table = csv.writer(text)
    table.writerow(("path", "rank", "label", "score"))
    for row in rows:
        for rank, (label, score) in enumerate(row.labels, 1):
            table.writerow((_cell(row.path), rank, _cell(label), f"{score:.6g}"))
        if not row.labels:
            table.writerow((_cell(row.path), "", "", ""))
    text.detach()


def _cell(text: str) -> str:
    """A text that no spreadsheet computes: with an apostrophe before what would be a formula."""
    return "'" + text if _FORMULA.match(text) else text


def _write_jsonl(file: BinaryIO, rows: Iterable[Classified]) -> None:
    for row in rows:
        file.write(json.dumps(record(row)).encode() + b"\n")


def record(row: Classified) -> dict[str, object]:
    """A row as JSON values."""
    return {"path": row.path, "labels": [{"label": n, "score": s} for n, s in row.labels]}
