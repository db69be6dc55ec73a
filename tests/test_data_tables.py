"""Tables of paths and captions: three formats, and what is wrong said with its place."""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_mlx.data.tables import beside, read_table
from aim_mlx.errors import UsageError

ROWS = [("a.jpg", "a cat, asleep"), ("sub/ü.jpg", 'two\n"dogs"')]


def write(folder, suffix: str):
    """The same two rows, with a column that nobody asks for, in one of the formats."""
    path = folder / f"pairs{suffix}"
    names = ("caption", "other", "path")
    rows = [(caption, "x", name) for name, caption in ROWS]
    if suffix == ".csv":
        quoted = [[f'"{v.replace(chr(34), chr(34) * 2)}"' for v in row] for row in rows]
        path.write_text("\n".join(",".join(row) for row in [names, *quoted]) + "\n")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, r, strict=True))) + "\n" for r in rows))
    else:
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), path)
    return path


def values(path, columns=("path", "caption")):
    return [row.values for row in read_table(path, columns)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_each_format_gives_the_same_rows_in_the_order_asked_for(tmp_path, suffix):
    assert values(write(tmp_path, suffix)) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_byte_order_mark_and_other_line_ends_do_not_matter(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    text = (
        "path,caption\r\na,b\r\n\r\n" if suffix == ".csv" else '{"path":"a","caption":"b"}\r\n\r\n'
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert values(path) == [("a", "b")]


def test_whole_numbers_are_read_as_their_digits(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"path": "a", "label": 7}\n')
    assert values(path, ("path", "label")) == [("a", "7")]


def test_a_row_knows_its_place(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('path,caption\na,"x\ny"\nb,z\n')
    assert [row.place for row in read_table(path, ["path"])] == [
        "line 3 of p.csv",
        "line 4 of p.csv",
    ]


def test_paths_are_relative_to_the_folder_of_the_table():
    assert beside("data/pairs.csv", "img/a.jpg") == "data/img/a.jpg"
    assert beside("pairs.csv", "a.jpg") == "a.jpg"
    assert beside("data/pairs.csv", "/img/a.jpg") == "/img/a.jpg"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", b"path,caption\na,b\nc,\xff\xfe\n", "line 3 of p.csv is not UTF-8 (byte 3"),
        ("p.csv", "path,caption\n".encode("utf-16"), "line 1 of p.csv is not UTF-8"),
        ("p.csv", b"file,text\na,b\n", "p.csv has no column 'path': it has 'file', 'text'"),
        ("p.csv", b"", "p.csv has no column 'path': it has none"),
        ("p.csv", b"path,caption\n", "p.csv has no rows"),
        ("p.csv", b"path,caption,path\na,b,c\n", "'path' twice"),
        ("p.csv", b"path,caption\na,b,c\n", "line 2 of p.csv: expected 2 values, got 3"),
        ("p.csv", b'path,caption\na,"b\n', "is not CSV"),
        ("p.csv", b"path,caption\na, \n", "line 2 of p.csv: 'caption' is empty"),
        ("p.csv", b"path,caption\na\0,b\n", "line 2 of p.csv: 'path' holds a NUL"),
        ("p.csv", b"x" * (2**20 + 1), "longer than"),
        ("p.jsonl", b'{"path": "a"\n', "line 1 of p.jsonl is not JSON"),
        ("p.jsonl", b"[" * 100_000 + b"\n", "line 1 of p.jsonl is not JSON"),
        ("p.jsonl", b'["a", "b"]\n', "expected a JSON object"),
        ("p.jsonl", b'{"path": "a"}\n', "line 1 of p.jsonl has no column 'caption'"),
        ("p.jsonl", b'{"path": "a", "caption": null}\n', "expected text as 'caption', got None"),
        ("p.jsonl", b'{"path": "a", "caption": 1.5}\n', "expected text as 'caption', got 1.5"),
        ("p.jsonl", b'{"path": "a", "path": "b", "caption": "c"}\n', "a name is there twice"),
        ("p.jsonl", b'{"path": "\\ud800", "caption": "c"}\n', "'path' holds half a character"),
        ("p.jsonl", b'{"path": "a", "caption": "%s"}\n' % (b"x" * 70_000), "has 70,000 characters"),
        ("p.jsonl", b'{"path": "a", "caption": %s}\n' % (b"9" * 5000), "is not JSON"),
        ("p.jsonl", b"\n", "p.jsonl has no rows"),
        ("p.parquet", b"PAR1 not really", "not a sound Parquet file"),
        ("p.parquet", b"", "not a sound Parquet file"),
        ("p.xlsx", b"PK", "must end in .csv, .jsonl, .parquet"),
    ],
)
def test_a_bad_table_is_refused_with_the_place_and_the_reason(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as failure:
        read_table(path, ("path", "caption"))
    assert words in str(failure.value)


def test_a_null_in_parquet_names_its_row(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"path": ["a", None], "caption": ["b", "c"]}), path)
    with pytest.raises(UsageError, match="row 2 of p.parquet: expected text as 'path'"):
        read_table(path, ("path", "caption"))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**62], pa.timestamp("ns")),
        pa.array([-(2**50)], pa.timestamp("s")),
        pa.array([2**31 - 1], pa.date32()),
        pa.array([1], pa.decimal128(38, 0)),
        pa.array([b"\xff"]),
        pa.array([1.5]),
        pa.array([True]),
        pa.array([{"a": 1}]),
        pa.array([[["a"]]]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda values: str(values.type),
)
def test_a_column_of_another_type_is_refused_by_its_name(tmp_path, values):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"path": ["a"], "caption": values}), path)
    with pytest.raises(UsageError, match="p.parquet: expected text as 'caption', got a column of"):
        read_table(path, ("path", "caption"))


