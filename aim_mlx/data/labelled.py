"""Images with their labels, as a folder of class folders or a table states them.

DATA/cat/1.jpg                  a folder for each class, whatever is below it
DATA/train/cat/1.jpg            the same for each split: train, and val or test or both
DATA.csv, .jsonl, .parquet      columns path, label and, if there is one, split
DATA/metadata.csv ...           such tables in a folder; see `tables_in`
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from aim_mlx.data.columns import MissingColumn
from aim_mlx.data.labels import check_characters, quoted
from aim_mlx.data.sources import SPLITS, Source, split_called, tables_in
from aim_mlx.data.tables import TableRow, beside, read_table
from aim_mlx.errors import UsageError
from aim_mlx.files import disk_errors
from aim_mlx.images import Listing, Skip, discover
from aim_mlx.images.parquet_images import ParquetImage
from aim_mlx.wording import counted


@dataclass(frozen=True)
class Item:
    """An image: its classes, one unless there may be several, and the split it was put in."""

    path: str
    labels: tuple[str, ...]
    split: str | None = None


@dataclass(frozen=True)
class Labelled:
    """All images of a source; every one has a split, or none has. Classes are sorted by bytes."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    multi_label: bool
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_splits(self) -> bool:
        return self.items[0].split is not None


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called; `split` None: "split", where the table has it."""

    path: str = "path"
    label: str = "label"
    split: str | None = None


@dataclass(frozen=True)
class Data:
    """A folder or table of labelled images, and how it is read and divided.

    With `multi_label` an image may have any number of classes: in a table a list, or text with ";"
    between them, in folders by being in several. `allow_empty` leaves classes without images out,
    `follow` goes through links to folders. `val` is the part of each class to choose by, `test` the
    part for the figures at the end, where the images have no splits of their own.
    """

    source: str | os.PathLike[str]
    columns: Columns = field(default_factory=Columns)
    multi_label: bool = False
    allow_empty: bool = False
    follow: bool = False
    val: float = 0.15
    test: float = 0.15

    @property
    def name(self) -> str:
        return Path(self.source).resolve().name

    def labelled(self, *exclude: str | Path) -> Labelled:
        """The images and their labels, sorted by path, without those below some folders.

        None is opened. Raises UsageError for what is neither folder nor table, no images, an empty
        class, missing columns, and names that differ only by case or Unicode form.
        """
        source = Path(self.source)
        if not os.path.lexists(source):
            raise UsageError(
                f"expected a folder of class folders, or a table, but {str(source)!r} cannot be "
                "found: check the path"
            )
        if source.is_dir():
            labelled = _from_folder(source, self, exclude)
        else:
            labelled = _from_tables([Source(source)], self)
        _check_names(labelled.classes)
        return labelled


def _from_folder(root: Path, data: Data, exclude: Sequence[str | Path]) -> Labelled:
    listing = discover([root], follow=data.follow, exclude=exclude)
    notes = list(listing.notes) if listing.files else []
    tables = tables_in(root, exclude, bool(listing.files), notes)
    if not tables and data.columns != Columns():
        raise UsageError(f"{str(root)!r} is a folder and has no columns: do not name any")
    if not tables:
        return _from_class_folders(root, data, exclude, listing, notes)
    try:
        labelled = _from_tables(tables, data, root)
    except MissingColumn as error:
        if data.columns != Columns() or not listing.files:
            raise
        notes.append(f"the folders are taken for the classes, as {error}")
        try:
            return _from_class_folders(root, data, exclude, listing, notes)
        except UsageError as other:
            raise UsageError(f"{other}; and {error}") from error
    stated = {item.path for item in labelled.items}
    if left := {os.path.normpath(path) for path in listing.files} - stated:
        notes.append(f"{counted(len(left), 'image')} that no row of the metadata names, left out")
    return replace(labelled, skips=listing.skipped, notes=(*notes, *labelled.notes))


def _from_class_folders(
    root: Path, data: Data, exclude: Sequence[str | Path], listing: Listing, notes: list[str]
) -> Labelled:
    top = _folders(root, exclude, notes)
    splits = _split_folders(root, top, notes)
    grouped = _grouped(root, listing.files, depth=2 if splits else 1)
    items: list[Item] = []
    empty: list[str] = []
    for split, folder in splits.items() if splits else [(None, root)]:
        place = (folder.name,) if splits else ()
        names = _folders(folder, exclude, notes) if splits else top
        loose = len(grouped[place])
        if not any(grouped[*place, name] for name in names):
            raise _no_classes(folder, loose)
        if loose:
            notes.append(
                f"{counted(loose, 'image')} in {str(folder)!r} itself left out, in no class"
            )
        empty += [str(folder / name) for name in names if not grouped[*place, name]]
        items += [Item(path, (name,), split) for name in names for path in grouped[*place, name]]
    if empty and not data.allow_empty:
        linked = not data.follow and any(map(os.path.islink, empty))
        raise UsageError(
            f"no images in {quoted(empty)}: every folder is a class; fill it, remove it, "
            f"{'follow links with --follow, ' * linked}or leave it out with --allow-empty"
        )
    return _labelled(items, data.multi_label, listing.skipped, notes)


def _grouped(
    root: Path, files: Iterable[str], depth: int
) -> defaultdict[tuple[str, ...], list[str]]:
    """The files by the names of the folders below the root that they are in, `depth` at most."""
    prefix = "" if str(root) == "." else os.path.join(root, "")
    grouped = defaultdict(list)
    for path in files:
        folders = path[len(prefix) :].split("/")[:-1]
        grouped[tuple(folders[:depth])].append(path)
    return grouped


def _folders(root: Path, exclude: Iterable[str | Path], notes: list[str]) -> list[str]:
    """The folders that may be classes, sorted by bytes; hidden ones are noted."""
    passed = {os.path.realpath(path) for path in exclude}
    with disk_errors("read", root, kind=UsageError):
        names = [
            entry.name
            for entry in os.scandir(root)
            if entry.is_dir() and os.path.realpath(entry.path) not in passed
        ]
    hidden = [name for name in names if name.startswith(".") or name in ("__MACOSX", "@eaDir")]
    if hidden:
        notes.append(f"not taken for classes: {quoted(sorted(hidden))}")
    return sorted(set(names) - set(hidden), key=os.fsencode)


def _split_folders(root: Path, folders: Sequence[str], notes: list[str]) -> dict[str, Path]:
    """The folders of the splits, in the order of SPLITS; none where these are classes."""
    splits: dict[str, Path] = {}
    for name in folders:
        split = split_called(name)
        if split in splits:
            raise UsageError(f"{str(splits[split])!r} and {name!r} are both {split}: keep one")
        if split is not None:
            splits[split] = root / name
    if "train" not in splits or len(splits) == 1:
        return {}
    others = [name for name in folders if root / name not in splits.values()]
    if others:
        notes.append(f"beside the splits, left out: {quoted(others)}")
    return {split: splits[split] for split in SPLITS if split in splits}


def _no_classes(folder: Path, loose: int) -> UsageError:
    return UsageError(
        f"{str(folder)!r} has no folder with images, and {counted(loose, 'image')} in no folder: "
        f"expected a folder for each class, such as {str(folder / 'cat' / '1.jpg')!r} and "
        f"{str(folder / 'dog' / '2.jpg')!r}, or a table of path and label"
    )


def _from_tables(tables: Sequence[Source], data: Data, root: Path | None = None) -> Labelled:
    """The rows of all tables, those of metadata in a folder `root`."""
    items: list[Item] = []
    unlabelled: list[str] = []
    kinds: dict[bool, Path] = {}
    for table in tables:
        rows = _rows(table, data.columns, data.multi_label, unlabelled)
        numbers = {label.isdecimal() for item in rows for label in item.labels}
        for kind in numbers if len(numbers) == 1 else ():
            kinds.setdefault(kind, table.path)
        items += rows
    if not items:
        raise UsageError(f"{unlabelled[0]} has no label, and so it is with all: give them some")
    if len(kinds) == 2:
        raise UsageError(
            f"the labels of {kinds[True].name} are numbers, those of {kinds[False].name} names: "
            "give both the same classes"
        )
    if root is not None and all(item.split is None for item in items):
        items = _split_by_folders(items, root)
    if len({item.split is None for item in items}) == 2:
        raise UsageError("some tables have a column of splits and others none: expected it in all")
    count = counted(len(unlabelled), "row has", "rows have")
    left = [f"{count} no label (-1), left out; the first: {each}" for each in unlabelled[:1]]
    return _labelled(items, data.multi_label, notes=left)


def _rows(table: Source, columns: Columns, multi_label: bool, unlabelled: list[str]) -> list[Item]:
    asked = [columns.path] if multi_label else [columns.path, columns.label]
    several = columns.label if multi_label else None
    place = len(asked)
    optional = "split" if columns.split is None else None
    if columns.split is not None:
        asked.append(columns.split)
    items = []
    try:
        rows = read_table(
            table.path,
            asked,
            several,
            optional=optional,
            images=columns.path,
            unlabelled=unlabelled,
        )
    except MissingColumn as error:
        raise MissingColumn(f"{error} (--path-column and --label-column say which)") from None
    for row in rows:
        labels = row.several if multi_label else row.values[1:2]
        for label in labels:
            check_characters(f"{row.place}: the label", label, is_utf_8=True)
        path, split = beside(table.path, row.values[0]), row.values[place:]
        items.append(
            Item(
                path if isinstance(path, ParquetImage) else os.path.normpath(path),
                tuple(dict.fromkeys(label.strip() for label in labels)),
                _split_named(row, split[0]) if split else table.split,
            )
        )
    return items


def _split_by_folders(items: list[Item], root: Path) -> list[Item]:
    """Items of no split, each in that of its folder in the root if all folders there are splits."""
    folders = [os.path.relpath(item.path, root).split("/")[0] for item in items]
    splits = [split_called(folder) for folder in folders]
    if None in splits or "train" not in splits or len(set(splits)) == 1:
        return items
    return [replace(item, split=split) for item, split in zip(items, splits, strict=True)]


def _labelled(
    items: list[Item], multi_label: bool, skips: Sequence[Skip] = (), notes: Sequence[str] = ()
) -> Labelled:
    items.sort(key=lambda item: os.fsencode(item.path))
    classes = sorted({label for item in items for label in item.labels}, key=os.fsencode)
    return Labelled(tuple(items), tuple(classes), multi_label, tuple(skips), tuple(notes))


def _split_named(row: TableRow, name: str) -> str:
    split = split_called(name)
    if split is None:
        raise UsageError(f"{row.place}: a split is train, val or test, got {name!r}")
    return split


def _check_names(classes: Sequence[str]) -> None:
    """Raises UsageError for two names that look like one."""
    seen: dict[str, str] = {}
    for name in classes:
        same = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if same in seen:
            raise UsageError(
                f"the classes {seen[same]!r} ({ascii(seen[same])}) and {name!r} ({ascii(name)}) "
                "differ only by case or Unicode form: give them one name, or two that differ"
            )
        seen[same] = name
