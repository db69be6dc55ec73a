"""The data of the small model, gathered from packages made here."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "examples/nano/gather.py"
sys.path.insert(0, str(SCRIPT.parent))
import gather  # noqa: E402
from emoji import LANGUAGES, NAMES, STYLES, Concept  # noqa: E402

CODES = [f"1f{number:03x}" for number in range(0x400, 0x440)]
SVG = '<circle cx="8" cy="8" r="6" fill="#0a0"/>'


def held_out(code: str) -> bool:
    return Concept(code, {}, (), "").is_held_out


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """What the script makes of 64 emoji in two styles with codes and one that has only names."""
    folder = tmp_path_factory.mktemp("nano")
    names = folder / f"packages/emojibase-data-{NAMES.version}/package"
    for language in LANGUAGES:
        rows = [
            {"hexcode": code.upper(), "label": f"{language} {code}", "group": 1, "subgroup": 3}
            for code in CODES
        ]
        rows.append({"hexcode": "1F400-200D-2640-FE0F", "label": "a woman", "group": 1})
        write(names / language / "data.json", rows)
    write(names / "meta/groups.json", {"subgroups": {"3": "animal-mammal"}})
    write(names / "meta/unicode-names.json", {CODES[0].upper(): "FIRST OF ALL"})
    for package in STYLES:
        root = folder / f"packages/{package.style}-{package.version}/package"
        icons = {code: {"body": SVG} for code in CODES}
        chars = {code: code for code in CODES}
        if package.style == "fxemoji":
            icons, chars = {"firstofall": {"body": SVG}, "unknown": {"body": SVG}}, {}
        write(root / "icons.json", {"icons": icons, "width": 16, "height": 16})
        write(root / "chars.json", chars)
    options = ["--pictures", "2", "--shapes", "30", "--letters", "5"]
    subprocess.run([sys.executable, SCRIPT, folder, *options], check=True, capture_output=True)
    return folder


def rows(data: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]


def code_of(path: str) -> str:
    return next(code for code in CODES if f"-{code}" in path)


def test_every_picture_of_a_table_is_there(data):
    for name in ("train", "words", "held_out_style", "held_out_concepts"):
        found = rows(data, name)
        assert found and all((data / row["path"]).is_file() for row in found)
    for language in LANGUAGES:
        for row in rows(data, f"languages/{language}"):
            assert (data / "languages" / row["path"]).is_file()
            assert row["caption"] == f"{language} {code_of(row['path'])}"


def test_nothing_held_out_is_trained_on(data):
    emoji = [row["path"] for row in rows(data, "train") if "1f4" in row["path"]]
    assert not any("openmoji" in path or held_out(code_of(path)) for path in emoji)
    assert len({code_of(path) for path in emoji}) == sum(not held_out(code) for code in CODES)
    unseen = {code_of(row["path"]) for row in rows(data, "held_out_concepts")}
    assert unseen == {code for code in CODES if held_out(code)} and len(unseen) > 2
    assert len(rows(data, "held_out_style")) == len(CODES)


def test_names_has_the_emoji_of_train_with_their_names(data):
    with open(data / "names.csv", newline="") as file:
        named = {row["path"]: row["label"] for row in csv.DictReader(file)}
    emoji = {row["path"] for row in rows(data, "train") if "1f4" in row["path"]}
    assert set(named) == emoji and len(emoji) > 100
    assert all(name == f"en {code_of(path)}" for path, name in named.items())
    with open(data / "names_and_kinds.csv", newline="") as file:
        mixed = {row["path"]: row["label"] for row in csv.DictReader(file)}
    kinds = {path for path in emoji if path.endswith("-1.png")}  # the last of two pictures
    assert mixed == {
        path: "kind: animal mammal" if path in kinds else named[path] for path in named
    }
    assert len(kinds) == len(emoji) / 2


def test_words_has_the_pictures_of_train_with_more_words(data):
    train, words = ({row["path"]: [] for row in rows(data, name)} for name in ("train", "words"))
    assert list(train) == list(words)
    for name, texts in (("train", train), ("words", words)):
        for row in rows(data, name):
            texts[row["path"]].append(row["caption"])
    for path in train:
        assert words[path][: len(train[path])] == train[path]
        if "1f4" in path:
            code, more = code_of(path), words[path][len(train[path]) :]
            assert train[path][0] == f"en {code}" and more[0] == "animal mammal"
            others = [text.split() for text in more[1:4]]
            assert all(each == code and language in LANGUAGES for language, each in others)
            assert len({language for language, _ in others} - {"en"}) == 3
            for text, what in zip(more[4:], ("an animal mammal", f"an en {code}"), strict=True):
                assert text in (what, f"a drawing of {what}")


def test_phrases_have_the_article_of_what_they_name():
    names = {language: f"{language} owl" for language in LANGUAGES} | {"en": "owl"}
    rng = np.random.default_rng(0)
    said = [gather.words(Concept(CODES[0], names, ("night",), "bird"), rng)[-2:] for _ in range(40)]
    assert {kind for kind, _ in said} == {"a bird", "a drawing of a bird"}
    owl, night = ("an owl", "a drawing of an owl"), ("a night", "a drawing of a night")
    assert {other for _, other in said} == {*owl, *night}


def test_a_set_without_codes_is_matched_by_its_names(data):
    paths = {row["path"] for row in rows(data, "train") + rows(data, "held_out_concepts")}
    assert {code_of(path) for path in paths if "fxemoji" in path} == {CODES[0]}


def test_the_same_seed_gives_the_same_pictures_and_another_others(tmp_path):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{SVG}</svg>'
    names = {language: f"{language} name" for language in LANGUAGES}
    drawing = gather.Drawing("noto", Concept(CODES[0], names, ("a", "b"), "animal"), svg, 2)

    def made(seed: int) -> list[object]:
        rows = gather.render((tmp_path, seed, drawing))
        rows += gather.render_drawn((tmp_path, seed, "shapes", 3))
        rows += gather.render_drawn((tmp_path, seed, "letter", 4))
        return [rows, *(path.read_bytes() for path in sorted(tmp_path.iterdir()))]

    (tmp_path / "images").mkdir()
    tmp_path = tmp_path / "images"
    first = made(0)
    assert first == made(0) and len(first) == 5
    assert all(one != other for one, other in zip(first, made(1), strict=True))


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    import emoji

    (tmp_path / "other.tgz").write_bytes(b"other")
    done = subprocess.CompletedProcess([], 0, stdout="other.tgz\n")
    monkeypatch.setattr("emoji.subprocess.run", lambda *_, **__: done)
    with pytest.raises(SystemExit, match="not the file that was pinned"):
        emoji.fetch(NAMES, tmp_path)
    assert not list(tmp_path.glob("*/package"))