def _bomb(path, length: int, rows: int, **options):
    """One long text, said in every row, in a file of about a kilobyte."""
    said = pa.array(np.zeros(rows, np.int32))
    texts = pa.DictionaryArray.from_arrays(said, ["x" * length])
    captions = pa.DictionaryArray.from_arrays(said, ["a"])
    table = pa.table({"path": texts, "caption": captions})
    pq.write_table(table, path, compression="zstd", write_statistics=False, **options)
    assert path.stat().st_size < 3000
    return path


@pytest.mark.parametrize("stored", [True, False], ids=["said to be a dictionary", "or not"])
@pytest.mark.parametrize(("length", "rows"), [(2_000_000, 20_000), (20_000, 10_000)])
def test_a_text_said_often_takes_no_more_memory_than_its_file_may(tmp_path, length, rows, stored):
    path = _bomb(tmp_path / "p.parquet", length, rows, store_schema=stored)
    usual, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(UsageError, match="67,108,864 bytes of text|2,000,000 characters"):
            read_table(path, ("path", "caption"))
    finally:
        pa.set_memory_pool(usual)
    # Written out they are 0.2 and 40 GB.
    assert 0 < (counted.max_memory() or 0) < 1.5e8


def test_one_row_too_many_for_the_size_of_a_file_is_refused(tmp_path):
    path = _bomb(tmp_path / "p.parquet", 1, 210_000)
    with pytest.raises(UsageError, match="holds 420,000 values and"):
        read_table(path, ("path", "caption"))


def test_a_cell_that_unpacks_to_more_than_the_file_may_hold_is_refused(tmp_path):
    path = tmp_path / "p.parquet"
    table = pa.table({"path": ["x" * 100_000_000], "caption": ["a"]})
    pq.write_table(table, path, compression="zstd", write_statistics=False, use_dictionary=False)
    with pytest.raises(UsageError, match="2 values and 100,000,"):
        read_table(path, ("path", "caption"))


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_encoding_of_texts_is_read(tmp_path, encoding, version):
    names = [f"img/{i:05d}.jpg" for i in range(20_000)]
    path = tmp_path / "p.parquet"
    pq.write_table(
        pa.table({"path": names, "caption": names[::-1]}),
        path,
        use_dictionary=False,
        column_encoding=encoding,
        data_page_version=version,
        data_page_size=10_000,
    )
    assert values(path) == list(zip(names, names[::-1], strict=True))


def test_lists_in_parquet_are_read_with_and_without_a_dictionary(tmp_path):
    parts = [["sky", "sea"], [], None, ["sky"]]
    kind = pa.list_(pa.dictionary(pa.int32(), pa.string()))
    for labels in (pa.array(parts), pa.array(parts, kind)):
        path = tmp_path / "p.parquet"
        pq.write_table(pa.table({"path": list("abcd"), "label": labels}), path)
        rows = read_table(path, ["path"], several="label")
        assert [row.several for row in rows] == [("sky", "sea"), (), (), ("sky",)]


def test_hostile_files_are_refused_within_bounds_of_time_and_memory():
    # Those of one seed; fuzz/README.md says how to read 1,000.
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_tables", "12", "3"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert '"faults": 0' in done.stdout and not done.stderr, done.stdout + done.stderr


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        read_table(tmp_path / "p.csv", ("path",))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_no_bytes_at_all_raise_anything_else(data, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"p{suffix}"
        for prefix in (b"", b"path,caption\n", b'{"path": "a", "caption": ', b"PAR1"):
            path.write_bytes(prefix + data + (b"PAR1" if prefix == b"PAR1" else b""))
            with suppress(UsageError):
                assert all(len(row.values) == 2 for row in read_table(path, ("path", "caption")))


def test_a_damaged_parquet_file_raises_nothing_else(tmp_path):
    whole = write(tmp_path, ".parquet").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.parquet"
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            values(path)
        except UsageError:
            refused += 1
    assert refused > 30
