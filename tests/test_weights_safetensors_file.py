"""A safetensors file is checked before use: what is not sound gets one sentence, never a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.safetensors_file import LARGEST_HEADER, TensorReader, check_file, read_tensor
from aim_mlx.weights.strict_json import parse_object
from tests.weights_files import DATA, PEAK, crafted, entry, read_tensors, write_tensors

GOOD = {"a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32)}
GOOD_DATA = bytes(range(32))


def rejected(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        check_file(path)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    assert path.name in text
    return text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_sound_file_lists_its_tensors_with_absolute_offsets(file: Path):
    file.write_bytes(crafted(GOOD | {"__metadata__": {"format": "pt"}}, GOOD_DATA))
    checked = check_file(file)
    start = file.stat().st_size - 32
    assert list(checked.tensors) == ["a", "b"]
    assert checked.tensors["b"].offset == start + 24
    assert checked.tensors["a"].shape == (2, 3)
    assert checked.metadata == {"format": "pt"}
    assert checked.size == file.stat().st_size


def test_tensors_come_in_the_order_of_their_bytes(file: Path):
    file.write_bytes(crafted({"b": GOOD["b"], "a": GOOD["a"]}, GOOD_DATA))
    assert list(check_file(file).tensors) == ["a", "b"]


@pytest.mark.parametrize("preadv", [True, False])
def test_every_reference_file_is_read_bit_for_bit(monkeypatch, preadv: bool):
    if not preadv:
        monkeypatch.delattr(os, "preadv")
    for path in sorted(DATA.rglob("*.safetensors")):
        checked = check_file(path)
        with TensorReader(checked) as reader:
            for name, (dtype, values) in read_tensors(path).items():
                assert checked.tensors[name].dtype == dtype
                got = reader.read(name)
                assert got.dtype == values.dtype and got.shape == values.shape
                assert got.tobytes() == values.tobytes()


def test_scalars_and_empty_tensors_are_read(file: Path):
    tensors = {"s": ("F32", np.float32(2.5)), "e": ("F32", np.zeros((0, 3), np.float32))}
    write_tensors(file, {k: (d, np.asarray(v)) for k, (d, v) in tensors.items()})
    checked = check_file(file)
    assert read_tensor(checked, "s") == np.float32(2.5)
    assert read_tensor(checked, "e").shape == (0, 3)


@pytest.mark.parametrize("length", [2**62, 2**63, 2**64 - 1, 10**9, 1, 0])
def test_a_header_length_out_of_bounds_is_refused(file: Path, length: int):
    rejected(file, crafted(GOOD, GOOD_DATA, length=length))


def test_a_huge_header_is_refused_by_its_length_alone(file: Path):
    file.write_bytes(crafted(b"{", length=LARGEST_HEADER + 1))
    os.truncate(file, 2**34)  # sparse: no byte of it exists
    with pytest.raises(CheckpointError, match="header of"):
        check_file(file)


@pytest.mark.parametrize(
    "header", [b"[1, 2]", b'"text"', b"{nonsense}", b"{'a': 1}", b"\xff\xfe{}"]
)
def test_a_header_that_is_no_json_object_is_refused(file: Path, header: bytes):
    rejected(file, crafted(header))


@pytest.mark.parametrize("opening", [b'{"a":', b'{"a":[' + b"["])
def test_a_deeply_nested_header_is_refused_without_a_crash(file: Path, opening: bytes):
    rejected(file, crafted(opening * 100_000))


def test_numbers_of_thousands_of_digits_are_refused(file: Path):
    rejected(
        file, crafted(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * 9999))
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [(b"9" * 301, "301 digits"), (b"-" + b"9" * 4000, "4001 digits"), (b"1e400", "'1e400'")],
)
def test_a_number_that_is_no_finite_float_is_refused_wherever_it_stands(number: bytes, words: str):
    with pytest.raises(CheckpointError, match=words):
        parse_object(b'{"image_mean":[0.5,{"a":' + number + b"}]}", "text")
    assert parse_object(b'{"a":' + b"9" * 300 + b"}", "text")["a"] > 0


def test_nesting_has_the_same_limit_however_deep_the_caller_is():
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert parse_object(nested(64), "text")
    with pytest.raises(CheckpointError, match="nested too deeply"):
        parse_object(nested(65), "text")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\n <html><head></head></html>", "web page"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (b"PK\x03\x04" + bytes(60), "python -m convert"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02", "python -m convert"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"", "empty"),
        (b"\x10\x00", "only 2 bytes"),
        (bytes(7), "only 7 bytes"),
        (bytes(100), "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_gets_its_own_sentence(file: Path, content: bytes, words: str):
    assert words in rejected(file, content)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".pkl", ".PTH"])
def test_a_pytorch_name_is_refused_whatever_the_content(tmp_path: Path, suffix: str):
    text = rejected(tmp_path / f"model{suffix}", crafted(GOOD, GOOD_DATA))
    assert "python -m convert" in text


def test_a_header_of_640_bytes_is_not_taken_for_a_pickle(file: Path):
    header = json.dumps(GOOD).encode().ljust(0x0280)  # its length starts like a pickle, 80 02
    file.write_bytes(crafted(header, GOOD_DATA))
    assert list(check_file(file).tensors) == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 8, 31, 32, 40, 100])
def test_a_truncated_file_is_refused(file: Path, cut: int):
    content = crafted(GOOD, GOOD_DATA)
    assert "truncated" in rejected(file, content[:-cut])


def test_trailing_bytes_are_refused(file: Path):
    assert "after its last tensor" in rejected(file, crafted(GOOD, GOOD_DATA + b"\0"))


def test_a_duplicate_tensor_is_refused_though_the_safetensors_parser_takes_the_last(file: Path):
    one = json.dumps(entry("F32", [1], 0, 4))
    text = rejected(file, crafted(f'{{"a":{one},"a":{one}}}'.encode(), bytes(4)))
    assert "'a' twice" in text


def test_a_duplicate_key_within_an_entry_is_refused(file: Path):
    header = b'{"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,4]}}'
    assert "'shape' twice" in rejected(file, crafted(header, bytes(4)))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (entry("F32", [1], 0, 4), "shared"),
        (entry("F32", [2], 20, 28), "shared"),
        (entry("F32", [1], 28, 32), "a hole"),
    ],
)
def test_overlaps_and_holes_are_refused_naming_the_tensor(file: Path, second: dict, words: str):
    text = rejected(file, crafted({"a": GOOD["a"], "second": second}, GOOD_DATA))
    assert words in text and "tensor '" in text


@pytest.mark.parametrize(
    "bad",
    [
        entry("F32", [65536] * 4, 0, 0),
        entry("F32", [2**63, 2], 0, 0),
        entry("F32", [2**64], 0, 0),
        entry("F32", [0, 2**64 - 1, 2], 0, 0),
        entry("F32", [-1], 0, 4),
        entry("F32", [-1, -1], 0, 4),
        entry("F32", [1.0], 0, 4),
        entry("F32", [1.5], 0, 6),
        entry("F32", [True], 0, 4),
        entry("F32", ["1"], 0, 4),
        entry("F32", [None], 0, 4),
        entry("F32", [[1]], 0, 4),
        entry("F32", [1] * 100, 0, 4),
        entry("F32", [2], 0, 4),
        entry("F99", [1], 0, 4),
        entry("F32", [1], 4, 0),
        entry("F32", [1], -4, 0),
        entry("F32", [1], 0.0, 4.0),
        entry("F32", [1], "0", "4"),
        entry("F32", [1], 2**70, 2**70 + 4),
        {"dtype": "F32", "shape": [1]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "strides": [1]},
        [1],
        None,
        7,
    ],
)
def test_an_impossible_entry_is_refused_naming_the_tensor(file: Path, bad: object):
    assert "'bad'" in rejected(file, crafted({"bad": bad}, bytes(4)))


@pytest.mark.parametrize("metadata", [[1], "x", {"a": 1}, {"a": {"b": "c"}}])
def test_metadata_that_is_no_object_of_texts_is_refused(file: Path, metadata: object):
    rejected(file, crafted({"__metadata__": metadata} | GOOD, GOOD_DATA))


def test_a_name_with_control_characters_is_escaped_in_the_message(file: Path):
    text = rejected(file, crafted({"x\x1b[31m\n" * 50: 7}))
    assert "\x1b" not in text and "\\x1b" in text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_is_refused_without_waiting(tmp_path: Path, make):
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        check_file(path)


@pytest.mark.parametrize("name", ["absent.safetensors", "nul\0.safetensors", "x" * 5000])
def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path, name: str):
    with pytest.raises(CheckpointError):
        check_file(tmp_path / name)


def test_a_file_that_shrinks_after_the_check_is_an_error_not_a_crash(file: Path):
    write_tensors(file, {"a": ("F32", np.ones(10_000, np.float32))})
    checked = check_file(file)
    os.truncate(file, 20_000)
    with pytest.raises(CheckpointError, match="changed after it was checked"):
        TensorReader(checked)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(file: Path):
    write_tensors(file, {"a": ("F32", np.ones(10_000, np.float32))})
    with TensorReader(check_file(file)) as reader:
        os.truncate(file, 20_000)
        with pytest.raises(CheckpointError, match="cut short while tensor 'a'"):
            reader.read("a")


def test_a_file_replaced_while_it_is_read_is_not_mixed_in(file: Path, tmp_path: Path):
    write_tensors(file, {"a": ("F32", np.ones(4, np.float32))})
    other = tmp_path / "other.safetensors"
    write_tensors(other, {"a": ("F32", np.zeros(4, np.float32))})
    checked = check_file(file)
    with TensorReader(checked) as reader:
        os.replace(other, file)
        assert reader.read("a").tolist() == [1, 1, 1, 1]
    with pytest.raises(CheckpointError, match="changed"):
        read_tensor(checked, "a")


def test_checking_reads_the_header_only(file: Path):
    """A sparse file of 8 GB is checked within little memory and no time."""
    count = 2**31
    file.write_bytes(crafted({"a": entry("F32", [count], 0, 4 * count)}))
    os.truncate(file, file.stat().st_size + 4 * count)
    code = "from aim_mlx.weights.safetensors_file import check_file\n"
    code += "check_file(sys.argv[1]); print(peak())"
    out = subprocess.run(
        [sys.executable, "-c", PEAK + code, str(file)], capture_output=True, text=True, timeout=60
    )
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 300e6


# Fuzzing: the outcome is a CheckedFile or a CheckpointError, and never more than safetensors takes.


def agree(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        checked = check_file(path)
    except CheckpointError:
        return
    with safetensors.safe_open(str(path), framework="numpy") as file:
        assert set(file.keys()) == set(checked.tensors)
    for name in checked.tensors:
        read_tensor(checked, name)


fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**63, 2**64, 10**30]))
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "C64", "f32", ""]),
        "shape": st.lists(st.one_of(st.integers(0, 4), numbers), max_size=3),
        "data_offsets": st.lists(st.one_of(st.integers(0, 32), numbers), min_size=1, max_size=3),
    }
)


@fuzz
@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused(tmp_path: Path, content: bytes):
    agree(tmp_path / "x.safetensors", content)


@fuzz
@given(
    st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3), st.binary(max_size=40)
)
def test_any_header_is_accepted_or_refused(tmp_path: Path, header: dict, data: bytes):
    agree(tmp_path / "x.safetensors", crafted(header, data))


@fuzz
@given(st.data())
def test_a_sound_file_with_changed_bytes_is_accepted_or_refused(
    tmp_path: Path, data: st.DataObject
):
    content = bytearray(crafted(GOOD | {"__metadata__": {"a": "b"}}, GOOD_DATA))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    agree(tmp_path / "x.safetensors", bytes(content[: data.draw(st.integers(0, len(content)))]))


@fuzz
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_text_is_an_object_or_refused(text: bytes):
    try:
        assert isinstance(parse_object(text, "text"), dict)
    except CheckpointError as error:
        assert "\n" not in str(error)
