"""Hostile tables, labels, prompts and lists of paths: made, each read in a process of its own.

python -m tests.hostile_tables 1000 0 reads 1000 of them (seed 0) and prints a line of JSON for each
that did not end as it should, then one with the longest time and the largest memory. Of those
1,000 none failed; the longest took 5.4 s on a busy machine of two cores, the largest 364 MB.
"""

import io
import json
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aim_mlx.data.labelled import Data
from aim_mlx.data.pairs import read_pairs
from aim_mlx.data.tables import read_table
from aim_mlx.errors import UsageError
from aim_mlx.images import read_paths
from aim_mlx.words.prompts import as_labels, as_templates, read_labels

Random = np.random.Generator
WORDS = ["a.jpg", "cat", "", " ", "\0", "é" * 40, "=1+1", "\u202e", "x" * 200_000, "7" * 5000, ";;"]
ENCODINGS = ["utf-16", "utf-32", "latin-1", "cp037", "utf-8-sig", "utf-7"]
SECONDS, MEGABYTES = 10, 1000


def parquet(table: pa.Table, rng: Random, **options: Any) -> bytes:
    sink = io.BytesIO()
    packing = ["zstd", "gzip", "snappy", "brotli", "none"][rng.integers(5)]
    pq.write_table(table, sink, compression=packing, store_schema=bool(rng.integers(2)), **options)
    return sink.getvalue()


