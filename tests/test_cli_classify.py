"""`aim-mlx classify` as a user runs it: small model, real files."""

import json
import os
import pty
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.words.lit import LiT
from tests.commands import run, start
from tests.small import photo, save, save_lit

LABELS = "red panda,a house,two dogs"
NAMES = ["a\n.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_lit(tmp_path_factory.mktemp("model") / "lit")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        Image.fromarray(photo(seed)).save(folder / name)
    (folder / "notes.txt").write_text("notes")
    return folder


def refused(capsys, *arguments, code: int = 2) -> str:
    """The one line that a command ends with."""
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, ""), err
    lines = [line for line in err.splitlines() if not line.startswith(("note:", "skipped"))]
    assert len(lines) == 1 and lines[0].startswith("aim-mlx: error: "), err
    return lines[0]


def test_the_best_label_of_each_photo_is_a_line_with_its_score(capsys, model, photos):
    code, out, err = run(capsys, "classify", photos, "--labels", LABELS, "--model", model)
    assert code == 0 and "3 classified, 0 skipped, 1 ignored" in err
    lit = aim_mlx.load(model)
    assert isinstance(lit, LiT)
    scores = lit.classify([photo(seed) for seed in range(3)], LABELS.split(","))
    for line, row, name in zip(out.splitlines(), scores, NAMES, strict=True):
        score, label, path = line.split("\t")
        assert label == LABELS.split(",")[row.argmax()] and abs(float(score) - row.max()) < 1e-4
        assert path == f"{photos}/{name}".replace("\n", "\\n")


def test_json_lines_have_exact_names_and_one_summary(capsys, model, photos):
    (photos / "broken.jpg").write_bytes(b"not an image")
    code, out, _ = run(
        capsys, "classify", photos, "--labels", LABELS, "--model", model, "--top", 2, "--json"
    )
    events = [json.loads(line) for line in out.splitlines()]
    images = [event for event in events if event["event"] == "image"]
    assert [Path(image["path"]).name for image in images] == NAMES
    assert all(len(image["labels"]) == 2 for image in images)
    skipped = [event for event in events if event["event"] == "skipped"]
    assert [Path(event["path"]).name for event in skipped] == ["broken.jpg"]
    summary = events[-1]
    assert summary["event"] == "summary" and summary["exit_code"] == code == 3
    counted = summary["classified"] + summary["skipped"] + summary["ignored"]
    assert counted == summary["listed"] == 5


def test_lines_go_to_stdout_though_a_bar_is_drawn_on_a_terminal(model, photos, tmp_path):
    terminal, theirs = pty.openpty()
    with open(tmp_path / "out", "wb") as out:
        asked = ["classify", photos, "--labels", LABELS, "--model", model, "--json"]
        process = start(*asked, stdout=out, stderr=theirs)
        os.close(theirs)
        drawn = b""
        while part := _read(terminal):
            drawn += part
    os.close(terminal)
    assert process.wait() == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "out").read_text().splitlines()]
    assert events == ["image"] * 3 + ["summary"] and b"images/s" in drawn


