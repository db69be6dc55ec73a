"""Stores as somebody with bad intentions, a bad disk or bad luck may hand them over.

An attack changes a copy of a sound store at random; `outcomes` then runs the commands on it, and
says what each of them did that none may do.
"""

import io
import json
import os
import shutil
import signal
import socket
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aim_mlx.cli import main as cli
from aim_mlx.embedding import job as embedding
from aim_mlx.embedding.job import embed_files
from aim_mlx.embedding.selection import Job, Rules, Selection
from aim_mlx.encoder.encoder import EmbedOptions
from aim_mlx.errors import AimError
from aim_mlx.store import journal, lists, manifest
from aim_mlx.store.folder import matrix_name
from aim_mlx.store.manifest import describe
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.shards import write_shard
from tests.store_crashes import STUB, Silent, small_steps

PHOTOS = {f"{name}.jpg": f"good {name}".encode() for name in "abcdefgh"} | {
    "film.jpg": b"film",
    "none.jpg": b"bad",
    "copy.jpg": b"good a",
}
SECONDS = 5.0  # of the processor, for a command
OPTIONS = EmbedOptions(normalize=False)  # the stub's vectors are of any length
# What a command may end with: 2 where the folder itself is gone or a file.
CODES = {"verify": {0, 1, 2, 5}, "search": {0, 1, 2, 4, 5}, "merge": {0, 2, 5}}
OTHER_CODES = {0, 1, 2, 5}


@dataclass(frozen=True)
class Scene:
    """A folder with photos, a sound store of them, and files of others that nothing may touch."""

    home: Path

    @property
    def photos(self) -> Path:
        return self.home / "photos"

    @property
    def sound(self) -> Path:
        return self.home / "sound"

    @property
    def store(self) -> Path:
        """The copy that is attacked."""
        return self.home / "work" / "store"

    @property
    def others(self) -> Path:
        return self.home / "others"

    @classmethod
    def make(cls, home: Path) -> "Scene":
        scene = cls(home)
        scene.photos.mkdir()
        for name, content in PHOTOS.items():
            (scene.photos / name).write_bytes(content)
        embed(scene.photos, scene.sound)
        assert len(EmbeddingStore(scene.sound).vectors) == len(PHOTOS) - 1  # makes its file
        shutil.copytree(scene.sound, scene.others)  # would be taken for the store's own files
        (scene.others / "letter.txt").write_bytes(b"precious")
        (scene.others / "folder").mkdir()
        (scene.others / "folder" / "rows-000000.parquet").write_bytes(b"precious")
        (scene.others / "rows-000000.parquet.damaged").write_bytes(b"precious")
        return scene

    def fresh(self) -> Path:
        """The store as it was, in a folder with nothing else."""
        work = self.home / "work"
        if work.exists():
            for folder, _, _ in os.walk(work):
                os.chmod(folder, 0o755)
            shutil.rmtree(work)
        work.mkdir()
        return shutil.copytree(self.sound, self.store)

    def untouched(self) -> dict[str, Any]:
        """All that is to stay as it is."""
        seen = {}
        for folder in (self.photos, self.others, self.sound):
            for path in sorted(folder.rglob("*")):
                found = path.lstat()
                content = path.read_bytes() if path.is_file() else None
                seen[str(path)] = (found.st_mode, found.st_mtime_ns, content)
        return seen


def embed(photos: Path, output: Path, **rules: bool) -> None:
    job = Job(Selection((str(photos),)), output, OPTIONS, Rules(**rules))
    facts = describe(STUB, OPTIONS) | {"created": ""}
    with (
        small_steps(),
        mock.patch.object(os, "fsync", lambda _: None),
        mock.patch.object(embedding, "describe", lambda *_: dict(facts)),
    ):
        embed_files(job, lambda: STUB, Silent())


# What is done to a store


def attack(scene: Scene, seed: int) -> str:
    """Damages a fresh copy in one to three ways, chosen by the seed; says how."""
    rng = np.random.default_rng(seed)
    store = scene.fresh()
    done = []
    ways = rng.choice([1, 1, 1, 2, 3])
    while len(done) < ways:
        way = ATTACKS[rng.integers(len(ATTACKS))]
        try:
            done.append(f"{way.__name__} {way(scene, store, rng)}")
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, AimError):
            ways -= bool(done)  # it cannot be done here, or met what an earlier one left
    return f"seed {seed}: {'; '.join(done)}"


def _pick(rng: np.random.Generator, values: Any) -> Any:
    values = list(values)
    return values[rng.integers(len(values))]


