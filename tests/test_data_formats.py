"""Data sets as the Hugging Face Hub has them: metadata beside images, and images in Parquet."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aim_mlx.config import PreprocessConfig
from aim_mlx.data.labelled import Columns, Data
from aim_mlx.data.pairs import read_pairs
from aim_mlx.data.splits import divided
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images import decode, parquet_images, stream
from tests.bad_images import encoded
from tests.commands import run
from tests.digits import write_digits
from tests.small import photo, save

CLASSES = {"_type": "ClassLabel", "names": ["cat", "dog"]}


def picture(number: int) -> bytes:
    return encoded(Image.fromarray(photo(number)), "PNG")


def packed(
    path: Path,
    images: list[Any],
    features: dict[str, Any] | None = None,
    group: int = 3,
    options: Mapping[str, Any] = MappingProxyType({}),
    **more,
) -> Path:
    """A file as `datasets` writes it: images as structs, what it knows of them in the schema."""
    cells = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(cells, kind), **more})
    if features is not None:
        said = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(said)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, **options)
    return path


def labelled(
    path: Path, numbers: range, features: dict[str, Any] | None = None, group: int = 3, **options
) -> Path:
    images = [picture(number) for number in numbers]
    features = {"label": CLASSES} if features is None else features
    return packed(path, images, features, group, options, label=[n % 2 for n in numbers])


def image_folder(root: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]], suffix: str):
    """Images, and the metadata that names them first in each row."""
    root.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        path = root / row[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    target = root / f"metadata.{suffix}"
    if suffix == "csv":
        lines = [",".join(map(str, row)) for row in (columns, *rows)]
        target.write_text("\n".join(lines))
    elif suffix == "jsonl":
        target.write_text("\n".join(json.dumps(dict(zip(columns, r, strict=True))) for r in rows))
    else:
        values = [list(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(dict(zip(columns, values, strict=True))), target)
    return root


def refused(source: Path, *words: str, **options) -> None:
    with pytest.raises(UsageError) as raised:
        Data(source, **options).labelled()
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


NAMED = [("a.png", "cat"), ("sub/b.png", "dog")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_names_the_images_beside_it_and_their_labels(tmp_path, suffix):
    root = image_folder(tmp_path / "data", ("file_name", "label"), NAMED, suffix)
    (root / "more.png").write_bytes(picture(9))
    found = Data(root).labelled()
    assert [(item.path, item.labels, item.split) for item in found.items] == [
        (str(root / "a.png"), ("cat",), None),
        (str(root / "sub/b.png"), ("dog",), None),
    ]
    assert "1 image that no row of the metadata names, left out" in found.notes


def test_metadata_in_the_folders_of_splits_is_of_those(tmp_path):
    for name in ("train", "validation", "test"):
        image_folder(tmp_path / name, ("file_name", "label"), NAMED, "csv")
    found = Data(tmp_path).labelled()
    assert [item.split for item in found.items] == ["test"] * 2 + ["train"] * 2 + ["val"] * 2


def test_one_metadata_may_name_images_in_the_folders_of_splits(tmp_path):
    rows = [("train/a.png", "cat"), ("train/b.png", "dog"), ("dev/c.png", "cat")]
    root = image_folder(tmp_path, ("file_name", "label"), rows, "jsonl")
    assert [item.split for item in Data(root).labelled().items] == ["val", "train", "train"]


@pytest.mark.parametrize("name", ["file_name", "image_path", "image"])
def test_a_table_may_call_the_paths_as_others_do(tmp_path, name):
    image_folder(tmp_path, (name, "label"), NAMED, "csv").joinpath("metadata.csv").rename(
        tmp_path / "table.csv"
    )
    items = Data(tmp_path / "table.csv").labelled().items
    assert [item.path for item in items] == [str(tmp_path / row[0]) for row in NAMED]


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "sub/../../a.png"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_name_that_leaves_the_folder_is_refused_with_its_row(tmp_path, name, suffix):
    image_folder(tmp_path, ("file_name", "label"), NAMED, suffix)
    (tmp_path / f"metadata.{suffix}").unlink()
    rows = [*NAMED, (name, "cat")]
    lines = {
        "csv": "\n".join(["file_name,label", *map(",".join, rows)]),
        "jsonl": "\n".join(json.dumps({"file_name": a, "label": b}) for a, b in rows),
    }
    target = tmp_path / f"metadata.{suffix}"
    if suffix == "parquet":
        paths, labels = zip(*rows, strict=True)
        pq.write_table(pa.table({"file_name": list(paths), "label": list(labels)}), target)
    else:
        target.write_text(lines[suffix])
    place = {"csv": "line 4", "jsonl": "line 3", "parquet": "row 3"}[suffix]
    refused(tmp_path, f"{place} of metadata.{suffix}: 'file_name'", "leaves the folder")


def test_metadata_without_a_file_name_or_in_two_formats_is_refused(tmp_path):
    image_folder(tmp_path, ("name", "label"), NAMED[:1], "csv")
    refused(tmp_path, "no folder with images", "metadata.csv has no column 'path'")
    refused(tmp_path, "no column 'class'", columns=Columns("name", "class"))
    (tmp_path / "metadata.jsonl").write_text("{}")
    refused(tmp_path, "has 'metadata.csv', 'metadata.jsonl': keep one")


def test_class_folders_keep_their_labels_beside_metadata_that_has_none(tmp_path):
    rows = [("cat/a.png", "asleep"), ("dog/b.png", "awake")]
    root = image_folder(tmp_path, ("file_name", "text"), rows, "csv")
    found = Data(root).labelled()
    assert found.classes == ("cat", "dog")
    assert any("the folders are taken for the classes" in note for note in found.notes)


def test_images_in_parquet_have_the_names_of_their_classes_and_splits(tmp_path):
    labelled(tmp_path / "data/train-00000-of-00002.parquet", range(6))
    labelled(tmp_path / "data/train-00001-of-00002.parquet", range(6, 12))
    labelled(tmp_path / "data/validation-00000-of-00001.parquet", range(12, 16))
    labelled(tmp_path / "data/test-00000-of-00001.parquet", range(16, 18))
    (tmp_path / "README.md").write_text("a card")
    found = divided(Data(tmp_path))
    assert found.classes == ("cat", "dog") and not found.skips and not found.notes
    counts = {name: part.counts(2).tolist() for name, part in found.parts.items()}
    assert counts == {"train": [6, 6], "val": [2, 2], "test": [1, 1]}
    part = found.parts["val"]
    assert part.digests == [hashlib.sha256(picture(n)).hexdigest() for n in range(12, 16)]
    assert part.paths[0] == f"{tmp_path}/data/validation-00000-of-00001.parquet#1"
    for number, path in zip(range(12, 16), part.paths, strict=True):
        np.testing.assert_array_equal(np.asarray(decode(path)), photo(number))


def test_folders_of_splits_may_hold_the_parquet_files(tmp_path):
    labelled(tmp_path / "default/train/0000.parquet", range(4))
    labelled(tmp_path / "default/test/0000.parquet", range(4, 6))
    labelled(tmp_path / ".cache/test/0000.parquet", range(4, 6))
    assert [item.split for item in Data(tmp_path).labelled().items] == ["test"] * 2 + ["train"] * 4


def test_one_parquet_file_or_one_split_is_divided_here(tmp_path):
    path = labelled(tmp_path / "train.parquet", range(20))
    for source in (path, tmp_path):
        found = Data(source).labelled()
        assert not found.has_splits and len(found.items) == 20
        assert found.items[9].path == f"{path}#10"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_images_too(tmp_path, kind):
    images = pa.array([picture(n) for n in range(4)], kind)
    pq.write_table(pa.table({"photo": images, "kind": list("abab")}), tmp_path / "p.parquet")
    found = Data(tmp_path / "p.parquet", Columns("photo", "kind")).labelled()
    assert [item.labels[0] for item in found.items] == list("abab")
    np.testing.assert_array_equal(np.asarray(decode(found.items[2].path)), photo(2))


def test_columns_of_other_names_are_known_by_what_the_schema_says(tmp_path):
    path = labelled(tmp_path / "p.parquet", range(4))
    table = pq.read_table(path).rename_columns(["img", "fine_label"])
    features = {"img": {"_type": "Image"}, "fine_label": CLASSES}
    for more, words in (({}, ""), ({"coarse_label": CLASSES}, "no column 'label'")):
        said = json.dumps({"info": {"features": features | more}})
        pq.write_table(table.replace_schema_metadata({"huggingface": said}), path)
        if words:
            refused(path, words, "'img', 'fine_label'")
        else:
            assert Data(path).labelled().classes == ("cat", "dog")


def test_lists_of_class_numbers_are_several_labels(tmp_path):
    features = {"label": {"_type": "List", "feature": CLASSES}}
    lists = pa.array([[0], [0, 1], []], pa.list_(pa.int64()))
    path = packed(tmp_path / "p.parquet", [picture(n) for n in range(3)], features, label=lists)
    items = Data(path, multi_label=True).labelled().items
    assert [item.labels for item in items] == [("cat",), ("cat", "dog"), ()]


def test_numbers_without_names_are_classes_by_their_digits(tmp_path):
    path = labelled(tmp_path / "p.parquet", range(4), {})
    assert Data(path).labelled().classes == ("0", "1")


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        ({"label": CLASSES}, [0, -2], "row 2 of p.parquet: 'label' is -2, expected the number of"),
        ({"label": CLASSES}, [0, 2], "from 0 to 1"),
        ({"label": CLASSES}, [-1, -1], "row 1 of p.parquet has no label, and so it is with all"),
        ({"label": CLASSES}, [0, None], "row 2 of p.parquet: expected text as 'label', got None"),
        ({"label": {"_type": "ClassLabel", "names": [1]}}, [0, 1], "are not named"),
        ({"label": {"_type": "ClassLabel"}}, [0, 1], "are not named"),
        ({}, [0.5, 1.5], "expected text as 'label', got a column of double"),
        ({}, [[0], [1]], "row 1 of p.parquet: expected text as 'label', got [0]"),
        ({}, [{"a": 1}, {"a": 2}], "got a column of struct"),
    ],
)
def test_labels_that_name_no_class_are_refused(tmp_path, features, labels, words):
    images = [picture(1), picture(2)]
    refused(packed(tmp_path / "p.parquet", images, features, label=labels), words)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    images = [picture(number) for number in range(8)]
    labels = [0, 1, -1, 0, 1, 0, 1, -1]
    packed(tmp_path / "train-0.parquet", images, {"label": CLASSES}, label=labels)
    packed(tmp_path / "test-0.parquet", images[:2], {"label": CLASSES}, label=[-1, -1])
    found = divided(Data(tmp_path))
    assert {name: len(part) for name, part in found.parts.items()} == {"train": 4, "val": 2}
    assert found.notes == (
        "4 rows have no label (-1), left out; the first: row 1 of test-0.parquet",
    )
    assert {path.split("#")[1] for part in found.parts.values() for path in part.paths} == {
        "1", "2", "4", "5", "6", "7",
    }  # fmt: skip


@pytest.mark.parametrize("said", [b"{", b"[" * 100_000, b"\xff"])
def test_a_schema_whose_features_are_no_json_is_refused(tmp_path, said):
    path = labelled(tmp_path / "p.parquet", range(2))
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": said}), path)
    refused(path, "p.parquet: what its schema says under 'huggingface' is not JSON")


@pytest.mark.parametrize("said", [[], {"info": []}, {"info": {"features": {"label": 3}}}])
def test_a_schema_that_says_something_else_is_as_if_it_said_nothing(tmp_path, said):
    path = labelled(tmp_path / "p.parquet", range(2))
    metadata = {"huggingface": json.dumps(said)}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    assert Data(path).labelled().classes == ("0", "1")


def test_numbers_in_one_file_and_names_in_another_are_refused(tmp_path):
    labelled(tmp_path / "a.parquet", range(4), {})
    labelled(tmp_path / "b.parquet", range(4))
    refused(tmp_path, "the labels of a.parquet are numbers, those of b.parquet names")


@pytest.mark.parametrize("image", [{"a": 1}, {"bytes": "text"}, [b"1"], 1.5])
def test_a_column_that_holds_neither_images_nor_paths_is_refused(tmp_path, image):
    table = pa.table({"image": pa.array([image]), "label": ["cat"]})
    pq.write_table(table, tmp_path / "p.parquet")
    refused(tmp_path / "p.parquet", "p.parquet: expected text as 'image', got a column of")


def test_cells_that_hold_no_image_are_left_out_by_their_name(tmp_path):
    cells = [picture(0), None, b"", b"no image", picture(4)]
    path = packed(tmp_path / "p.parquet", cells, {"label": CLASSES}, label=[0, 1, 0, 1, 0])
    items = Data(path).labelled().items
    samples = list(stream([item.path for item in items], PreprocessConfig.hub(8)))
    reasons = [sample.failure and sample.failure.reason for sample in samples]
    assert reasons == [None, "empty", "empty", "not_image", None]
    assert samples[1].path == f"{path}#2"


@pytest.fixture
def groups(monkeypatch) -> list[int]:
    """The row groups that are unpacked, from now on, with none kept."""
    read, numbers = parquet_images._read_group, []
    monkeypatch.setattr(
        parquet_images, "_read_group", lambda *each: numbers.append(each[2]) or read(*each)
    )
    monkeypatch.setattr(parquet_images, "_kept", OrderedDict())
    return numbers


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_row_group_is_unpacked_once_for_neighbours(tmp_path, groups, compression):
    path = labelled(tmp_path / "p.parquet", range(12), group=6, compression=compression)
    for item in Data(path).labelled().items:
        decode(item.path)
    assert groups == [0, 1]


@pytest.mark.parametrize("options", [{}, {"data_page_size": 300}, {"data_page_version": "2.0"}])
def test_images_without_compression_are_read_in_any_order_without_their_groups(
    tmp_path, groups, options
):
    path = labelled(
        tmp_path / "p.parquet", range(40), group=10, compression="none", use_dictionary=False,
        write_statistics=True, **options,
    )  # fmt: skip
    paths = [item.path for item in Data(path).labelled().items]
    for number in (0, 10, 20, 30):
        decode(paths[number])
    parquet_images._kept.clear()
    for number in np.random.default_rng(0).permutation(40):
        np.testing.assert_array_equal(np.asarray(decode(paths[number])), photo(number))
    assert groups == [0, 1, 2, 3]


def test_compressed_images_are_unpacked_again_in_another_order(tmp_path, groups):
    path = labelled(tmp_path / "p.parquet", range(6), compression="zstd")
    paths = [item.path for item in Data(path).labelled().items]
    for number in (0, 5, 1):
        parquet_images._kept.clear()
        np.testing.assert_array_equal(np.asarray(decode(paths[number])), photo(number))
    assert groups == [0, 1, 0]


def test_a_row_group_that_is_too_large_is_refused(tmp_path, monkeypatch):
    path = labelled(tmp_path / "p.parquet", range(12), group=6)
    monkeypatch.setattr(parquet_images, "_LARGEST_GROUP", 500)
    with pytest.raises(ImageError, match="row group 2 has more than 500 bytes of images"):
        decode(Data(path).labelled().items[-1].path)


def test_the_memory_for_row_groups_is_bounded(tmp_path, groups, monkeypatch):
    path = labelled(tmp_path / "p.parquet", range(12), group=2)
    monkeypatch.setattr(parquet_images, "_KEPT", 5 * len(picture(1)))
    kept = []
    for item in Data(path).labelled().items:
        decode(item.path)
        kept.append(len(parquet_images._kept))
    assert max(kept) == 2


def test_one_large_image_said_in_every_row_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_images, "_LARGEST_GROUP", 10**8)
    rows = 20_000
    images = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [b"x" * 2_000_000])
    table = pa.table({"image": images, "label": ["cat"] * rows})
    path = tmp_path / "p.parquet"
    pq.write_table(table, path, compression="zstd", write_statistics=False, store_schema=False)
    (first, *_) = Data(path).labelled().items
    usual, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(ImageError, match="has more than 100,000,000 bytes of images"):
            decode(first.path)
    finally:
        pa.set_memory_pool(usual)
    assert (counted.max_memory() or 0) < 2.5e8  # written out they are 40 GB


def test_a_file_that_changes_after_it_was_listed_gives_no_other_image_unnoticed(tmp_path):
    path = labelled(tmp_path / "p.parquet", range(4))
    found = divided(Data(path, test=0)).parts["train"]
    labelled(path, range(10, 12))
    for each, content in zip(found.paths, found.contents, strict=True):
        with pytest.raises(ImageError) as raised:
            decode(content.at(each))
        assert raised.value.reason in ("changed", "unreadable")
    path.unlink()
    with pytest.raises(ImageError, match="not there"):
        decode(found.paths[0])


def test_damaged_cells_are_failures_of_their_images_alone(tmp_path):
    path = labelled(tmp_path / "p.parquet", range(12))
    paths = [item.path for item in Data(path).labelled().items]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(40):
        data = bytearray(whole)
        data[rng.integers(4, len(whole) // 2)] ^= 255
        path.write_bytes(data)
        for each in paths:
            try:
                decode(each)
            except ImageError:
                failed += 1
    assert 15 < failed < 200


@pytest.mark.parametrize("column", ["caption", "text"])
def test_pairs_come_from_parquet_and_only_from_train(tmp_path, column):
    captions: dict[str, Any] = {column: ["a cat", "a dog", "a cat"]}
    for name, numbers in (("train", (1, 2, 1)), ("test", (3, 4, 5))):
        images = [picture(number) for number in numbers]
        packed(tmp_path / f"{name}-00000-of-00001.parquet", images, **captions)
    notes = []
    pairs, skips = read_pairs(tmp_path, noted=notes.append)
    assert pairs.captions == ("a cat", "a dog") and len(pairs.paths) == 2 and not skips
    assert notes == ["only train is learned from, left out: 'test-00000-of-00001.parquet'"]


def test_pairs_come_from_metadata_and_other_images_count_only_where_captions_may_lack(tmp_path):
    root = image_folder(tmp_path, ("file_name", "text"), NAMED, "jsonl")
    (root / "more.png").write_bytes(picture(9))
    notes = []
    pairs, _ = read_pairs(root, noted=notes.append)
    assert pairs.captions == ("cat", "dog") and len(pairs.paths) == 2
    assert notes == ["1 image that no row of the metadata names, left out"]
    pairs, _ = read_pairs(root, may_lack_captions=True)
    assert pairs.captions == ("cat", "dog") and len(pairs.paths) == 3


def test_images_with_labels_alone_serve_where_captions_may_lack(tmp_path):
    root = image_folder(tmp_path / "a", ("file_name", "label"), NAMED, "jsonl")
    notes = []
    pairs, _ = read_pairs(root, may_lack_captions=True, noted=notes.append)
    assert len(pairs.paths) == 2 and not pairs.captions
    assert notes[0].startswith("the images are taken by themselves, as line 1 of metadata.jsonl")
    path = labelled(tmp_path / "b/p.parquet", range(4))
    for source in (path, path.parent):
        pairs, _ = read_pairs(source, may_lack_captions=True)
        assert len(pairs.paths) == 4 and not pairs.captions
        with pytest.raises(UsageError, match="no column 'caption'"):
            read_pairs(source)


def test_a_folder_without_tables_has_no_pairs(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    with pytest.raises(UsageError, match="has no metadata.csv, .jsonl or .parquet"):
        read_pairs(tmp_path)


def test_a_probe_learns_from_images_in_parquet(capsys, tmp_path):
    numbers = {"train": 60, "validation": 20, "test": 20}
    source = write_digits(tmp_path / "folders", 10)
    images = [(path.read_bytes(), int(path.parent.name)) for path in sorted(source.rglob("*.png"))]
    order = np.random.default_rng(0).permutation(len(images))
    features = {"label": {"_type": "ClassLabel", "names": [f"digit {i}" for i in range(10)]}}
    for name, count in numbers.items():
        chosen, order = [images[i] for i in order[:count]], order[count:]
        cells, labels = map(list, zip(*chosen, strict=True))
        cells, labels = [*cells, None], [*labels, 0]
        packed(tmp_path / f"data/{name}-00000.parquet", cells, features, 16, label=labels)
    model, output = save(tmp_path / "model"), tmp_path / "probe"
    options = ["--model", model, "--allow-empty", "--json"]
    training = ["--head", "ep", "--epochs", "2", "--augment", "--views", "1"]
    code, lines, talk = run(
        capsys, "probe", "train", tmp_path / "data", "-o", output, *options, *training
    )
    assert code == 3 and "test-00000.parquet#21: empty: the cell has no bytes" in talk
    summary = json.loads(lines.splitlines()[-1])
    assert summary["images"] == {"train": 60, "val": 20, "test": 20}
    splits = [json.loads(line) for line in (output / "splits.jsonl").read_text().splitlines()]
    assert splits[0]["path"].endswith("train-00000.parquet#01")
    assert splits[0]["labels"][0].startswith("digit ")
    page = (output / "report.html").read_text()
    assert "test-00000.parquet#" in page and "head</dt><dd>ep" in page
    code, lines, talk = run(
        capsys, "probe", "eval", output, tmp_path / "data", "--allow-empty", "--json"
    )
    assert code == 3, talk
    assert json.loads(lines.splitlines()[-1])["figures"] == summary["figures"]
