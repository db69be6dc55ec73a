"""`aim-mlx search` and `aim-mlx duplicates` on a store made by `aim-mlx embed`."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.cli import main as cli
from aim_mlx.store.reader import EmbeddingStore, Photos
from tests.commands import run, start
from tests.small import photo, save
from tests.test_cli import assert_one_line

ODD = "odd \x1b[31m<b>\n.png"


def saved(path: Path, seed: int, level: float = 1.0) -> Path:
    Image.fromarray((photo(seed) * level).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a model, photos (two of them equal, one a bit darker) and their store."""
    folder = tmp_path_factory.mktemp("made")
    save(folder / "model")
    (folder / "photos").mkdir()
    for seed in range(6):
        saved(folder / "photos" / f"{seed}.png", seed)
    saved(folder / "photos" / ODD, 2)
    saved(folder / "photos" / "darker.png", 4, 0.97)
    assert embed(folder, "store") == 0
    return folder


def embed(folder: Path, store: str, *options: str) -> int:
    arguments = [folder / "photos", "-o", folder / store, "--model", folder / "model", *options]
    return cli._run(["embed", *map(str, arguments)])


def names(stdout: str) -> list[str]:
    return [line.split("\t")[-1].rsplit("/", 1)[-1] for line in stdout.splitlines()]


def no_model(*_, **__):
    raise AssertionError("the model was loaded")


def test_the_photos_most_alike_come_first_with_their_similarity(capsys, made, tmp_path):
    query = saved(tmp_path / "query.png", 4, 0.95)
    code, stdout, stderr = run(capsys, "search", made / "store", "--image", query, "-k", 3)
    assert code == 0 and set(names(stdout)[:2]) == {"4.png", "darker.png"} and not stderr
    encoder, photos = aim_mlx.load(made / "model"), sorted((made / "photos").iterdir())
    expected = np.sort(encoder.embed(photos) @ encoder.embed([query])[0])[::-1][:3]
    scores = [float(line.split("\t")[0]) for line in stdout.splitlines()]
    np.testing.assert_allclose(scores, expected, atol=1e-4)  # four digits are printed


@pytest.mark.parametrize("name", ["as it is", "relative", "through a link", "a link"])
def test_the_photo_searched_for_is_not_among_its_own_hits(
    capsys, made, monkeypatch, tmp_path, name
):
    monkeypatch.chdir(made)
    (tmp_path / "linked").symlink_to(made / "photos")
    (tmp_path / "link.png").symlink_to(made / "photos" / "2.png")
    query = {
        "as it is": made / "photos" / "2.png",
        "relative": "photos/2.png",
        "through a link": tmp_path / "linked" / "2.png",
        "a link": tmp_path / "link.png",
    }[name]
    code, stdout, _ = run(capsys, "search", made / "store", "--image", query, "-k", 2)
    assert code == 0 and len(names(stdout)) == 2
    assert names(stdout)[0] == "odd \\x1b[31m<b>\\n.png" and "2.png" not in names(stdout)


def test_a_photo_of_the_store_is_found_without_the_model(capsys, made, monkeypatch, tmp_path):
    monkeypatch.setattr("aim_mlx.loading.load_encoder", no_model)
    query = tmp_path / "query.png"
    shutil.copy(made / "photos" / "2.png", query)
    code, stdout, _ = run(capsys, "search", made / "store", "--image", query, "-k", 2, "--json")
    first, second, summary = map(json.loads, stdout.splitlines())
    assert code == 0 and first["score"] == second["score"] == pytest.approx(1, abs=1e-12)
    assert [Path(each["path"]).name for each in (first, second)] == ["2.png", ODD]
    paths = EmbeddingStore(made / "store").paths
    assert paths[first["row"]] == first["path"] and (first["rank"], second["rank"]) == (1, 2)
    assert summary == {"event": "summary", "results": 2, "html": None, "exit_code": 0}


def test_a_search_by_a_photo_of_the_store_does_not_wait_for_what_only_models_need(made):
    code = (
        "import sys, aim_mlx.cli.main as cli; code = cli._run(sys.argv[1:]);"
        "models = {'aim_mlx.loading', 'aim_mlx.words', 'tqdm'} & set(sys.modules);"
        "sys.exit(code or (str(models) if models else 0))"
    )
    query = ["search", str(made / "store"), "--image", str(made / "photos" / "2.png")]
    done = subprocess.run([sys.executable, "-c", code, *query], capture_output=True, text=True)
    assert (done.returncode, len(names(done.stdout))) == (0, 7), done.stderr