def _a_file(store: Path, rng: np.random.Generator) -> Path:
    """One that is there, the records as often as all shards."""
    names = sorted(os.listdir(store))
    records = [name for name in names if not name.startswith("rows-")]
    return store / _pick(rng, records if rng.random() < 0.6 else names)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cut(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    path = _a_file(store, rng)
    size = int(rng.integers(path.stat().st_size + 1))
    os.truncate(path, size)
    return f"{path.name} to {size}"


def _read(path: Path) -> bytes:
    """The content of a regular file that an earlier attack has not made a huge one."""
    if not path.is_file() or path.stat().st_size > 1 << 24:
        raise ValueError("no file to be read")
    return path.read_bytes()


def flip(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    path = _a_file(store, rng)
    data = bytearray(_read(path))
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return path.name


def extend(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    path = _a_file(store, rng)
    more = _pick(rng, [b"\0", b"\n", b"{}\n", b"[]\n", b"x" * 1000, b'"/etc/passwd"\n', b"\xff\n"])
    path.write_bytes(_read(path) + more)
    return f"{path.name} by {more[:20]!r}"


def swap(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    one, other = _a_file(store, rng), _a_file(store, rng)
    data = _read(one)
    one.write_bytes(_read(other))
    other.write_bytes(data)
    return f"{one.name}, {other.name}"


def replace_by(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    path = _a_file(store, rng)
    _remove(path)
    return f"{path.name} {_put(scene, path, rng)}"


def add(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    """Something under a name that the store would take for its own."""
    state = EmbeddingStore(scene.sound)._state
    names = [
        "rows-000999.parquet",
        "rows-000000.parquet.damaged",
        f"{state.shards[0].name}.damaged",
        f".journal.jsonl.{os.getpid()}.aim-mlx.tmp",
        ".manifest.json.1.aim-mlx.tmp",
        f".files.jsonl.{os.getpid()}.aim-mlx.tmp",
        ".vectors-0123456789abcdef.f32",
        matrix_name(state),
        "rows-999999999999.parquet",
    ]
    path = store / _pick(rng, names)
    _remove(path)
    return f"{path.name} {_put(scene, path, rng)}"


def _put(scene: Scene, path: Path, rng: np.random.Generator) -> str:
    """Anything but the file that should be there."""
    others = [*scene.others.iterdir(), *(scene.others for _ in range(3))]
    to = Path(_pick(rng, others))
    how = _pick(rng, LEAD)
    how(scene, path, to)
    return f"{how.__name__} {to.name}"


def link(scene: Scene, path: Path, to: Path) -> None:
    path.symlink_to(to)


def link_to_own_kind(scene: Scene, path: Path, to: Path) -> None:
    path.symlink_to(scene.others / path.name)


def hard_link(scene: Scene, path: Path, to: Path) -> None:
    os.link(scene.others / path.name, path)


def link_to_zeros(scene: Scene, path: Path, to: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_nothing(scene: Scene, path: Path, to: Path) -> None:
    path.symlink_to(scene.others / "new")


def link_to_itself(scene: Scene, path: Path, to: Path) -> None:
    path.symlink_to(path.name)


def pipe(scene: Scene, path: Path, to: Path) -> None:
    os.mkfifo(path)


def device(scene: Scene, path: Path, to: Path) -> None:
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero; only root can


def a_socket(scene: Scene, path: Path, to: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def folder(scene: Scene, path: Path, to: Path) -> None:
    path.mkdir()


def full_folder(scene: Scene, path: Path, to: Path) -> None:
    path.mkdir()
    (path / "letter.txt").write_bytes(b"precious")


def nothing(scene: Scene, path: Path, to: Path) -> None:
    pass


def sparse(scene: Scene, path: Path, to: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 42)


LEAD: list[Callable[[Scene, Path, Path], None]] = [
    link, link, link_to_own_kind, hard_link, link_to_zeros, link_to_nothing, link_to_itself, pipe,
    device, a_socket, folder, full_folder, nothing, sparse,
]  # fmt: skip


def _values(scene: Scene) -> list[Any]:
    """What a field may hold in the place of what it should."""
    return [
        None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 1.5, 1e308, float("nan"), "", "x", "0",
        "../others/letter.txt", str(scene.others / "letter.txt"), "/dev/zero", "journal.jsonl",
        "rows-000000.parquet/../../../others/letter.txt", "\0", "\ud800", "é\n", "x" * 100_000,
        f"rows-{'9' * 400}.parquet", f"rows-{'9' * 5000}.parquet", [], {}, [[]], [{}], [None],
        {"": 1}, Deep("[", "]", 50), Deep("[", "]", 5000), Deep('{"a":', "}", 5000),
        ["../others/letter.txt"], [str(scene.others / "letter.txt")],
    ]  # fmt: skip


@dataclass(frozen=True)
class Deep:
    """Nesting deeper than json.dumps would write, in the place of a value."""

    left: str
    right: str
    levels: int

    @property
    def text(self) -> str:
        return self.left * self.levels + "0" + self.right * self.levels


def _dumps(value: Any) -> bytes:
    text = json.dumps(value, default=lambda deep: {"deep": [deep.left, deep.right, deep.levels]})
    for deep in (Deep("[", "]", 50), Deep("[", "]", 5000), Deep('{"a":', "}", 5000)):
        text = text.replace(json.dumps({"deep": [deep.left, deep.right, deep.levels]}), deep.text)
    return text.encode()


def _places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Where in a JSON value there is something to replace."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*at, key))
    elif isinstance(value, list):
        for number, each in enumerate(value[:4]):
            yield from _places(each, (*at, number))


def _replaced(value: Any, at: tuple, by: Any) -> Any:
    if not at:
        return by
    value[at[0]] = _replaced(value[at[0]], at[1:], by)
    return value


def _spoil(scene: Scene, value: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """A JSON value with one field replaced, removed or added."""
    at = _pick(rng, _places(value))
    if rng.random() < 0.1 and at and isinstance(at[-1], str):
        inside = value
        for key in at[:-1]:
            inside = inside[key]
        del inside[at[-1]]
        return value, f"no {at}"
    by = _pick(rng, _values(scene))
    return _replaced(value, at, by), f"{at} is {str(by)[:60]!r}"


def change_manifest(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    path = store / manifest.NAME
    value, what = _spoil(scene, json.loads(_read(path)), rng)
    path.write_bytes(_dumps(value))
    return what


def change_journal(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    """With checksums that fit, as an attacker would have them."""
    path = store / journal.NAME
    records = _records(path)
    at = rng.integers(len(records))
    records[at], what = _spoil(scene, records[at], rng)
    _write_journal(path, records)
    return what


def _records(path: Path) -> list[Any]:
    return [json.loads(line)["record"] for line in _read(path).splitlines()]


def _write_journal(path: Path, records: list[Any]) -> None:
    lines = [_sealed(record) for record in records]
    path.write_bytes(b"".join(lines))


def _sealed(record: Any) -> bytes:
    text = _dumps(record)
    return b'{"crc32": "%08x", "record": %s}\n' % (zlib.crc32(text), text)


def change_list(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    """A list; half the time the journal is made to say that it is the right one."""
    path = store / _pick(rng, [lists.FILES, lists.FILES, lists.SKIPPED])
    lines = [json.loads(line) for line in _read(path).splitlines()]
    at = rng.integers(min(len(lines), 3))
    lines[at], what = _spoil(scene, lines[at], rng)
    path.write_bytes(b"".join(_dumps(line) + b"\n" for line in lines))
    if rng.random() < 0.5 and path.name == lists.FILES:
        records = _records(store / journal.NAME)
        records[-1]["finished"]["files"] = lists.digest(store)
        records[0] = {"base": sum(len(_sealed(record)) for record in records[1:])}
        _write_journal(store / journal.NAME, records)
    return f"{path.name} {what}"


def change_rows(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    """Rows that cannot be, under a digest that is theirs."""
    written = journal.Journal(store)
    number = int(rng.integers(len(written.state.shards)))
    shard = written.state.shards[number]
    table = pq.read_table(io.BytesIO(_read(store / shard.name)))
    name = _pick(rng, table.column_names)
    count = len(table)
    columns: list[Any] = [
        pa.nulls(count),
        pa.nulls(count, table[name].type),
        pa.array(["x"] * count),
        pa.array(["../others/letter.txt"] * count),
        pa.array(["/dev/zero"] * count),
        pa.array([b"\xff\0"] * count),
        pa.array([-1] * count),
        pa.array([1.5] * count),
        pa.array([[1.0]] * count, pa.list_(pa.float32(), 1)),
        pa.array([[1.0] * 9] * count, pa.list_(pa.float32())),
        pa.array([[np.nan] * 9] * count, pa.list_(pa.float32(), 9)),
        pa.array([[1.0] * 9] * count, pa.list_(pa.float64(), 9)),
        pa.array([{"a": 1}] * count),
        pa.array(["x"] * count).dictionary_encode(),
    ]
    column = _pick(rng, columns)
    place = table.column_names.index(name)
    changed = _pick(
        rng,
        [
            lambda: table.set_column(place, name, column),
            lambda: table.drop_columns([name]),
            lambda: table.append_column("more", column),
            lambda: table.slice(0, count // 2),
            lambda: pa.concat_tables([table, table]),
            lambda: table.rename_columns([*table.column_names[1:], "path"]),
        ],
    )()
    with suppress(pa.ArrowException, ValueError):  # with the types that it should have
        changed = changed.cast(table.schema)
    old = _read(store / shard.name)
    try:
        written.state.shards[number] = write_shard(store, 999 if rng.random() < 0.5 else 0, changed)
    except (pa.ArrowException, KeyError):
        (store / shard.name).write_bytes(old)
        raise ValueError("Arrow does not write that") from None
    written.rewrite()
    return f"{name} {column.type}"


def swap_folder(scene: Scene, store: Path, rng: np.random.Generator) -> str:
    """The store itself is a link to a store, which a user may have made, or no folder."""
    kept = store.with_name("elsewhere")
    os.rename(store, kept)
    way = _pick(rng, ["link", "file", "pipe", "nothing"])
    if way == "link":
        store.symlink_to(kept)
    elif way == "file":
        store.write_bytes(b"precious")
    elif way == "pipe":
        os.mkfifo(store)
    return way


ATTACKS: list[Callable[[Scene, Path, np.random.Generator], str]] = [
    cut, flip, extend, swap, replace_by, replace_by, replace_by, add, change_manifest,
    change_manifest, change_journal, change_journal, change_journal, change_list, change_list,
    change_rows, change_rows, swap_folder,
]  # fmt: skip


# What the commands do with it


class Hang(BaseException):
    """A command that took too long."""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: object) -> tuple[int, str]:
    """The exit code of a command and its last line on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli._run([str(argument) for argument in arguments])
    return code, err.getvalue()


def _embed(scene: Scene, **rules: bool) -> tuple[int, str]:
    try:
        embed(scene.photos, scene.store, **rules)
    except AimError as error:
        return error.exit_code, f"aim-mlx: error: {error}"
    return 0, ""


def steps(scene: Scene) -> dict[str, Callable[[], tuple[int, str]]]:
    """Each command on the store that was attacked."""
    store, work = scene.store, scene.home / "work"
    photo = scene.photos / "a.jpg"
    return {
        "verify": lambda: command("verify", store),
        "sample": lambda: command("verify", store, "--sample", 2, "--offline"),
        "search": lambda: command("search", store, "--image", photo, "--offline"),
        "duplicates": lambda: command("duplicates", store, "--threshold", "0.9", "--gone"),
        "page": lambda: command("duplicates", store, "--html", work / "x.html"),
        "export": lambda: command("export", store, work / "x.npz", "--overwrite"),
        "atlas": lambda: command("export", store, work / "x.parquet", "--thumbnails"),
        "merge": lambda: command("merge", store, "-o", work / "merged"),
        "plan": lambda: command("embed", scene.photos, "-o", store, "--dry-run"),
        "embed": lambda: _embed(scene),
        "verify again": lambda: command("verify", store),
        "prune": lambda: _embed(scene, prune=True),
        "overwrite": lambda: _embed(scene, overwrite=True),
    }


def outcomes(scene: Scene, only: Collection[str] = ()) -> list[str]:
    """What commands, or `only` these, did that none may do: nothing, of a package that is sound."""
    wrong = []
    before = scene.untouched()
    codes: dict[str, int] = {}
    for name, step in steps(scene).items():
        if only and name not in only:
            continue
        started = time.process_time()
        try:
            with _limited():
                codes[name], said = step()
        except Hang:
            wrong.append(f"{name}: more than a minute")
            continue
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        if "--debug shows where" in said or "Traceback" in said:
            wrong.append(f"{name}: {said.splitlines()[-1][:300]}")
        if codes[name] not in CODES.get(name, OTHER_CODES | {4}):
            wrong.append(f"{name}: ended with {codes[name]}: {said[-300:]}")
        if codes[name] and not said.strip():
            wrong.append(f"{name}: ended with {codes[name]} and said nothing")
        if (took := time.process_time() - started) > SECONDS:
            wrong.append(f"{name}: took {took:.1f} s")
        # Rows that were written wrong with a digest that fits, and the file that readers made.
        excused = "with --overwrite" in said or ".f32: " in said
        if name == "verify again" and not codes.get("embed", 1) and codes[name] and not excused:
            wrong.append(f"{name}: a store is not sound after embed was content: {said[-300:]}")
        if (after := scene.untouched()) != before:
            changed = {
                key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
            }
            wrong.append(f"{name}: changed {sorted(changed)}")
            return wrong
    return wrong
