"""`aim-mlx zeroshot-eval`: the figures of labelled images, by words alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.words.lit import LiT
from tests.commands import run
from tests.small import photo, save, save_lit

CLASSES = ["a_house", "cat", "red_panda"]
LABELS = ["a house", "cat", "red panda"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_lit(tmp_path_factory.mktemp("model") / "lit")


@pytest.fixture(scope="module")
def scores(model) -> np.ndarray:
    """The probabilities of eighteen photos."""
    lit = aim_mlx.load(model)
    assert isinstance(lit, LiT)
    return lit.classify([photo(seed) for seed in range(18)], LABELS)


def labelled(folder: Path, truth: list[int], names: list[str] = CLASSES) -> Path:
    """A folder of class folders, photo i in the class truth[i]."""
    for seed, each in enumerate(truth):
        (folder / names[each]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(seed)).save(folder / names[each] / f"{seed:02}.png")
    return folder


def summary(capsys, *arguments) -> dict:
    code, out, err = run(capsys, "zeroshot-eval", *arguments, "--json")
    found = json.loads(out.splitlines()[-1])
    assert found["event"] == "summary" and found["exit_code"] == code, err
    return found


def test_top_1_the_classes_and_the_confusion_are_those_counted_by_hand(
    capsys, model, scores, tmp_path
):
    truth = [seed % 3 for seed in range(18)]
    found = summary(capsys, labelled(tmp_path / "data", truth), "--model", model)
    said = scores.argmax(axis=1)
    assert found["top1"] == pytest.approx(np.mean(said == truth)) and found["top5"] is None
    for index, each in enumerate(found["classes"]):
        mine = said[np.array(truth) == index]
        assert each["name"] == CLASSES[index] and each["images"] == 6
        assert each["recall"] == pytest.approx(np.mean(mine == index))
    counted = {(m["class"], m["taken_for"]): m["images"] for m in found["confusion"]}
    pairs = [(CLASSES[t], CLASSES[s]) for t, s in zip(truth, said, strict=True) if t != s]
    assert counted == {pair: pairs.count(pair) for pair in pairs}
    assert found["labels"] == LABELS and found["skipped"] == 0


def test_images_in_the_folders_of_their_best_labels_are_all_right(capsys, model, scores, tmp_path):
    data = labelled(tmp_path / "data", scores.argmax(axis=1).tolist())
    for name in CLASSES:
        (data / name).mkdir(exist_ok=True)
    code, out, err = run(capsys, "zeroshot-eval", data, "--model", model, "--allow-empty")
    assert code == 0 and out.startswith("top-1\t100.00%\t") and "18 images, 0 skipped" in err
    assert "confused" not in out


def test_top_5_is_told_where_there_are_more_classes(capsys, model, tmp_path):
    names = ["cat", "dog", "red panda", "house", "tree", "car"]
    data = labelled(tmp_path / "data", [seed % 6 for seed in range(12)], names)
    code, out, _ = run(capsys, "zeroshot-eval", data, "--model", model, "--templates", "varied")
    assert code == 0 and "\ntop-5\t" in out
    assert summary(capsys, data, "--model", model)["top5"] >= 5 / 12


def test_folders_that_are_no_words_get_theirs_from_a_table(capsys, model, scores, tmp_path):
    names = ["n03", "n01", "n02"]
    data = labelled(tmp_path / "data", [seed % 3 for seed in range(18)], names)
    table = tmp_path / "names.csv"
    table.write_text("class,label\nn01,cat\nn02,red panda\nn03,a house\nn04,unused\n")
    found = summary(capsys, data, "--model", model, "--class-names", table)
    truth = np.arange(18) % 3
    assert found["labels"] == ["cat", "red panda", "a house"]
    assert found["top1"] == pytest.approx(np.mean(scores.argmax(axis=1) == truth))
    table.write_text("class,label\nn01,cat\nn02,dog\n")
    code, _, err = run(
        capsys, "zeroshot-eval", data, "--class-names", table, "--model", "missing/model"
    )
    assert code == 2 and "no label for the class 'n03'" in err


def test_of_splits_val_is_taken_unless_another_is_named(capsys, model, tmp_path):
    labelled(tmp_path / "data" / "train", [0, 1, 2, 0])
    labelled(tmp_path / "data" / "val", [0, 1, 2])
    data = tmp_path / "data"
    assert summary(capsys, data, "--model", model)["images"] == 3
    assert summary(capsys, data, "--model", model, "--split", "train")["images"] == 4
    code, _, err = run(capsys, "zeroshot-eval", data, "--model", model, "--split", "test")
    assert code == 2 and "there are train, val" in err


def test_bad_images_are_skipped_with_their_reason(capsys, model, tmp_path):
    data = labelled(tmp_path / "data", [0, 1, 2])
    (data / "cat" / "broken.jpg").write_bytes(b"not an image")
    code, out, err = run(capsys, "zeroshot-eval", data, "--model", model)
    assert code == 3 and "broken.jpg: not_image" in err and "3 images, 1 skipped" in err
    for path in data.glob("*/*.png"):
        path.write_bytes(b"x")
    code, out, err = run(capsys, "zeroshot-eval", data, "--model", model)
    assert (code, out) == (1, "") and "none of 4 images" in err


@pytest.mark.parametrize(
    ("names", "reason"), [(["cat", "Cat", "dog"], "cat"), (["cat"], "nothing to choose from")]
)
def test_classes_that_words_cannot_tell_apart_are_refused(capsys, names, reason, tmp_path):
    data = labelled(tmp_path / "data", list(range(len(names))), names)
    code, out, err = run(capsys, "zeroshot-eval", data, "--model", "missing/model")
    assert (code, out) == (2, "") and reason in err.lower()


def test_a_model_without_a_text_tower_is_refused(capsys, tmp_path):
    data = labelled(tmp_path / "data", [0, 1, 2])
    code, out, err = run(capsys, "zeroshot-eval", data, "--model", save(tmp_path / "vision"))
    assert (code, out) == (2, "") and "no text tower" in err