def test_a_store_is_searched_with_its_own_pooling_layers_and_lengths(capsys, made, tmp_path):
    assert embed(made, "other", "--pooling", "max", "--layers", "0,-1", "--no-normalize") == 0
    query = saved(tmp_path / "query.png", 4, 0.95)
    code, stdout, _ = run(capsys, "search", made / "other", "--image", query, "--json")
    encoder, photos = aim_mlx.load(made / "model"), sorted((made / "photos").iterdir())
    vectors = encoder.embed([*photos, query], pooling="max", layers=[0, -1])
    expected = np.sort(vectors[:-1] @ vectors[-1])[::-1]
    scores = [json.loads(line)["score"] for line in stdout.splitlines()[:-1]]
    assert code == 0 and len(scores) == len(photos)
    np.testing.assert_allclose(scores, expected, atol=1e-5)  # float32 vectors


def test_queries_are_weighed_and_subtracted(capsys, made):
    photos, store = made / "photos", EmbeddingStore(made / "store")
    at = {Path(path).name: store.vectors[row] for row, path in enumerate(store.paths)}
    options = ["--image", photos / "0.png", "--image", photos / "1.png", "--minus"]
    options += [photos / "3.png", "--weights", "2,1,0.5", "--json"]
    code, stdout, _ = run(capsys, "search", made / "store", *options)
    query = 2 * at["0.png"] + at["1.png"] - 0.5 * at["3.png"]
    others = [at[name] for name in at if name not in ("0.png", "1.png", "3.png")]
    expected = np.sort(np.array(others) @ query / np.linalg.norm(query))[::-1]
    scores = [json.loads(line)["score"] for line in stdout.splitlines()[:-1]]
    assert code == 0
    np.testing.assert_allclose(scores, expected, atol=1e-6)  # float32 vectors


def test_names_are_escaped_on_the_terminal_and_exact_in_json(capsys, made):
    command = ["search", made / "store", "--image", made / "photos" / "2.png", "-k", 2]
    _, stdout, _ = run(capsys, *command)
    assert names(stdout)[0] == "odd \\x1b[31m<b>\\n.png" and len(stdout.splitlines()) == 2
    _, stdout, _ = run(capsys, *command, "--json")
    assert json.loads(stdout.splitlines()[0])["path"].endswith(ODD)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_a_name_that_is_not_utf8_is_found_and_shown(capsys, made, tmp_path):
    (tmp_path / "photos").mkdir()
    path = os.fsdecode(os.fsencode(tmp_path / "photos") + b"/\xff.png")
    saved(Path(path), 1)
    arguments = ["embed", tmp_path / "photos", "-o", tmp_path / "store"]
    assert run(capsys, *arguments, "--model", made / "model")[0] == 0
    page = tmp_path / "page.html"
    query = saved(tmp_path / "query.png", 1)
    code, stdout, _ = run(capsys, "search", tmp_path / "store", "--image", query, "--html", page)
    assert code == 0 and names(stdout) == ["\\udcff.png"]
    assert "\\udcff.png" in page.read_text() and "vanished" not in page.read_text()


def test_the_page_shows_queries_and_results_with_the_stores_photos(capsys, made, tmp_path):
    page, query = tmp_path / "page.html", saved(tmp_path / "query.png", 4)
    options = ["--image", query, "--minus", made / "photos" / "0.png", "--html", page, "-k", 8]
    code, stdout, _ = run(capsys, "search", made / "store", *options)
    text = page.read_text()
    titles = ["Similar to", "Not similar to", "Results"]
    assert code == 0 and re.findall("<h2>(.*?)</h2>", text) == titles
    assert text.count("data:image/jpeg;base64,") == 9  # 0.png is searched for, not found
    assert "&lt;b&gt;" in text and "<b>" not in text and "\x1b" not in text
    scores = [line.split("\t")[0] for line in stdout.splitlines()]
    assert re.findall(r"<div>(-?\d\.\d{4})</div>", text) == scores
    for data in re.findall(r"base64,([^\"]*)", text):
        assert base64.b64decode(data).startswith(b"\xff\xd8")