def _columns(rng: Random, rows: int) -> dict[str, Any]:
    """Three columns, all but one of the same short texts."""
    columns: dict[str, Any] = {name: ["a.jpg", "b"] * (rows // 2) for name in NAMES}
    columns["class"] = columns["label"]
    return columns


NAMES = ("path", "label", "caption")


def repeated_text(rng: Random) -> bytes:
    length, rows = int(10 ** rng.uniform(4, 6.3)), int(rng.integers(500, 30_000))
    values = pa.DictionaryArray.from_arrays(pa.array([0] * (rows * 2), pa.int32()), ["x" * length])
    columns = _columns(rng, rows * 2)
    columns[NAMES[rng.integers(3)]] = values
    return parquet(pa.table(columns), rng, write_statistics=False)


def one_huge_cell(rng: Random) -> bytes:
    columns = _columns(rng, 4)
    columns[NAMES[rng.integers(3)]] = ["x" * int(10 ** rng.uniform(6, 8.3))] + ["y"] * 3
    return parquet(pa.table(columns), rng, write_statistics=False, use_dictionary=False)


def shared_prefixes(rng: Random) -> bytes:
    columns = _columns(rng, 2000)
    name, length = NAMES[rng.integers(3)], int(10 ** rng.uniform(3, 5.5))
    columns[name] = ["x" * length + str(i) for i in range(2000)]
    kind = ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"][rng.integers(2)]
    encoding = {each: "PLAIN" for each in columns} | {name: kind}
    return parquet(pa.table(columns), rng, use_dictionary=False, column_encoding=encoding)


def many_rows(rng: Random) -> bytes:
    rows = int(10 ** rng.uniform(5, 7.2))
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["a.jpg"])
    return parquet(pa.table({name: same for name in (*NAMES, "class")}), rng)


def odd_types(rng: Random) -> bytes:
    kinds = [
        pa.array([2**62, 1], pa.timestamp("ns")),
        pa.array([-(2**50), 1], pa.timestamp("s")),
        pa.array([2**31 - 1, 1], pa.date32()),
        pa.array([2**62, 1], pa.duration("us")),
        pa.array([1, 2], pa.decimal128(38, 0)),
        pa.array([b"\xff", b"a"]),
        pa.array([1.5, float("nan")]),
        pa.array([True, None]),
        pa.nulls(2),
        pa.array([2**64 - 1, 0], pa.uint64()),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([[["a"]], [["b", None]]]),
        pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        pa.array([["a", "b"], None]),
        pa.array([[None], []], pa.list_(pa.string())),
    ]
    columns: dict[str, Any] = {name: ["a.jpg", "b"] for name in (*NAMES, "class")}
    columns[list(columns)[rng.integers(4)]] = kinds[rng.integers(len(kinds))]
    return parquet(pa.table(columns), rng)


def long_lists(rng: Random) -> bytes:
    count = int(10 ** rng.uniform(5, 7))
    columns = _columns(rng, 2)
    columns["label"] = pa.array([["a"] * count, []])
    return parquet(pa.table(columns), rng)


def many_columns(rng: Random) -> bytes:
    columns = {f"c{i}": ["x"] for i in range(int(rng.integers(1000, 10_000)))}
    return parquet(pa.table(columns | {name: ["a.jpg"] for name in NAMES}), rng)


def twice_named(rng: Random) -> bytes:
    names = [*NAMES, NAMES[rng.integers(3)]]
    return parquet(pa.table([pa.array(["a.jpg"])] * 4, names=names), rng)


def damaged_parquet(rng: Random) -> bytes:
    if rng.integers(2):
        makers = (long_lists, odd_types, shared_prefixes, repeated_text)
        data = bytearray(makers[rng.integers(4)](rng))
    else:
        data = bytearray(parquet(pa.table(_columns(rng, 200)), rng))
    if rng.integers(4) == 0:
        return bytes(data[: rng.integers(len(data))])
    start = 0 if rng.integers(2) else max(0, len(data) - 400)  # most often in the footer
    for _ in range(int(rng.integers(1, 12))):
        data[rng.integers(start, len(data))] = rng.integers(256)
    return bytes(data)


def csv(rng: Random) -> bytes:
    words = [WORDS[i] for i in rng.integers(len(WORDS), size=60)]
    rows = [",".join(words[i : i + 3]) for i in range(0, 60, 3)]
    return "\n".join(["path,label,caption", *rows]).encode("utf-8", "surrogatepass")


def wide_csv(rng: Random) -> bytes:
    names = [f"c{i}" for i in range(10_000)] + ["path", "label", "caption", "class"]
    return "\n".join([",".join(names), *[",".join(["a"] * len(names))] * 20]).encode()


def odd_csv(rng: Random) -> bytes:
    head = b"path,label,caption,class\n"
    bodies = [
        b'"' + b"a\n" * 100_000,
        b"a,b,c,d\r" * 1000,
        b'a,b,"c""' * 5000,
        b"," * 900_000,
        b"\n" * 3_000_000,
        b"a,b,c,d\n" * 700_000,
        b"a,b,c,d\n" * 1000 + b"\xff\xfe",
        b"path,label,caption,class\n" * 3,
        b'"' + b"x" * 140_000 + b'",b,c,d\n',
    ]
    return head + bodies[rng.integers(len(bodies))]


def otherwise_encoded(rng: Random) -> bytes:
    text = "path,label,caption,class\nü.jpg,ä,ö,x\n"
    return text.encode(ENCODINGS[rng.integers(len(ENCODINGS))])


def noise(rng: Random) -> bytes:
    return rng.bytes(int(10 ** rng.uniform(0, 6)))


def jsonl(rng: Random) -> bytes:
    deep = int(10 ** rng.uniform(2, 5.5))
    values = [
        "[" * deep + "]" * deep,
        '{"a":' * deep + "1" + "}" * deep,
        "9" * deep,
        "1e999",
        "NaN",
        r'"\ud800"',
        r'"\u0000"',
        '"' + "x" * deep + '"',
        "[" + '"a",' * deep + '"b"]',
        "null",
        "true",
        '"a", "path": "b"',
        "{}",
    ]
    parts = {name: '"a.jpg"' for name in (*NAMES, "class")}
    parts[list(parts)[rng.integers(4)]] = values[rng.integers(len(values))]
    return ("{" + ", ".join(f'"{k}": {v}' for k, v in parts.items()) + "}\n").encode()


def text(rng: Random) -> bytes:
    bodies = [
        b"\n".join(b"label %d" % i for i in range(130_000)),
        b"a\n" * 500_000,
        b"a" + b" " * 1_000_000 + b"b {}",
        b"'" + b"\\" * 999_999 + b"'",
        b"a" * 15_000_000,
        b"{}" * 100_000,
        b"{}\n{0.__class__}\n",
        b"lambda c: f'" + b"{c}" * 100_000 + b"',",
        b"x." * 500_000,
        b"\0\n\0",
        "ü {}\n".encode("utf-16"),
        b"\xff",
        b"",
        b"\r\n" * 1000,
        "\u0130 {}\n\u0131 {}\nI {}".encode(),
    ]
    return bodies[rng.integers(len(bodies))]


KINDS: dict[str, tuple[Callable[[Random], bytes], ...]] = {
    ".parquet": (
        repeated_text,
        one_huge_cell,
        shared_prefixes,
        many_rows,
        odd_types,
        long_lists,
        many_columns,
        twice_named,
        damaged_parquet,
        damaged_parquet,
        damaged_parquet,
        noise,
    ),
    ".csv": (csv, wide_csv, odd_csv, otherwise_encoded, noise),
    ".jsonl": (jsonl, jsonl, noise, otherwise_encoded),
    ".txt": (text, text, noise),
}


def write(path: Path, maker: Callable[[Random], bytes], rng: Random) -> None:
    path.write_bytes(maker(rng))


def read(path: Path, way: int) -> str:
    """Reads a file in one of the ways in which commands do; what its error said, or nothing."""

    def listed() -> None:
        with open(path, "rb") as file:
            read_paths(file, null=False)

    ways: list[Callable[[], object]] = [
        lambda: Data(path).labelled(),
        lambda: Data(path, multi_label=True).labelled(),
        lambda: read_pairs(path),
        lambda: read_table(path, ("class", "label")),
    ]
    if path.suffix == ".txt":
        ways = [lambda: as_labels(read_labels(path)), lambda: as_templates(path), listed]
    try:
        ways[way % len(ways)]()
    except UsageError as error:
        return str(error)
    return ""


def apart(work: Callable[[], object]) -> tuple[int, float, int]:
    """Works in a process of its own: how that ended, seconds of the processor, megabytes."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024


def main(count: int, seed: int) -> None:
    worst = {"tables": count, "faults": 0, "seconds": 0.0, "megabytes": 0}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            suffix = list(KINDS)[rng.choice(4, p=[0.5, 0.2, 0.15, 0.15])]
            maker, way = KINDS[suffix][rng.integers(len(KINDS[suffix]))], int(rng.integers(12))
            path = Path(folder) / f"t{suffix}"
            apart(partial(write, path, maker, rng))
            status, seconds, megabytes = apart(partial(read, path, way))
            if status or seconds > SECONDS or megabytes > MEGABYTES:
                worst["faults"] += 1
                facts = {"number": number, "kind": maker.__name__, "way": way, "status": status}
                print(json.dumps({**facts, "seconds": round(seconds, 2), "megabytes": megabytes}))
            worst["seconds"] = max(worst["seconds"], round(seconds, 2))
            worst["megabytes"] = max(worst["megabytes"], megabytes)
    print(json.dumps(worst))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