def _read(terminal: int) -> bytes:
    """What comes on a terminal; its end is an error on Linux and nothing on macOS."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_labels_come_from_a_file_and_templates_too(capsys, model, photos, tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfred panda\r\n\r\na house\r\ntwo dogs\r\n")
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n")
    files = ["--labels-file", tmp_path / "labels.txt", "--templates", tmp_path / "templates.txt"]
    _, given, _ = run(capsys, "classify", photos, "--labels", LABELS, "--model", model)
    code, out, _ = run(capsys, "classify", photos, *files, "--model", model)
    assert code == 0 and out == given


def test_saved_labels_give_the_same_answers(capsys, model, photos, tmp_path):
    head = tmp_path / "head"
    asked = ["--labels", LABELS, "--templates", "varied", "--save-head", head]
    code, first, _ = run(capsys, "classify", photos, *asked, "--model", model)
    assert code == 0
    code, again, _ = run(capsys, "classify", photos, "--head", head, "--model", model)
    assert code == 0 and again == first


def test_a_table_and_a_page_are_written(capsys, model, photos, tmp_path):
    table, page = tmp_path / "x.csv", tmp_path / "x.html"
    asked = ["--labels", f"<b>,{LABELS}", "-o", table, "--html", page]
    code, out, err = run(capsys, "classify", photos, *asked, "--model", model)
    assert (code, out) == (0, "") and str(table) in err
    assert table.read_text().count("\n") == 1 + 3 + 1  # head, labels, and one name has a line end
    text = page.read_text()
    assert text.count("<img ") == 3 and text.count('class="bar"') == 3 * 4
    assert "&lt;b&gt;" in text and "<b>" not in text


def test_a_page_does_not_change_what_is_told(capsys, model, photos, tmp_path):
    labels = ["--labels", "a,b,c,d,e,f,g", "--model", model]
    for number, asked in enumerate([[], ["--top", 2], ["--multi-label"], ["--top", 6]]):
        _, expected, _ = run(capsys, "classify", photos, *labels, *asked)
        page = tmp_path / f"{number}.html"
        _, out, _ = run(capsys, "classify", photos, *labels, *asked, "--html", page)
        assert out == expected
        bars = page.read_text().count('class="bar"')
        assert bars == 3 * [5, 2, 5, 6][number]


def test_labels_judged_by_themselves_may_be_several_or_none(capsys, model, photos):
    asked = ["--labels", LABELS, "--multi-label", "--threshold"]
    _, out, _ = run(capsys, "classify", photos, *asked, -1, "--model", model)
    assert len(out.splitlines()) == 9
    code, out, _ = run(capsys, "classify", photos, *asked, 1, "--model", model)
    assert code == 0 and [line[:2] for line in out.splitlines()] == ["\t\t"] * 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "one of --labels, --labels-file and --head"),
        (["--labels", "a,b", "--head", "h"], "one of --labels"),
        (["--labels", ""], "got none"),  # 51
        (["--labels", " , "], "got none"),
        (["--labels-file", "empty"], "has no labels"),
        (["--labels", "cat,dog,Cat"], "twice"),  # 53
        (["--labels", "a,b", "--templates", "none"], "one {} in the place"),  # 54
        (["--labels", "a,b", "--templates", "two"], "one {} in the place"),
        (["--labels", "a,b", "--templates", "format"], "one {} in the place"),  # 55
        (["--labels-file", "latin"], "not UTF-8"),  # 57
        (["--labels", "cat"], "nothing to choose from"),  # 58
        (["--labels", "a,b", "--top", "0"], "top must be"),
        (["--labels", "a,b", "--threshold", "2"], "threshold"),
        (["--labels", "a,b", "-o", "x.txt"], ".csv, .jsonl"),
        (["--labels", "a,b", "--html", "x.jpg"], ".html"),
        (["--labels", "a,b", "--batch-size", "0"], "batch size"),
        (["--head", "nowhere"], "labels.json"),
        (["--head", "nowhere", "--templates", "varied"], "leave out --templates"),
    ],
)
def test_bad_labels_and_templates_are_refused_before_the_model_is_loaded(
    capsys, photos, tmp_path, monkeypatch, arguments, reason
):
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n\n")
    Path("none").write_text("a photo\n")
    Path("two").write_text("{} and {}\n")
    Path("format").write_text("a {0.__class__}\n")
    Path("latin").write_bytes("café\nbar".encode("latin-1"))
    line = refused(capsys, "classify", photos, *arguments, "--model", "missing/model")
    assert reason in line


@pytest.mark.parametrize("option", ["--save-head", "--heatmap"])
def test_folders_that_cannot_be_written_into_are_refused_before_the_model_is_loaded(
    capsys, photos, tmp_path, option
):
    (tmp_path / "file").touch()
    asked = ["classify", photos, "--labels", LABELS, "--model", "missing/model", option]
    for folder, reason in (
        ("no/where", "create it"),
        ("file", "not a folder"),
        ("photos", "empty"),
    ):
        assert reason in refused(capsys, *asked, tmp_path / folder, code=5)


def test_braces_in_templates_and_labels_are_characters(capsys, model, photos, tmp_path):
    (tmp_path / "t").write_text("a {} of {0.a}\n")
    asked = ["--labels", "cat,{0.b}", "--templates", tmp_path / "t"]
    code, out, _ = run(capsys, "classify", photos, *asked, "--model", model)
    assert code == 0 and len(out.splitlines()) == 3


def test_prompts_over_the_context_length_are_cut_with_a_warning(capsys, model, photos):
    with pytest.warns(UserWarning, match="1 text of more than 32 tokens cut"):
        code, out, _ = run(
            capsys, "classify", photos, "--labels", "cat," + "2 " * 99, "--model", model
        )
    assert code == 0 and len(out.splitlines()) == 3


def test_a_model_without_a_text_tower_is_refused(capsys, photos, tmp_path):
    model = save(tmp_path / "vision")
    assert "no text tower" in refused(
        capsys, "classify", photos, "--labels", LABELS, "--model", model
    )


def test_a_model_without_a_tokenizer_is_refused(capsys, photos, tmp_path):
    model = save_lit(tmp_path / "bare", tokenizer=False)
    line = refused(capsys, "classify", photos, "--labels", LABELS, "--model", model, code=4)
    assert "tokenizer.json" in line


def test_saved_labels_of_another_model_are_refused(capsys, model, photos, tmp_path):
    asked = ["--labels", LABELS, "--save-head", tmp_path / "head"]
    run(capsys, "classify", photos, *asked, "--model", model)
    other = save_lit(tmp_path / "other", seed=1)
    line = refused(
        capsys, "classify", photos, "--head", tmp_path / "head", "--model", other, code=4
    )
    assert "make them again" in line


def test_no_images_and_none_that_can_be_read_end_with_1(capsys, model, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("notes")
    line = refused(capsys, "classify", empty, "--labels", LABELS, "--model", model, code=1)
    assert "0 images under" in line and "(ignored 1 file that is no image)" in line
    (empty / "broken.jpg").write_bytes(b"x")
    table = tmp_path / "x.csv"
    asked = ["--labels", LABELS, "--model", model, "-o", table]
    assert "none of 1 image " in refused(capsys, "classify", empty, *asked, code=1)
    assert not table.exists()


def test_inputs_stay_as_they_are(capsys, model, photos):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}
    run(capsys, "classify", photos, "--labels", LABELS, "--model", model)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in photos.iterdir()} == before


def test_scores_of_a_command_are_those_of_probabilities(capsys, model, photos):
    asked = ["--labels", LABELS, "--top", 3, "--json", "--model", model]
    _, out, _ = run(capsys, "classify", photos, *asked)
    for line in out.splitlines()[:-1]:
        total = sum(label["score"] for label in json.loads(line)["labels"])
        np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.fixture
def store(capsys, model, photos, tmp_path) -> Path:
    folder = tmp_path / "store"
    assert run(capsys, "embed", photos, "-o", folder, "--model", model)[0] == 0
    return folder


def test_a_store_gives_what_its_photos_give_and_saved_labels_need_no_model(
    capsys, model, photos, store, tmp_path, monkeypatch
):
    asked = ["--labels", LABELS, "--save-head", tmp_path / "head"]
    _, expected, _ = run(capsys, "classify", photos, "--labels", LABELS, "--model", model)
    code, out, err = run(capsys, "classify", store, *asked)
    assert code == 0 and out == expected and "3 classified" in err
    monkeypatch.setattr("aim_mlx.loading.load", lambda *_, **__: pytest.fail("no model is needed"))
    page = tmp_path / "x.html"
    code, out, _ = run(capsys, "classify", store, "--head", tmp_path / "head", "--html", page)
    assert code == 0 and out == expected and page.read_text().count("<img ") == 3


def test_rows_of_photos_that_are_gone_are_not_classified(capsys, photos, store):
    gone = photos / "b.png"
    gone.unlink()
    code, out, err = run(capsys, "classify", store, "--labels", LABELS)
    assert code == 0 and out.count("\n") == 2 and gone.name not in out
    assert "2 classified" in err and "1 photo that is gone was left out: --gone" in err
    _, out, _ = run(capsys, "classify", store, "--labels", LABELS, "--gone")
    assert out.count("\n") == 3 and gone.name in out
    assert "leave it out" in refused(capsys, "classify", photos, "--labels", LABELS, "--gone")


def test_a_store_is_refused_beside_others_with_a_model_or_of_another_pooling(
    capsys, model, photos, store, tmp_path
):
    asked = ["--labels", LABELS]
    assert "give it alone" in refused(capsys, "classify", store, photos, *asked)
    for option in (["--model", model], ["--follow"], ["--batch-size", 2]):
        assert "embedded already" in refused(capsys, "classify", store, *asked, *option)
    mean = tmp_path / "mean"
    run(capsys, "embed", photos, "-o", mean, "--model", model, "--pooling", "mean")
    assert "'mean' pooling" in refused(capsys, "classify", mean, *asked)
    vision = tmp_path / "vision"
    run(capsys, "embed", photos, "-o", vision, "--model", save(tmp_path / "plain"))
    assert "'mean' pooling" in refused(capsys, "classify", vision, *asked)


def test_a_store_of_another_model_than_the_saved_labels_is_refused(
    capsys, model, photos, store, tmp_path
):
    other = save_lit(tmp_path / "other", seed=1)
    head = tmp_path / "head"
    run(capsys, "classify", photos, "--labels", LABELS, "--save-head", head, "--model", other)
    line = refused(capsys, "classify", store, "--head", head, code=4)
    assert "make them again" in line


def test_pictures_show_where_the_best_label_looks(capsys, model, photos, store, tmp_path):
    for number, source in enumerate((["--model", model, photos], [store])):
        folder = tmp_path / str(number)
        code, _, err = run(capsys, "classify", *source, "--labels", LABELS, "--heatmap", folder)
        assert code == 0 and "3 heat maps" in err
        pictures = sorted(folder.iterdir())
        assert [path.name[:9] for path in pictures] == ["000000-a-", "000001-b-", "000002-c-"]
        with Image.open(pictures[0]) as picture:
            assert picture.size == (448, 448)  # of 4 x 4 patches of 14, eight times as large