@pytest.fixture
def mine(capsys, made, tmp_path) -> Path:
    """A store of three photos that a test may do away with, two of them nearly equal."""
    for name, seed, level in (("a", 1, 1.0), ("b", 1, 0.97), ("c", 2, 1.0)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        saved(tmp_path / "mine" / name / f"{name}.png", seed, level)
    arguments = ["embed", tmp_path / "mine", "-o", tmp_path / "store"]
    assert run(capsys, *arguments, "--model", made / "model")[0] == 0
    return tmp_path / "mine"


def found(capsys, mine: Path, *options) -> tuple[list[str], str]:
    """The names found for the photo that a.png is, and what was said."""
    query = saved(mine.parent / "query.png", 1)
    store = mine.parent / "store"
    code, stdout, stderr = run(capsys, "search", store, "--image", query, "-k", 2, *options)
    assert code == 0
    return names(stdout), stderr


def grouped(capsys, mine: Path, *options) -> tuple[list[str], str]:
    """The names in groups of near-duplicates, and what was said."""
    command = ["duplicates", mine.parent / "store", "--threshold", 0.9, *options]
    code, stdout, stderr = run(capsys, *command)
    assert code == 0
    return names(stdout), stderr


@pytest.mark.parametrize("what", ["file", "folder"])
def test_photos_that_are_gone_are_left_out_unless_asked_for(capsys, mine, what):
    assert grouped(capsys, mine)[0] == ["a.png", "b.png"]
    shutil.rmtree(mine / "a") if what == "folder" else (mine / "a" / "a.png").unlink()
    names, stderr = found(capsys, mine)
    assert names == ["b.png", "c.png"]
    assert stderr == "note: 1 photo that is gone was left out: --gone shows them\n"
    assert grouped(capsys, mine)[0] == []
    assert found(capsys, mine, "--gone") == (["a.png", "b.png"], "")
    assert grouped(capsys, mine, "--gone")[0] == ["a.png", "b.png"]


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_photos_of_a_folder_that_is_not_there_are_found_with_a_note(capsys, mine, left):
    mine.rename(mine.parent / "away")
    if left == "an empty folder":  # where a disk was mounted
        mine.mkdir()
    names, stderr = found(capsys, mine, "--html", mine.parent / "page.html")
    assert names == ["a.png", "b.png"]
    assert stderr == "note: 2 photos are not there now: is their disk mounted?\n"
    assert (mine.parent / "page.html").read_text().count("vanished") == 2
    assert grouped(capsys, mine)[0] == ["a.png", "b.png"]


def test_a_store_that_was_moved_with_its_photos_finds_them_from_their_folder(
    capsys, made, tmp_path, monkeypatch
):
    (tmp_path / "old" / "photos").mkdir(parents=True)
    saved(tmp_path / "old" / "photos" / "a.png", 1)
    monkeypatch.chdir(tmp_path / "old")
    assert run(capsys, "embed", "photos", "-o", "store", "--model", made / "model")[0] == 0
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    (tmp_path / "old" / "photos" / "a.png").unlink()
    monkeypatch.chdir(tmp_path / "new")
    query = saved(tmp_path / "query.png", 2)
    code, stdout, stderr = run(capsys, "search", "store", "--image", query)
    assert (code, names(stdout), stderr) == (0, ["a.png"], "")


def test_only_the_photos_near_enough_are_looked_for(capsys, made, monkeypatch, tmp_path):
    looked: list[int] = []
    look = Photos._look
    monkeypatch.setattr(Photos, "_look", lambda self, row: looked.append(row) or look(self, row))
    query = saved(tmp_path / "query.png", 2)
    run(capsys, "search", made / "store", "--image", query, "-k", 3)
    assert len(looked) == 4  # one may be the photo searched for


@pytest.fixture
def several(capsys, made, tmp_path, monkeypatch) -> Path:
    """A folder whose store names its photos twice, as stores of before may."""
    (tmp_path / "in").mkdir()
    for seed in (1, 2):
        saved(tmp_path / "in" / f"{seed}.png", seed)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("aim_mlx.embedding.plan.rows_under_other_names", lambda *_: {})
        for name in ("in", tmp_path / "in"):
            run(capsys, "embed", name, "-o", "store", "--model", made / "model")
    assert len(EmbeddingStore("store")) == 4
    return tmp_path


def test_a_file_is_no_duplicate_of_itself(capsys, several):
    code, stdout, stderr = run(capsys, "duplicates", "store")
    assert (code, stdout) == (0, "") and stderr.startswith("0 groups of copies, 0 groups of near")
    code, stdout, _ = run(capsys, "search", "store", "--image", "in/1.png")
    assert code == 0 and names(stdout) == ["2.png"]


def test_a_link_is_no_copy_and_a_hard_link_is_named_as_one(capsys, made, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    saved(folder / "b.png", 1)
    (folder / "a.png").symlink_to("b.png")
    os.link(folder / "b.png", folder / "c.png")
    shutil.copy(folder / "b.png", folder / "d.png")
    arguments = ["-o", tmp_path / "store", "--model", made / "model"]
    assert run(capsys, "embed", folder / "a.png", *arguments)[0] == 0
    for name in ("b.png", "c.png", "d.png"):
        assert run(capsys, "embed", folder / name, *arguments)[0] == 0
    _, stdout, _ = run(capsys, "duplicates", tmp_path / "store", "--exact")
    lines = [line.split("\t") for line in stdout.splitlines()]
    assert [(line[1], Path(line[-1]).name) for line in lines] == [
        ("reference", "b.png"),
        ("hard link", "c.png"),
        ("copy", "d.png"),
    ]


def test_another_model_than_the_stores_is_refused(capsys, made, tmp_path):
    save(tmp_path / "model")
    arguments = ["-o", tmp_path / "store", "--model", tmp_path / "model"]
    assert run(capsys, "embed", made / "photos", *arguments)[0] == 0
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1  # of the last weight
    weights.write_bytes(data)
    query = saved(tmp_path / "new.png", 9)
    code, stdout, stderr = run(capsys, "search", tmp_path / "store", "--image", query)
    assert code == 4 and not stdout
    assert_one_line(stderr, "weights", "store")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--image"),
        (["--image", "missing.png"], "vanished"),
        (["--image", "broken.png"], "not_image"),
        (["--image", "."], "not_regular"),
        (["--image", "0.png", "--minus", "0.png"], "cancel"),
        (["--image", "0.png", "--weights", "1,2"], "a weight for each of 1"),
        (["--image", "0.png", "--weights", "-1"], "above 0"),
        (["--image", "0.png", "--weights", "x"], "1,0.5"),
        (["--image", "0.png", "-k", "0"], "-k"),
        (["--image", "0.png", "--html", "0.png"], ".html"),
    ],
)
def test_a_search_that_has_no_answer_is_a_usage_error(
    capsys, made, monkeypatch, tmp_path, options, said
):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "0.png", 0)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    code, stdout, stderr = run(capsys, "search", made / "store", *options)
    assert code == 2 and not stdout
    assert_one_line(stderr, said)


