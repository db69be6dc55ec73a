"""`aim-mlx pretrain`, `caption` and `continue` as a user meets them."""

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.cli import main as cli
from aim_mlx.config import VisionConfig
from aim_mlx.data.pairs import read_pairs, split
from aim_mlx.pretrain.config import CONFIGS
from aim_mlx.pretrain.measure import least_squares
from aim_mlx.pretrain.pretrained import load_pretrained
from aim_mlx.words.tokenizer import Tokenizer
from tests.commands import run
from tests.pretraining import TINY, picture, write_pairs
from tests.small import save


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with mock.patch.dict(CONFIGS, nano=TINY):
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"), 24)


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory) -> Path:
    """A network that knows the first eight pictures."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    first = write_pairs(folder.parent / "data", 8)
    options = ["--epochs", 80, "--batch-size", 8, "--learning-rate", 8e-3, "--held-out", 0]
    options += ["--smallest-crop", 0.9, "--no-flip"]
    with mock.patch("aim_mlx.pretrain.run.write_page"):  # twenty times, with written captions
        assert cli._run(list(map(str, ["pretrain", first, "-o", folder, *options]))) == 0
    return folder


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli._run(list(map(str, arguments(table, folder)))) == 0
    return folder


def arguments(source, out, *more) -> list[object]:
    short = ["--epochs", 1, "--batch-size", 6, "--held-out", 0.25]
    return ["pretrain", source, "-o", out, *short, *more]


def test_pairs_become_a_model_that_other_commands_take(capsys, table, tmp_path):
    out = tmp_path / "run"
    labelled = tmp_path / "labelled"
    for i in range(24):
        folder = labelled / ("circle", "square")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture("red", folder.name, 50 + i).save(folder / f"{i}.png")
    code, stdout, stderr = run(capsys, *arguments(table, out, "--labelled", labelled))
    assert code == 0 and stdout == "", stderr
    assert "24 images with 36 captions, 6 of them held out, 0 skipped, 3 steps" in stderr
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2, 3]
    wanted = {"loss", "pixel_loss", "text_loss", "val_pixel_loss", "val_text_loss", "rate"}
    assert wanted | {"knn", "linear"} <= set(records[-1])
    code, _, stderr = run(capsys, "embed", table.parent, "-o", tmp_path / "v.npy", "--model", out)
    assert code == 0 and "24 embedded" in stderr
    assert np.load(tmp_path / "v.npy").shape == (24, 64)
    assert aim_mlx.load(out).trained


def test_the_page_shows_curves_and_pictures_beside_their_predictions(finished):
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 4  # loss, pixels, captions, learning rate
    assert page.count("data:image/jpeg") == 2 * 6
    assert "<script" not in page


def test_a_folder_of_pictures_is_learned_by_its_pixels(capsys, table, tmp_path):
    pictures = tmp_path / "pictures"
    write_pairs(pictures, 12)
    (pictures / "pairs.jsonl").unlink()
    (pictures / "3.png").write_bytes(b"no picture")
    code, _, stderr = run(capsys, *arguments(pictures, tmp_path / "run"))
    assert code == 3 and "the pixels alone are learned" in stderr and "3.png" in stderr
    code, _, stderr = run(capsys, "caption", pictures / "0.png", "--model", tmp_path / "run")
    assert code == 2 and "without captions" in stderr


def test_training_goes_on_from_an_encoder_with_its_sizes(capsys, table, tmp_path):
    start = save(tmp_path / "start")
    out = tmp_path / "run"
    options = ["--init", start, "--learning-rate", 0, "--weight-decay", 0]
    assert run(capsys, *arguments(table, out, *options))[0] == 0
    first, second = aim_mlx.load(start), aim_mlx.load(out)
    assert first.weights_digest == second.weights_digest
    history = json.loads((out / "config.json").read_text())["provenance"]
    assert history["init"]["model"] == str(start)


def test_a_trained_network_says_what_is_in_a_picture(capsys, table, trained):
    pictures = [table.parent / f"{i}.png" for i in (0, 1, 2, 3)]
    code, stdout, _ = run(capsys, "caption", *pictures, "--model", trained)
    lines = [line.split("\t") for line in stdout.splitlines()]
    assert code == 0 and [Path(path) for _, path in lines] == pictures
    for (text, _), colour in zip(lines, ("red", "green", "blue"), strict=False):
        assert colour in text and "circle" in text


def test_drawn_captions_depend_on_the_seed_alone(trained, table):
    network = load_pretrained(trained)
    pictures = [table.parent / f"{i}.png" for i in range(8)]
    first, again, other = (
        network.caption(pictures, temperature=2.0, seed=seed, longest=6) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert network.caption(pictures[:1], longest=1)[0].count(" ") == 0


def test_the_rest_of_a_picture_is_drawn_below_the_kept_rows(capsys, table, trained, tmp_path):
    out = tmp_path / "continued.png"
    source = table.parent / "4.png"
    code, _, _ = run(capsys, "continue", source, "-o", out, "--model", trained, "--rows", 2)
    assert code == 0
    finished = np.asarray(Image.open(out)).astype(int)
    network = load_pretrained(trained)
    whole = network.preprocessing
    original = np.asarray(Image.open(source).resize((56, 56), Image.Resampling.BICUBIC)).astype(int)
    assert whole.crop_size == 56 and finished.shape == (56, 56, 3)
    assert np.abs(finished[:28] - original[:28]).max() <= 1
    # Better than going on with the mean colour of what was kept.
    flat = np.abs(original[28:] - original[:28].mean(axis=(0, 1))).mean()
    assert np.abs(finished[28:] - original[28:]).mean() < flat
    changed = np.array(original, np.uint8)
    changed[28:] = 7
    assert np.abs(network.finish(changed, 2).astype(int) - finished).max() <= 1


@pytest.mark.parametrize(
    "more, code, words",
    [
        (["--config", "huge"], 2, "config must be one of nano"),
        (["--caption-column", "text"], 2, "no column 'text'"),
        (["--memory-gb", "-1"], 2, "--memory-gb"),
        (["--held-out", "0.01"], 2, "too few"),
        (["--dtype", "int8"], 2, "dtype must be one of"),
        (["--tokenizer", "."], 2, "no tokenizer.json"),
        (["--init", ""], 2, "--init is empty"),
        (["--labelled", ""], 2, "--labelled is empty"),
        (["--clip-norm", "0"], 2, "clip norm must be from 1e-06"),
        (["--vocab-size", "513"], 2, "vocab size must be 0 or from 514"),
        (["--batch-size", "19"], 2, "batch size must be at most 18"),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, table, tmp_path, monkeypatch, more, code, words):
    monkeypatch.chdir(tmp_path)
    found, stdout, stderr = run(capsys, *arguments(table, tmp_path / "run", *more))
    assert found == code and stdout == ""
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("aim-mlx: error:") and words in line
    assert not (tmp_path / "run").exists()


def test_an_empty_name_of_the_pairs_is_not_this_folder(capsys, table, tmp_path, monkeypatch):
    monkeypatch.chdir(table.parent)
    code, _, stderr = run(capsys, *arguments("", tmp_path / "run"))
    assert code == 2 and "PAIRS is empty" in stderr


@pytest.mark.parametrize(
    "given, words",
    [
        (["caption", "--seed", "-1"], "expected a seed from 0"),
        (["caption", "--seed", str(2**64)], "expected a seed from 0"),
        (["continue", "-o", "x.png", "--rows", "4"], "1 to 3 rows of patches, got 4"),
        (["continue", "-o", "x.png", "--rows", "-1"], "1 to 3 rows of patches, got -1"),
    ],
)
def test_a_number_out_of_range_names_the_option_s_range(
    capsys, table, trained, tmp_path, monkeypatch, given, words
):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run(capsys, *given, table.parent / "0.png", "--model", trained)
    assert code == 2 and stdout == "" and words in stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no tokenizer", "another tokenizer", "not a number"])
def test_a_damaged_decoder_writes_no_words(capsys, table, trained, tmp_path, damage):
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    if damage == "no tokenizer":
        (model / "training/tokenizer.json").unlink()
        words = "no tokenizer.json"
    elif damage == "another tokenizer":
        files = Tokenizer.train(["a b", "a b"], 514, 78).files()
        (model / "training/tokenizer.json").write_bytes(files["tokenizer.json"])
        words = "end token"
    else:
        with open(model / "training/decoder.safetensors", "r+b") as file:
            file.seek(-4, 2)
            file.write(b"\xff" * 4)
        words = "finite float32"
    code, stdout, stderr = run(capsys, "caption", table.parent / "0.png", "--model", model)
    assert code == 4 and stdout == "" and stderr.count("\n") == 1 and words in stderr


def test_labelled_images_that_cannot_be_decoded_are_left_out(capsys, table, tmp_path):
    labelled = tmp_path / "labelled"
    for name in ("circle", "square"):
        (labelled / name).mkdir(parents=True)
        for i in range(12):
            picture("red", name, i).save(labelled / name / f"{i}.png")
    cut = labelled / "circle" / "4.png"
    cut.write_bytes(cut.read_bytes()[:120])
    code, _, stderr = run(capsys, *arguments(table, tmp_path / "run", "--labelled", labelled))
    assert code == 3 and "circle/4.png: truncated" in stderr, stderr
    assert "knn" in stderr


def test_an_encoder_of_other_patches_is_trained_and_of_one_patch_refused(capsys, table, tmp_path):
    other = save(tmp_path / "other", VisionConfig(64, 176, 2, 2, 8, 56))
    assert run(capsys, *arguments(table, tmp_path / "run", "--init", other))[0] == 0
    one = save(tmp_path / "one", VisionConfig(64, 176, 2, 2, 14, 14))
    code, _, stderr = run(capsys, *arguments(table, tmp_path / "second", "--init", one))
    assert code == 2 and "2 x 2 patches or more" in stderr


def _write_captions(folder: Path, captions: list[str]) -> Path:
    lines = []
    for i, caption in enumerate(captions):
        picture("red", "circle", i).save(folder / f"{i}.png")
        lines.append(json.dumps({"path": f"{i}.png", "caption": caption}))
    table = folder / "pairs.jsonl"
    table.write_text("\n".join(lines))
    return table


def test_captions_longer_than_the_text_are_cut_off(capsys, tmp_path):
    table = _write_captions(tmp_path, ["red " * 100] * 4 + ["r" * 9000] * 8)
    with mock.patch.object(Tokenizer, "train", wraps=Tokenizer.train) as train:
        code, _, stderr = run(capsys, *arguments(table, tmp_path / "run"))
    assert code == 0 and "captions cut off after 77 tokens" in stderr, stderr
    assert max(map(len, train.call_args[0][0])) == 2000


def test_no_words_are_learned_from_the_captions_held_out(capsys, tmp_path):
    table = _write_captions(tmp_path, [""] * 12)
    pairs, _ = read_pairs(table, may_lack_captions=True)
    held_out = split(pairs, 0.25, 0)[1].paths[0]
    line = json.dumps({"path": held_out, "caption": "a ring"})
    table.write_text(f"{table.read_text()}\n{line}\n")
    code, _, stderr = run(capsys, *arguments(table, tmp_path / "run"))
    assert code == 2 and "all are held out" in stderr, stderr


def test_words_of_another_tokenizer_are_another_run(capsys, table, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    files = Tokenizer.train(["a red circle", "a red square"], 600, 78).files()
    (given / "tokenizer.json").write_bytes(files["tokenizer.json"])
    command = arguments(table, tmp_path / "run", "--tokenizer", given)
    assert run(capsys, *command)[0] == run(capsys, *command)[0] == 0  # the same words again
    files = Tokenizer.train(["green and blue", "green and blue"], 600, 78).files()
    (given / "tokenizer.json").write_bytes(files["tokenizer.json"])
    code, _, stderr = run(capsys, *command)
    assert code == 5 and "another run (its tokenizer)" in stderr


def test_a_file_of_something_else_is_no_checkpoint(capsys, table, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(finished / "model.safetensors", tmp_path / "run/training/checkpoint.safetensors")
    code, _, stderr = run(capsys, *arguments(table, tmp_path / "run"))
    assert code == 5 and "(it is not as it was written): remove it" in stderr


def test_words_need_a_folder_that_pretrain_wrote(capsys, table, tmp_path):
    code, _, stderr = run(
        capsys, "caption", table.parent / "0.png", "--model", save(tmp_path / "model")
    )
    assert code == 4 and "aim-mlx pretrain finished" in stderr
    # As a folder without permission, this fails where its files are looked for.
    code, _, stderr = run(capsys, "caption", table.parent / "0.png", "--model", "x" * 300)
    assert code == 4 and "cannot read" in stderr


def test_another_run_in_the_same_folder_is_refused(capsys, table, finished):
    code, _, stderr = run(capsys, *arguments(table, finished, "--seed", 1))
    assert code == 5 and "another run (its seed: 0, not 1)" in stderr


def test_least_squares_parts_what_a_line_parts():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    vectors = rng.normal(0, 0.3, (300, 5)) + np.eye(5)[labels]
    found = least_squares(vectors[:200], labels[:200], vectors[200:], 3)
    assert (found == labels[200:]).mean() > 0.9


def test_a_finished_run_is_left_as_it_is(capsys, table, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    code, _, stderr = run(capsys, *arguments(table, finished))
    assert code == 0 and "goes on after step 3 of 3" in stderr
    assert before == {path: path.read_bytes() for path in finished.rglob("*.safetensors")}


def test_json_gives_records_and_a_summary(capsys, table, tmp_path):
    code, stdout, _ = run(capsys, *arguments(table, tmp_path / "run", "--json"))
    events = [json.loads(line) for line in stdout.splitlines()]
    assert code == 0 and [event["event"] for event in events] == ["step"] * 3 + ["summary"]
    assert events[-1]["steps"] == 3 and events[-1]["metrics"]["loss"] == events[-2]["loss"]
    code, stdout, _ = run(
        capsys, "caption", table.parent / "0.png", "--model", tmp_path / "run", "--json"
    )
    events = [json.loads(line) for line in stdout.splitlines()]
    assert code == 0 and [event["event"] for event in events] == ["caption", "summary"]


def test_an_image_that_cannot_be_read_is_one_line(capsys, trained, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, stdout, stderr = run(capsys, "caption", tmp_path / "bad.png", "--model", trained)
    assert code == 1 and stdout == "" and stderr.count("\n") == 1 and "bad.png" in stderr
    given = ["continue", tmp_path / "bad.png", "-o", tmp_path / "x.png", "--model", trained]
    assert run(capsys, *given)[0] == 1 and not (tmp_path / "x.png").exists()
