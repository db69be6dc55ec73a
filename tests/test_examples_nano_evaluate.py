"""What the small model is measured by, on tables and pictures made here."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.data.labelled import Item, Labelled
from aim_mlx.data.pairs import Pairs, read_pairs
from aim_mlx.errors import CheckpointError, OutputError, UsageError
from aim_mlx.report.figures import wilson
from tests import small

SCRIPT = Path(__file__).parent.parent / "examples/nano/evaluate.py"
sys.path.insert(0, str(SCRIPT.parent))
import evaluate  # noqa: E402
import measures  # noqa: E402
from emoji import LANGUAGES  # noqa: E402

NAMES = [f"thing {i}" for i in range(6)]
SUBGROUPS = ("one half", "another half")


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"path": image, "caption": name}) for image, name in rows]
    path.write_text("\n".join(lines) + "\n")


def write_labels(path: Path, images: list[str]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows((image, SUBGROUPS[i % 2]) for i, image in enumerate(images))


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder as gather.py writes it, of six concepts in noise; two are held out."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "languages").mkdir()

    def pictures(style: str, numbers: range) -> list[str]:
        names = [f"images/{style}-{i}.png" for i in numbers]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name)
        return names

    style = pictures("open", range(6))
    seen, unseen = pictures("noto", range(4)), pictures("noto", range(4, 6))
    write_table(folder / "held_out_style.jsonl", list(zip(style, NAMES, strict=True)))
    write_table(folder / "held_out_concepts.jsonl", list(zip(unseen, NAMES[4:], strict=True)))
    write_labels(folder / "subgroups_style.csv", style)
    write_labels(folder / "subgroups_concepts.csv", unseen)
    captions = [name for name in NAMES[:4] for _ in range(2)]
    captions[1::2] = [f"a drawing of {name}" for name in NAMES[:4]]
    write_table(folder / "train.jsonl", list(zip(np.repeat(seen, 2), captions, strict=True)))
    for language in LANGUAGES:
        rows = [
            (f"../{image}", f"{language} {name}") for image, name in zip(style, NAMES, strict=True)
        ]
        write_table(folder / f"languages/{language}.jsonl", rows)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """A probe of one pass on 60 digits."""
    images, labels = measures.digits(56)
    monkeypatch.setattr(measures, "digits", lambda side: (images[:90], labels[:90]))
    monkeypatch.setattr(measures, "TRAINING_DIGITS", 60)
    monkeypatch.setattr(measures, "PROBE", {"learning_rates": (1e-3,), "epochs": 1})


def pairs_of(captions: list[str], images: list[int]) -> Pairs:
    paths = tuple(f"{i}.png" for i in range(max(images) + 1))
    return Pairs(paths, (), tuple(captions), np.array(images))


def recalls_of(pairs: Pairs, similarity: dict[str, list[float]]) -> list[float]:
    """Recall at 1, 5 and 10 where each name has these similarities with the pictures."""
    images = np.eye(len(pairs.paths))
    found = measures.recall(pairs, images, lambda names: np.array([similarity[n] for n in names]))
    assert [*found] == ["recall@1", "recall@5", "recall@10"]
    return [share.value for share in found.values()]


def test_recall_counts_the_names_whose_picture_is_among_the_k_most_alike():
    ranks = {"a": 0, "b": 4, "c": 9, "d": 11}  # pictures before its own
    similarity = {}
    for own, (name, rank) in enumerate(ranks.items()):
        others = [0.9] * rank + [0.1] * (11 - rank)
        similarity[name] = [*others[:own], 0.5, *others[own:]]
    similarity |= {f"sure {i}": [float(i == j) for j in range(12)] for i in range(4, 12)}
    pairs = pairs_of([*similarity], list(range(12)))
    assert recalls_of(pairs, similarity) == pytest.approx([9 / 12, 10 / 12, 11 / 12])


def test_a_picture_that_is_as_alike_counts_as_before_its_own():
    pairs = pairs_of(["a", "b"], [0, 1])
    assert recalls_of(pairs, {"a": [0.5, 0.5], "b": [0.1, 0.5]}) == [0.5, 1, 1]


def test_a_name_whose_vector_is_no_number_finds_nothing():
    pairs = pairs_of([f"thing {i}" for i in range(12)], list(range(12)))
    similarity = {name: [float(i == j) for j in range(12)] for i, name in enumerate(pairs.captions)}
    similarity["thing 3"] = [np.nan] * 12
    assert recalls_of(pairs, similarity) == pytest.approx([11 / 12] * 3)


def test_of_concepts_with_one_name_the_best_picture_counts_and_the_name_asks_once():
    pairs = pairs_of(["a", "a", "b"], [0, 1, 2])
    assert recalls_of(pairs, {"a": [0.1, 0.9, 0.5], "b": [0.9, 0.1, 0.5]}) == [0.5, 1, 1]


def test_concepts_that_share_a_picture_both_find_it():
    pairs = pairs_of(["a", "b", "c"], [0, 0, 1])
    found = {"a": [0.9, 0.1], "b": [0.8, 0.1], "c": [0.5, 0.4]}
    assert recalls_of(pairs, found)[0] == pytest.approx(2 / 3)


@pytest.fixture
def two_pictures() -> Labelled:
    return Labelled((Item("a", SUBGROUPS[:1]), Item("b", SUBGROUPS[1:])), SUBGROUPS, False)


def test_subgroups_are_told_by_their_words_and_count_once_a_concept(tmp_path, two_pictures):
    lit = aim_mlx.load_lit(small.save_lit(tmp_path / "lit"))
    kinds: dict[str, str] = dict(zip(("a thing", "another"), SUBGROUPS, strict=True))
    for figure, templates in measures.TEMPLATES.items():
        head = aim_mlx.ZeroShotHead.build(lit, SUBGROUPS, templates)
        for shown, value in ((head.vectors, 1.0), (head.vectors[::-1], 0.0)):
            found = measures.zero_shot(lit, two_pictures, kinds, 1, lambda _, shown=shown: shown)
            assert (found[figure].value, found[figure].trials) == (value, 1)


def test_subgroups_are_told_by_the_names_of_what_is_in_them(tmp_path, two_pictures):
    """A name of no subgroup here counts nowhere, and two names may outweigh a likelier one."""
    lit = aim_mlx.load_lit(small.save_lit(tmp_path / "lit"))
    names = ["cat", "a yellow bird", "zebra", "letter"]
    head = aim_mlx.ZeroShotHead.build(lit, names, ("{}",))
    kinds = dict(zip(names, (*SUBGROUPS, SUBGROUPS[1], "other"), strict=True))
    mixed = np.array([2, 1, 1, 0]) @ head.vectors
    assert head.scores(mixed[None]).argmax() == 0
    cat, zebra = head.vectors[[0, 2]]
    for shown, value in (([cat, zebra], 1.0), ([mixed, cat], 0.0), ([cat, mixed], 1.0)):
        images = np.stack(shown)
        found = measures.zero_shot(lit, two_pictures, kinds, 2, lambda _, images=images: images)
        assert found["subgroup, by its members"].value == value


def test_the_interval_of_several_seeds_is_that_of_their_mean_on_one_test():
    share = measures.Share.of(900, 0.8, 0.9, 1.0)
    assert share.value == pytest.approx(0.9) and share.seeds == (0.8, 0.9, 1.0)
    assert share.interval == tuple(wilson(810, 900))


def test_the_nearest_training_picture_names_the_concept(data):
    pairs, encoder = read_pairs(data / "held_out_style.jsonl")[0], small.encoder()
    same = dict(zip(pairs.paths[:4], NAMES, strict=False))
    found = measures.across_styles(encoder, same, pairs)["same concept, 1-NN"]
    assert (found.value, found.trials) == (1, 4)  # those without a training picture do not count
    other = dict(zip(pairs.paths[:4], [*NAMES[1:4], NAMES[0]], strict=True))
    assert measures.across_styles(encoder, other, pairs)["same concept, 1-NN"].value == 0


def test_the_names_of_training_pictures_are_their_first_captions(data):
    train = evaluate.read_tables(data).train
    assert {Path(path).stem: name for path, name in train.items()} == {
        f"noto-{i}": NAMES[i] for i in range(4)
    }


def test_everything_is_measured_and_written(data, tmp_path, quick, capsys):
    """Of a model with words, one without, and others at random for both, which are of a size."""
    lit, encoder = small.save_lit(tmp_path / "lit"), small.save(tmp_path / "encoder")
    evaluate.main(data, [str(lit), str(encoder)], True, tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    figures = written["models"]
    assert [*written["data"]["held-out style"].values()] == [6, 6, 2, 3]
    assert [*written["data"]["held-out concepts"].values()] == [2, 2, 2, 1]
    assert len(figures) == 5 and set(figures[str(encoder)]) == {"image tower"}
    assert set(figures[str(lit)]) == {
        "held-out style",
        "held-out concepts",
        "image tower",
        *LANGUAGES,
    }
    shares = [
        s for sections in figures.values() for each in sections.values() for s in each.values()
    ]
    assert all(low <= s["value"] <= high for s in shares for low, high in [s["interval"]])
    assert figures[str(lit)]["held-out style"]["recall@10"]["value"] == 1  # of six
    towers = [sections["image tower"] for sections in figures.values()]
    # Features of noise still part digits: of 30, chance gives 3.
    assert all(each["10-NN"]["value"] > 0.3 and each["10-NN"]["trials"] == 30 for each in towers)
    assert all(len(each["attentive probe"]["seeds"]) == 3 for each in towers)
    assert len({each["10-NN"]["value"] for each in towers}) > 1
    table = capsys.readouterr().out
    assert "held-out style: 6 different pictures, 6 names, 2 subgroups, 3 pictures in" in table
    assert table.count(f"| {lit} |") == 3 and table.count(f"| {lit}, ja |") == 1
    assert table.count(f"| {encoder} |") == 1 and table.count("seed 2 |") == 1


@pytest.mark.parametrize(
    "name",
    ["held_out_style.jsonl", "languages/ja.jsonl", "subgroups_concepts.csv", "train.jsonl"],
)
def test_a_table_that_is_empty_or_missing_is_named(data, name):
    (data / name).write_text("")
    with pytest.raises(UsageError, match=Path(name).name):
        evaluate.read_tables(data)
    (data / name).unlink()
    with pytest.raises(UsageError, match=Path(name).name):
        evaluate.read_tables(data)


def test_a_picture_that_is_missing_ends_it(data):
    (data / "images/open-3.png").unlink()
    with pytest.raises(UsageError, match="1 pictures of held_out_style.jsonl cannot be read"):
        evaluate.read_tables(data)


def test_figures_without_a_folder_to_go_to_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        evaluate.main(tmp_path, ["model"], False, tmp_path / "none/figures.json")


def test_words_without_a_tokenizer_are_refused_before_anything_is_measured(tmp_path):
    folder = small.save_lit(tmp_path / "lit", tokenizer=False)
    with pytest.raises(CheckpointError, match="without a tokenizer"):
        evaluate.load(str(folder))


def test_the_script_ends_with_one_line_and_the_code_of_the_error(tmp_path):
    command = [sys.executable, SCRIPT, tmp_path / "nothing", "model"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no file") and done.stderr.count("\n") == 1