@pytest.mark.parametrize(
    "command", [["search", "--image", "0.png"], ["duplicates"]], ids=lambda each: each[0]
)
def test_stores_that_cannot_be_searched_are_refused(capsys, made, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    name, *options = command
    (tmp_path / "other").mkdir()
    for store, code, said in (("missing", 2, "missing"), ("other", 5, "not a store")):
        assert run(capsys, name, store, *options)[0] == code
        assert_one_line(run(capsys, name, store, *options)[2], said)
    monkeypatch.setattr(EmbeddingStore, "__len__", lambda _: 0)
    code, stdout, stderr = run(capsys, name, made / "store", *options)
    assert code == 1 and not stdout
    assert_one_line(stderr, "no rows")


def test_a_page_replaces_nothing_unless_told_to(capsys, made, tmp_path):
    page, photos = tmp_path / "page.html", made / "photos"
    page.write_text("mine")
    (tmp_path / "folder.html").mkdir()
    command = ["search", made / "store", "--image", photos / "0.png", "--html"]
    for target in ("page.html", "folder.html", "missing/page.html"):
        code, stdout, stderr = run(capsys, *command, tmp_path / target)
        assert code == 5 and not stdout
        assert_one_line(stderr, target.split("/")[0])
    assert page.read_text() == "mine"
    assert run(capsys, *command, page, "--overwrite")[0] == 0 and "<html" in page.read_text()


def test_a_page_of_ours_is_replaced_without_asking(capsys, made, tmp_path):
    page, command = tmp_path / "page.html", ["search", made / "store", "--html"]
    assert run(capsys, *command, page, "--image", made / "photos" / "0.png")[0] == 0
    before = page.read_text()
    for options in (["search", "--image", made / "photos" / "1.png"], ["duplicates"]):
        name, *rest = options
        assert run(capsys, name, made / "store", "--html", page, *rest)[0] == 0
        assert page.read_text() != before
        before = page.read_text()
    for other in (f"<p>{before}", before.replace('content="aim-mlx"', 'content="other"')):
        page.write_text(other)  # someone's own, our mark among its text or none
        assert run(capsys, *command, page, "--image", made / "photos" / "0.png")[0] == 5
        assert page.read_text() == other
    (tmp_path / "link.html").symlink_to("page.html")
    page.write_text(before)
    linked = [tmp_path / "link.html", "--image", made / "photos" / "0.png"]
    assert run(capsys, *command, *linked)[0] == 5 and page.read_text() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_page_that_the_disk_has_no_room_for_is_an_output_error(
    capsys, made, tmp_path, monkeypatch
):
    from aim_mlx import files as durable

    def opened(path, mode="r", **more):
        return open("/dev/full", "wb") if "x" in mode else open(path, mode, **more)

    monkeypatch.setattr(durable, "open", opened, raising=False)
    command = ["duplicates", made / "store", "--html", tmp_path / "page.html"]
    code, stdout, stderr = run(capsys, *command)
    assert code == 5 and not stdout
    assert_one_line(stderr, "page.html", "No space left")


def test_near_duplicates_come_in_groups(capsys, made):
    code, stdout, stderr = run(capsys, "duplicates", made / "store", "--threshold", 0.99)
    lines = [line.split("\t") for line in stdout.splitlines()]
    assert code == 0
    assert stderr == "1 group of copies, 1 group of near-duplicates: 4 photos of 8 rows\n"
    assert [(line[0], line[1], Path(line[-1]).name) for line in lines[:3]] == [
        ("1", "reference", "2.png"),
        ("1", "copy", "odd \\x1b[31m<b>\\n.png"),
        ("2", "reference", "4.png"),
    ]
    assert (lines[3][0], Path(lines[3][-1]).name) == ("2", "darker.png")
    assert 0.99 <= float(lines[3][1]) < 1


def test_each_photo_of_a_group_has_what_one_chooses_by(capsys, made):
    os.utime(made / "photos" / "2.png", (1e9, 1e9))
    _, stdout, _ = run(capsys, "duplicates", made / "store", "--exact")
    path = made / "photos" / "2.png"
    facts = EmbeddingStore(made / "store").table(["path", "mtime_ns"]).to_pylist()
    (mtime,) = (row["mtime_ns"] for row in facts if row["path"] == str(path))
    date = datetime.fromtimestamp(mtime // 10**9).strftime("%Y-%m-%d %H:%M")
    size = str(path.stat().st_size)
    expected = ["1", "reference", "80x60", size, date, str(path)]
    assert stdout.splitlines()[0].split("\t") == expected


def test_exact_copies_need_no_vectors(capsys, made, monkeypatch):
    monkeypatch.setattr(EmbeddingStore, "vectors", None)
    code, stdout, _ = run(capsys, "duplicates", made / "store", "--exact")
    assert code == 0 and names(stdout) == ["2.png", "odd \\x1b[31m<b>\\n.png"]
    code, _, stderr = run(capsys, "duplicates", made / "store", "--exact", "--threshold", 0.9)
    assert code == 2
    assert_one_line(stderr, "leave out --threshold")


def test_groups_in_json_have_their_rows_and_exact_paths(capsys, made, tmp_path):
    page = tmp_path / "page.html"
    command = ["duplicates", made / "store", "--threshold", 1, "--json", "--html", page]
    code, stdout, _ = run(capsys, *command)
    group, summary = map(json.loads, stdout.splitlines())
    paths = EmbeddingStore(made / "store").paths
    photos = group["photos"]
    assert code == 0 and all(paths[each["row"]] == each["path"] for each in photos)
    assert [Path(each["path"]).name for each in photos] == ["2.png", ODD]
    assert [each["likeness"] for each in photos] == ["reference", "copy"] and group["exact"]
    assert (photos[0]["width"], photos[0]["height"]) == (80, 60)
    assert summary["groups"] == 1 and summary["photos"] == 2 and summary["rows"] == 8
    assert page.read_text().count("data:image/jpeg;base64,") == 2


@pytest.mark.parametrize("threshold", ["0", "1.5", "nan"])
def test_a_threshold_that_is_no_cosine_is_a_usage_error(capsys, made, threshold):
    code, _, stderr = run(capsys, "duplicates", made / "store", "--threshold", threshold)
    assert code == 2
    assert_one_line(stderr, "threshold")


def test_a_closed_pipe_ends_quietly(made):
    with start("search", made / "store", "--image", made / "photos" / "0.png") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_store_takes_no_vectors_of_other_preprocessing(capsys, made, tmp_path):
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in" / "a.png", 1)
    shutil.copytree(made / "model", tmp_path / "model")
    command = ["embed", tmp_path / "in", "-o", tmp_path / "store", "--model", tmp_path / "model"]
    assert run(capsys, *command)[0] == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["preprocessing"]["mean"][0] != 0.5
    config["preprocessing"]["mean"][0] = 0.5
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    code, _, stderr = run(capsys, *command)
    assert code == 5
    assert_one_line(stderr, "preprocessing", "--overwrite")


def test_a_changed_store_is_searched_as_it_is_now_and_keeps_one_matrix(capsys, made, tmp_path):
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in" / "a.png", 1)
    query = saved(tmp_path / "query.png", 2)
    embedding = ["embed", tmp_path / "in", "-o", tmp_path / "store", "--model", made / "model"]
    searching = ["search", tmp_path / "store", "--image", query]
    for count, change in enumerate(("add", "replace")):
        assert run(capsys, *embedding)[0] == 0
        assert names(run(capsys, *searching)[1])[0] == ["a.png", "b.png"][count]
        assert len(list((tmp_path / "store").glob(".vectors-*"))) == 1
        saved(tmp_path / "in" / ("b.png" if change == "add" else "a.png"), 2 + count)
    # As many rows as before, and one of them of another photo.
    assert run(capsys, *embedding)[0] == 0
    _, stdout, _ = run(capsys, *searching, "--json")
    of_now = EmbeddingStore(tmp_path / "store")
    encoder = aim_mlx.load(made / "model")
    expected = encoder.embed([saved(tmp_path / "a.png", 3)])[0] @ encoder.embed([query])[0]
    scores = {Path(r["path"]).name: r["score"] for r in map(json.loads, stdout.splitlines()[:-1])}
    assert scores["a.png"] == pytest.approx(float(expected), abs=1e-5)  # float32 vectors
    assert len(of_now) == 2 and len(list((tmp_path / "store").glob(".vectors-*"))) == 1


def test_in_a_store_of_any_lengths_the_most_alike_come_first_and_not_the_longest(
    capsys, made, tmp_path
):
    assert embed(made, "lengths", "--no-normalize") == 0
    vectors = np.array(EmbeddingStore(made / "lengths").vectors)
    photos = [Path(path).name for path in EmbeddingStore(made / "lengths").paths]
    query = saved(tmp_path / "query.png", 9)
    vector = aim_mlx.load(made / "model").embed([query])[0]
    dots, lengths = vectors @ vector, np.linalg.norm(vectors, axis=1)
    best = int(np.argmax(dots / lengths))
    # Two are asked for, as one may be the photo searched for; longer vectors hide the best.
    assert best not in np.argsort(-dots)[:2]
    code, stdout, _ = run(capsys, "search", made / "lengths", "--image", query, "-k", 1)
    assert code == 0 and names(stdout) == [photos[best]]


@pytest.mark.parametrize("offline", [[], ["--offline"]], ids=str)
def test_offline_holds_for_the_model_of_the_store(capsys, made, tmp_path, monkeypatch, offline):
    asked, encoder = [], aim_mlx.load(made / "model")

    def load(*_, **options):
        asked.append(options["offline"])
        return encoder

    monkeypatch.setattr("aim_mlx.loading.load", load)
    query = saved(tmp_path / "query.png", 9)
    assert run(capsys, "search", made / "store", "--image", query, *offline)[0] == 0
    assert asked == [bool(offline)]
