"""`aim-mlx search` by words, on stores of a LiT model and on others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.cli import main as cli
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.words.lit import LiT
from tests.commands import run
from tests.small import photo, save, save_lit


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with photos, a LiT model and their store."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for seed in range(5):
        Image.fromarray(photo(seed)).save(folder / "photos" / f"{seed}.png")
    assert embedded(folder, save_lit(folder / "lit"), "store") == 0
    return folder


def embedded(folder: Path, model: Path, store: str, *options: str) -> int:
    arguments = [folder / "photos", "-o", folder / store, "--model", model, *options]
    return cli._run(["embed", *map(str, arguments)])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_photos_are_found_by_words_and_images_added_and_taken_away(capsys, made):
    lit = aim_mlx.load(made / "lit")
    assert isinstance(lit, LiT)
    dogs, car = (unit(np.array(lit.encode_text([text]))[0]) for text in ("two dogs", "a car"))
    vectors = EmbeddingStore(made / "store").vectors
    asked = ["--text", "two dogs", "--minus-text", "a car", "--image", made / "photos" / "3.png"]
    for weights, query in (
        ([], vectors[3] + dogs - car),
        (["--weights", "0.5,2,1"], 0.5 * vectors[3] + 2 * dogs - car),
    ):
        code, out, _ = run(capsys, "search", made / "store", *asked, *weights)
        assert code == 0
        found = [line.split("\t") for line in out.splitlines()]
        scores = vectors @ unit(query)
        order = np.array([row for row in np.argsort(-scores) if row != 3])  # searched for
        assert [Path(path).name for _, path in found] == [f"{i}.png" for i in order]
        # Four digits are printed.
        np.testing.assert_allclose([float(s) for s, _ in found], scores[order], atol=1e-4)


def test_the_page_names_the_words(capsys, made, tmp_path):
    page = tmp_path / "x.html"
    asked = ["--text", "two <b>dogs", "--minus-text", "a car", "--html", page]
    assert run(capsys, "search", made / "store", *asked)[0] == 0
    text = page.read_text()
    assert "two &lt;b&gt;dogs" in text and "a car" in text and text.count("<img ") == 5


@pytest.mark.parametrize("option", ["--text", "--minus-text"])
def test_an_empty_text_is_refused(capsys, made, option):
    code, out, err = run(capsys, "search", made / "store", option, " ")
    assert (code, out) == (2, "") and "empty text" in err


def test_stores_that_words_cannot_be_compared_with_are_refused(capsys, made):
    for model, store, options in (
        (made / "lit", "mean", ["--pooling", "mean"]),
        (save(made / "vision"), "plain", []),
    ):
        assert embedded(made, model, store, *options) == 0
        code, out, err = run(capsys, "search", made / store, "--text", "dogs")
        assert (code, out) == (2, "") and "attention pooling" in err


def test_words_need_a_tokenizer(capsys, made):
    model = save_lit(made / "bare", tokenizer=False)
    assert embedded(made, model, "wordless") == 0
    code, out, err = run(capsys, "search", made / "wordless", "--text", "dogs")
    assert (code, out) == (4, "") and "tokenizer.json" in err
