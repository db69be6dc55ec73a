"""Labelled images from folders and tables, divided into splits; what is wrong with them is said."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aim_mlx.data.labelled import Columns, Data
from aim_mlx.data.splits import divided
from aim_mlx.errors import UsageError


@pytest.fixture
def root(tmp_path):
    """A folder to put files in by fill()."""
    return tmp_path / "data"


def fill(root, **folders: int) -> None:
    """So many different files in each folder; "__" stands for a slash."""
    for name, count in folders.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / f"{i}.jpg").write_bytes(f"{name} {i}".encode())


def counts(found) -> dict[str, list[int]]:
    return {name: part.counts(len(found.classes)).tolist() for name, part in found.parts.items()}


def refused(match: str, root, **options) -> None:
    with pytest.raises(UsageError, match=match) as raised:
        divided(Data(root, **options))
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value)


def test_a_folder_for_each_class_holds_its_images_at_any_depth(root):
    fill(root, cat=3, dog__big__old=2, dog=1)
    found = Data(root).labelled()
    assert found.classes == ("cat", "dog") and not found.has_splits
    assert [item.labels for item in found.items] == [("cat",)] * 3 + [("dog",)] * 3
    assert found.items[-1].path == str(root / "dog/big/old/1.jpg")


def test_the_working_folder_may_be_the_data(root, monkeypatch):
    fill(root, cat=1, dog=1, probe=1)
    monkeypatch.chdir(root)
    found = Data(".").labelled("probe")
    assert found.classes == ("cat", "dog")
    assert [item.path for item in found.items] == ["cat/0.jpg", "dog/0.jpg"]


def test_folders_of_splits_are_taken_as_such(root):
    fill(root, train__cat=4, train__dog=4, validation__cat=1, validation__dog=2, test__cat=1)
    fill(root, test__dog=1, annotations=1)
    found = Data(root).labelled()
    assert found.classes == ("cat", "dog") and {item.split for item in found.items} == {
        "train",
        "val",
        "test",
    }
    assert "beside the splits, left out: 'annotations'" in found.notes
    assert counts(divided(Data(root))) == {"train": [4, 4], "val": [1, 2], "test": [1, 1]}


def test_splits_without_val_take_it_from_train(root):
    fill(root, train__cat=10, train__dog=10, test__cat=3, test__dog=2)
    found = divided(Data(root, val=0.2))
    assert counts(found) == {"train": [8, 8], "val": [2, 2], "test": [3, 2]}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_gives_paths_beside_itself_labels_and_splits(tmp_path, suffix):
    rows = [("b.jpg", "dog", "val"), ("a.jpg", "cat", "train"), ("/z/c.jpg", "dog", "Training")]
    table = write(tmp_path / f"data{suffix}", ("image", "class", "part"), rows)
    found = Data(table, columns=Columns("image", "class", "part")).labelled()
    assert [(item.path, item.labels, item.split) for item in found.items] == [
        (str(tmp_path / "a.jpg"), ("cat",), "train"),
        (str(tmp_path / "b.jpg"), ("dog",), "val"),
        ("/z/c.jpg", ("dog",), "train"),
    ]


def test_a_table_needs_no_column_of_splits(tmp_path):
    table = write(tmp_path / "data.csv", ("path", "label"), [("a.jpg", "cat"), ("b.jpg", "dog")])
    assert not Data(table).labelled().has_splits


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_column_of_splits_that_is_named_must_be_there(tmp_path, multi_label):
    rows = [("a.jpg", "cat", "train"), ("b.jpg", "dog", "val")]
    table = write(tmp_path / "data.csv", ("path", "label", "split"), rows)
    with pytest.raises(UsageError, match="no column 'splt': it has 'path', 'label', 'split'"):
        Data(table, columns=Columns(split="splt"), multi_label=multi_label).labelled()
    found = Data(table, columns=Columns(split="split"), multi_label=multi_label).labelled()
    assert [item.split for item in found.items] == ["train", "val"]


def test_columns_of_a_folder_are_refused(root):
    fill(root, cat=3, dog=3)
    with pytest.raises(UsageError, match="is a folder and has no columns"):
        Data(root, columns=Columns(label="class")).labelled()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_several_labels_are_a_list_or_text_with_semicolons(tmp_path, suffix):
    several = ["sky; sea", "sea", ""] if suffix == ".csv" else [["sky", "sea"], ["sea"], []]
    rows = list(zip(["a.jpg", "b.jpg", "c.jpg"], several, strict=True))
    found = Data(
        write(tmp_path / f"data{suffix}", ("path", "label"), rows), multi_label=True
    ).labelled()
    assert found.classes == ("sea", "sky")
    assert [set(item.labels) for item in found.items] == [{"sky", "sea"}, {"sea"}, set()]


def test_a_list_of_labels_where_one_is_expected_is_refused_with_its_place(tmp_path):
    table = write(tmp_path / "data.jsonl", ("path", "label"), [("a.jpg", ["sky", "sea"])])
    with pytest.raises(UsageError, match="line 1 of data.jsonl: expected text as 'label'"):
        Data(table).labelled()


def test_a_split_of_another_name_is_refused_with_its_place(tmp_path):
    table = write(tmp_path / "data.csv", ("path", "label", "split"), [("a.jpg", "cat", "extra")])
    with pytest.raises(UsageError, match="line 2 of data.csv: a split is train, val or test"):
        Data(table).labelled()


def write(path, columns, rows):
    """A table of these rows."""
    if path.suffix == ".parquet":
        values = [list(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(dict(zip(columns, values, strict=True))), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(",".join(row) for row in [columns, *rows]))
    return path


def test_the_split_is_stratified(root):
    fill(root, cat=100, dog=20, owl=4)
    found = divided(Data(root, val=0.15, test=0.25))
    assert counts(found) == {"train": [60, 12, 2], "val": [15, 3, 1], "test": [25, 5, 1]}


def test_the_split_depends_on_seed_and_content_alone(root):
    fill(root, cat=50, dog=50)

    def val(seed):
        return set(divided(Data(root), seed).parts["val"].digests)

    before = val(1)
    assert val(1) == before != val(2)
    for i, path in enumerate(sorted((root / "cat").iterdir())):
        path.rename(path.with_name(f"renamed {50 - i}.jpg"))
    assert val(1) == before


def test_several_labels_are_split_so_that_rare_ones_are_everywhere(tmp_path):
    rows = []
    for i in range(100):
        (tmp_path / f"{i}.jpg").write_text(str(i))
        rows.append((f"{i}.jpg", "sea;rare" if i % 10 == 0 else "sea;sky" if i % 2 else ""))
    table = write(tmp_path / "data.csv", ("path", "label"), rows)
    found = divided(Data(table, multi_label=True))
    assert found.classes == ("rare", "sea", "sky")
    assert counts(found)["val"] == [2, 10, 8] and counts(found)["test"] == [2, 10, 8]
    assert found.parts["train"].labels.dtype == np.float32


def test_a_repeated_content_counts_once_and_is_never_in_two_parts(root):
    fill(root, cat=20, dog=20)
    for i in range(20):
        (root / f"cat/copy {i}.jpg").write_bytes((root / f"cat/{i}.jpg").read_bytes())
    found = divided(Data(root))
    digests = [set(part.digests) for part in found.parts.values()]
    assert sum(map(len, digests)) == len(set.union(*digests)) == 40
    assert any(note.startswith("20 images with the content of another") for note in found.notes)


def test_a_content_in_two_classes_is_left_out_with_both(root):
    fill(root, cat=5, dog=5)
    (root / "dog/0.jpg").write_bytes((root / "cat/0.jpg").read_bytes())
    found = divided(Data(root))
    assert [(os.path.relpath(skip.path, root), skip.reason) for skip in found.skips] == [
        ("cat/0.jpg", "contradiction"),
        ("dog/0.jpg", "contradiction"),
    ]
    assert sum(len(part) for part in found.parts.values()) == 8


def test_a_content_in_two_folders_has_both_classes_where_there_may_be_several(root):
    fill(root, cat=5, dog=5)
    (root / "dog/0.jpg").write_bytes((root / "cat/0.jpg").read_bytes())
    found = divided(Data(root, multi_label=True))
    labels = np.concatenate([part.labels for part in found.parts.values()])
    assert len(labels) == 9 and (labels.sum(axis=1) == 2).sum() == 1


def test_an_empty_class_is_named(root):
    fill(root, cat=5, dog=5, owl=0)
    refused(r"no images in '.*owl'.*--allow-empty", root)
    assert Data(root, allow_empty=True).labelled().classes == ("cat", "dog")


def test_one_class_is_refused(root):
    fill(root, cat=5)
    refused("at least two classes, got 1 \\('cat'\\)", root)


def test_a_flat_folder_is_answered_with_the_layout_that_is_expected(root):
    root.mkdir()
    (root / "1.jpg").write_bytes(b"1")
    refused("no folder with images, and 1 image in no folder: expected a folder.*cat/1.jpg", root)


def test_images_outside_the_class_folders_are_noted(root):
    fill(root, cat=1, dog=1)
    (root / "readme.jpg").write_bytes(b"1")
    assert any("1 image in" in note for note in Data(root).labelled().notes)


def test_folders_that_tools_leave_behind_are_no_classes(root):
    fill(root, cat=1, dog=1, **{".ipynb_checkpoints": 1, ".hidden": 1, "__MACOSX": 1})
    found = Data(root).labelled()
    assert found.classes == ("cat", "dog")
    assert any(".ipynb_checkpoints" in note and ".hidden" in note for note in found.notes)


def test_too_few_images_to_split_are_refused_with_the_class(root):
    fill(root, cat=5, dog=2)
    refused(r"class 'dog' has 2 images.*at least 3.*--test 0", root)
    assert counts(divided(Data(root, test=0))) == {"train": [4, 1], "val": [1, 1]}


def test_an_imbalance_over_twenty_times_is_a_warning(root):
    fill(root, cat=90, dog=3)
    (warning,) = divided(Data(root, test=0)).warnings
    assert warning.startswith("imbalance: class 'cat' has 76 images to train on and 'dog' 2")
    fill(root, dog=9)
    assert divided(Data(root, test=0)).warnings == ()


@pytest.mark.parametrize("lacking", ["train", "val"])
def test_splits_with_other_classes_are_refused(root, lacking):
    fill(root, train__cat=5, train__dog=5, val__cat=2, val__dog=2)
    fill(root, **{f"{'val' if lacking == 'train' else 'train'}__owl": 2})
    refused(f"{lacking} has no images of 'owl'", root)
    if lacking == "val":
        assert divided(Data(root, allow_empty=True)).classes == ("cat", "dog", "owl")


def test_the_same_content_in_two_splits_is_a_warning_of_a_leak(root):
    fill(root, train__cat=5, train__dog=5, val__cat=2, val__dog=2)
    (root / "val/cat/0.jpg").write_bytes((root / "train/cat/3.jpg").read_bytes())
    (warning,) = divided(Data(root)).warnings
    assert warning.startswith("leak: 1 image is in train and in val")


def test_files_that_cannot_be_read_are_listed(tmp_path):
    rows = [(f"{name}{i}.jpg", name) for name in ("cat", "dog") for i in range(5)]
    for path, _ in rows[:-1]:
        (tmp_path / path).write_text(path)
    found = divided(Data(write(tmp_path / "data.csv", ("path", "label"), rows)))
    assert [(os.path.basename(skip.path), skip.reason) for skip in found.skips] == [
        ("dog4.jpg", "vanished")
    ]
    assert sum(len(part) for part in found.parts.values()) == 9


def test_a_table_none_of_whose_files_is_there_says_where_paths_start(tmp_path):
    rows = [("cat.jpg", "cat"), ("dog.jpg", "dog")]
    refused(
        "none of the 2 images can be read.*relative to its own folder",
        write(tmp_path / "data.csv", ("path", "label"), rows),
    )


def test_a_class_that_cannot_be_read_at_all_is_refused(tmp_path):
    rows = [(f"{name}{i}.jpg", name) for name in ("cat", "dog", "owl") for i in range(5)]
    for path, name in rows:
        if name != "owl":
            (tmp_path / path).write_text(path)
    refused(
        r"no images of 'owl' that can be read.*\(5 cannot be used, the first '.*owl0.jpg'",
        write(tmp_path / "data.csv", ("path", "label"), rows),
    )
    (tmp_path / "owl3.jpg").write_text("owl")
    refused(r"'owl' has 1 image .* \(4 cannot be used", tmp_path / "data.csv")


@pytest.mark.parametrize("names", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("a", "\uff41")])
def test_class_names_equal_by_case_or_unicode_form_are_refused(tmp_path, names):
    rows = [(f"{i}.jpg", name) for i, name in enumerate(names)]
    table = write(tmp_path / "data.csv", ("path", "label"), rows)
    refused("differ only by case or Unicode form", table)


def test_two_folders_of_one_split_are_refused(root):
    fill(root, train__cat=5, train__dog=5, val__cat=2, validation__dog=2)
    refused("are both val", root)


@pytest.mark.parametrize("options", [{"val": 0.0}, {"val": 0.9}, {"test": -0.1}, {"test": np.nan}])
def test_parts_that_cannot_be_are_refused(root, options):
    fill(root, cat=5, dog=5)
    refused("--(val|test) must be from", root, **options)


def test_what_cannot_be_decoded_leaves_its_part_and_is_listed(root):
    from aim_mlx.images import Skip

    fill(root, cat=10, dog=10)
    found = divided(Data(root))
    path = found.parts["train"].paths[0]
    rest = found.without([Skip(path, "not_image", "no")])
    assert path not in rest.parts["train"].paths and rest.skips[-1].path == path
    assert len(rest.parts["train"]) == len(found.parts["train"]) - 1
    assert rest.digest() != found.digest()
    dogs = [Skip(path, "not_image", "no") for path in found.parts["val"].paths if "dog" in path]
    with pytest.raises(UsageError, match="val has no images of 'dog'"):
        found.without(dogs)


def test_a_missing_column_is_answered_with_the_options_that_name_another(tmp_path):
    (tmp_path / "data.csv").write_text("file,species\na.png,owl\n")
    refused("has 'file', 'species' .--path-column and --label-column", tmp_path / "data.csv")
