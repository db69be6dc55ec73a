"""The command line: exit code, one line on stderr, data on stdout."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.cli import main as cli
from aim_mlx.cli import reporter
from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import CheckpointError, ImageError, UntrainedModelWarning
from tests.commands import run, start
from tests.small import SMALL, SMALL_LIT, many_photos, photo, save, wait_for


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three good photographs, one of them on its side, one broken and one other file."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, seed in (("b.png", 1), ("a.png", 0)):
        Image.fromarray(photo(seed)).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned = Image.fromarray(photo(0)).transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "sub" / "turned.png", exif=exif)
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("notes")
    return folder


def assert_one_line(err: str, *words: str):
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err, err
    assert all(word in err for word in words), err


def test_a_folder_becomes_vectors_in_the_order_of_the_paths(capsys, model, photos, tmp_path):
    out = tmp_path / "out.npz"
    code, stdout, stderr = run(capsys, "embed", photos, "-o", out, "--model", model)
    assert code == 3 and stdout == ""
    assert "broken.jpg: not_image" in stderr and "3 embedded, 1 skipped, 1 ignored" in stderr
    with np.load(out) as archive:
        names = [Path(path).relative_to(photos).as_posix() for path in archive["paths"]]
        vectors, manifest = archive["embeddings"], json.loads(str(archive["manifest"]))
    assert names == ["a.png", "b.png", "sub/turned.png"]
    expected = aim_mlx.load(model).embed([photo(0), photo(1), photo(0)])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert manifest["pooling"] == "mean" and manifest["normalized"] is True
    assert manifest["encoder"]["embed_dim"] == SMALL.embed_dim
    assert [skip["reason"] for skip in manifest["skipped"]] == ["not_image"]


def test_json_gives_a_record_for_each_skip_and_a_summary_that_adds_up(
    capsys, model, photos, tmp_path
):
    out = tmp_path / "out.npy"
    code, stdout, _ = run(capsys, "embed", photos, "-o", out, "--model", model, "--json")
    skipped, summary = map(json.loads, stdout.splitlines())
    assert skipped["reason"] == "not_image" and skipped["path"].endswith("broken.jpg")
    assert summary["embedded"] + summary["skipped"] + summary["ignored"] == summary["listed"] == 5
    assert code == summary["exit_code"] == 3
    # The model's 189,760 float32 numbers at least; freed memory may all have been given back.
    assert summary["peak_memory"] > 4 * 189_760 and summary["cache_memory"] >= 0


def test_images_that_were_there_already_are_called_unchanged(capsys, model, photos, tmp_path):
    call = ("embed", photos, "-o", tmp_path / "out", "--model", model)
    assert "3 embedded, 1 skipped, 1 ignored" in run(capsys, *call)[2]
    Image.fromarray(photo(7)).save(photos / "new.png")
    assert "1 embedded, 3 unchanged, 1 skipped, 1 ignored" in run(capsys, *call)[2]
    assert "0 embedded, 4 unchanged, 1 skipped, 1 ignored" in run(capsys, *call)[2]


def test_without_a_terminal_a_line_says_now_and_then_how_far_the_run_is(
    capsys, monkeypatch, model, photos, tmp_path
):
    (photos / "broken.jpg").unlink()
    call = ("embed", photos, "-o", tmp_path / "out", "--model", model)
    run(capsys, "embed", photos / "a.png", *call[2:])
    monkeypatch.setattr("aim_mlx.cli.reporter._SILENCE", 0.0)
    lines = [line for line in run(capsys, *call)[2].splitlines() if " of 3 images" in line]
    assert [line.split(",")[0] for line in lines] == ["2 of 3 images", "3 of 3 images"]
    assert all(re.fullmatch(r".*, \d+\.\d\d images/s", line) for line in lines)


def test_images_that_were_there_already_do_not_count_as_speed():
    task: Any = SimpleNamespace(
        finished_time=None, elapsed=2.0, completed=10, fields={"unchanged": 8}
    )
    assert reporter._rate(task) == "1.00 images/s"


def test_of_an_animation_the_first_frame_is_embedded_and_noted(capsys, model, tmp_path):
    frames = [Image.fromarray(photo(seed)) for seed in range(3)]
    (tmp_path / "in").mkdir()
    frames[0].save(
        tmp_path / "in" / "x.webp", lossless=True, save_all=True, append_images=frames[1:]
    )
    out = tmp_path / "o.npz"
    code, _, stderr = run(capsys, "embed", tmp_path / "in", "-o", out, "--model", model)
    assert code == 0 and "the first frame was embedded of 1 image with several" in stderr
    with np.load(out) as archive:
        manifest = json.loads(str(archive["manifest"]))
        expected = aim_mlx.load(model).embed([photo(0)])
        np.testing.assert_allclose(archive["embeddings"], expected, atol=1e-5)
    assert [Path(path).name for path in manifest["first_frame_only"]] == ["x.webp"]


def test_a_complete_run_ends_with_zero(capsys, model, photos, tmp_path):
    (photos / "broken.jpg").unlink()
    out = tmp_path / "o.safetensors"
    assert run(capsys, "embed", photos, "-o", out, "--model", model)[0] == 0


def test_options_reach_the_vectors(capsys, model, photos, tmp_path):
    out, image = tmp_path / "out.npy", photos / "a.png"
    options = ["--pooling", "max", "--layers", "0,-1", "--no-normalize", "--dtype", "float32"]
    code, _, _ = run(capsys, "embed", image, "-o", out, "--model", model, *options)
    expected = aim_mlx.load(model).embed([image], pooling="max", layers=[0, -1], normalize=False)
    assert code == 0
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)


def test_a_megapixel_is_a_million_pixels(capsys, model, tmp_path):
    (tmp_path / "in").mkdir()
    for name, width in (("a.png", 1000), ("b.png", 1001)):
        Image.fromarray(photo(0, 1000, width)).save(tmp_path / "in" / name)
    call = ["embed", tmp_path / "in", "-o", tmp_path / "out", "--model", model]
    _, _, stderr = run(capsys, *call, "--max-megapixels", 1)
    assert "b.png: too_large" in stderr and "1 embedded, 1 skipped" in stderr


def test_retry_skipped_tries_again_what_failed_and_did_not_change(
    capsys, monkeypatch, model, photos, tmp_path
):
    def fail(*_: object) -> None:
        raise ImageError("not_image", "a decoder that is still to be mended")

    call = ["embed", photos, "-o", tmp_path / "out", "--model", model]
    with monkeypatch.context() as broken:
        broken.setattr(sys.modules["aim_mlx.images.stream"], "preprocess", fail)
        run(capsys, *call[:1], photos / "a.png", *call[2:])
    assert "a.png: not_image" in run(capsys, *call)[2]
    code, _, stderr = run(capsys, *call, "--retry-skipped")
    assert "a.png" not in stderr and "1 embedded, 2 unchanged, 1 skipped" in stderr


def test_a_revision_and_offline_reach_the_hub(capsys, monkeypatch, photos, tmp_path):
    def fetch(repo: str, revision: str | None, *, offline: bool, **_: object) -> Path:
        raise CheckpointError(f"asked for {repo} {revision} {offline}")

    monkeypatch.setattr("aim_mlx.weights.hub.fetch_model", fetch)
    call = ["embed", photos, "-o", tmp_path / "o.npz", "--model", "someone/model"]
    assert "asked for someone/model None False" in run(capsys, *call)[2]
    assert "someone/model v1 False" in run(capsys, *call, "--revision", "v1")[2]
    assert "someone/model None True" in run(capsys, *call, "--offline")[2]


def test_the_output_inside_the_source_is_not_an_input(capsys, model, photos):
    out = photos / "out.npz"
    assert run(capsys, "embed", photos, "-o", out, "--model", model)[0] == 3
    again = run(capsys, "embed", photos, "-o", out, "--model", model, "--overwrite")
    assert again[0] == 3 and "3 embedded, 1 skipped" in again[2]


BAD_CALLS = [
    (["embed", "missing", "-o", "o.npz", "--model", "MODEL"], 2, ["missing"]),
    (["embed", "PHOTOS", "-o", "o.csv", "--model", "MODEL"], 2, [".npz"]),
    (["embed", "PHOTOS", "-o", "no/o.npz", "--model", "MODEL"], 5, ["does not exist"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--modle", "MODEL"], 2, ["--model"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", "aimv2-lage-patch14-224"], 2, ["did you mean"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", "./none"], 4, ["none"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", ""], 2, ["empty"]),
    (
        ["embed", "PHOTOS", "-o", "o.npz", "--model", "MODEL", "--batch-size", "0"],
        2,
        ["batch size"],
    ),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", "MODEL", "--batch-size", "x"], 2, ["x"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", "MODEL", "--pooling", "cls"], 2, ["CLS"]),
    (["embed", "PHOTOS", "-o", "o", "--model", "/gone", "--pooling", "big"], 2, ["pooling must"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", "MODEL", "--layers", "9"], 2, ["layer"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", "MODEL", "--layers", "a"], 2, ["--layers"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--model", "MODEL", "--dtype", "int8"], 2, ["bfloat16"]),
    (["embed", "PHOTOS", "-o", "o.npz", "--max-megapixels", "0"], 2, ["--max-megapixels"]),
    (["embed", "PHOTOS"], 2, ["--output"]),
    (["embde"], 2, ["embed"]),
    (["inspect", "missing"], 4, ["missing"]),
    (["init", "aimv2-larg", "m"], 2, ["did you mean"]),
]


@pytest.mark.parametrize(("call", "code", "words"), BAD_CALLS, ids=lambda v: str(v)[:60])
def test_a_bad_call_gets_one_line_and_its_exit_code(
    capsys, monkeypatch, model, photos, tmp_path, call, code, words
):
    monkeypatch.chdir(tmp_path)
    (photos / "broken.jpg").unlink()
    (photos / "notes.txt").unlink()
    names = {"MODEL": str(model), "PHOTOS": str(photos)}
    result, stdout, stderr = run(capsys, *(names.get(word, word) for word in call))
    assert result == code and stdout == "", stderr
    assert_one_line(stderr, *words)
    assert not list(tmp_path.glob("*o.*"))


def test_a_folder_without_images_says_what_was_there(capsys, model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    code, _, stderr = run(
        capsys, "embed", tmp_path / "empty", "-o", tmp_path / "o.npz", "--model", model
    )
    assert code == 1 and "(ignored 1 file that is no image)" in stderr


def test_nothing_but_broken_images_writes_nothing(capsys, model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").write_bytes(b"")
    out = tmp_path / "o.npz"
    code, _, stderr = run(capsys, "embed", tmp_path / "in", "-o", out, "--model", model)
    assert code == 1 and "none of 1 image could" in stderr and not out.exists()


def test_names_with_control_characters_are_escaped_on_the_terminal(capsys, model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a\x1b[31m\n.jpg").write_bytes(b"")
    _, _, stderr = run(capsys, "embed", folder, "-o", tmp_path / "o.npz", "--model", model)
    assert "a\\x1b[31m\\n.jpg" in stderr and "\x1b" not in stderr


def test_init_writes_a_checkpoint_that_says_it_is_untrained(capsys, monkeypatch, tmp_path):
    spec = aim_mlx.MODELS["aimv2-base-patch14-224"]
    small = type(spec)(**{**vars(spec), "config": SMALL})
    monkeypatch.setattr("aim_mlx.registry.MODELS", {**aim_mlx.MODELS, spec.name: small})
    for folder in ("one", "two"):
        code, _, stderr = run(capsys, "init", spec.name, tmp_path / folder, "--seed", "3")
        assert code == 0 and "UNTRAINED" in stderr
    one, two = ((tmp_path / f / "model.safetensors").read_bytes() for f in ("one", "two"))
    assert one == two
    with pytest.warns(UntrainedModelWarning):
        code, stdout, _ = run(capsys, "inspect", tmp_path / "one", "--json")
    facts = json.loads(stdout)
    assert code == 0 and facts["trained"] is False and facts["layout"] == "ml-aim-mlx"


def test_init_gives_a_lit_model_a_tokenizer_to_try_words_with(
    capsys, monkeypatch, photos, tmp_path
):
    spec = aim_mlx.MODELS["aimv2-large-patch14-224-lit"]
    config = replace(SMALL_LIT, text=replace(SMALL_LIT.text, context_length=77))
    small = replace(spec, config=config, preprocess=PreprocessConfig.hub(56))
    monkeypatch.setattr("aim_mlx.registry.MODELS", {**aim_mlx.MODELS, spec.name: small})
    assert run(capsys, "init", spec.name, tmp_path / "lit")[0] == 0
    with pytest.warns(UntrainedModelWarning):
        code, stdout, _ = run(
            capsys, "classify", photos, "--labels", "cat,dog", "--model", tmp_path / "lit"
        )
    assert code == 3 and len(stdout.splitlines()) == 3


def test_inspect_prints_sizes_for_people(capsys, model):
    code, stdout, _ = run(capsys, "inspect", model)
    assert code == 0 and "embed_dim 64" in stdout and "ml-aim-mlx" in stdout
    lines = stdout.splitlines()
    assert "None" not in stdout and "model          -" in lines


def test_inspect_prints_an_entry_of_the_provenance_a_line(capsys, model, tmp_path):
    assert run(capsys, "convert", model, tmp_path / "half", "--dtype", "float16")[0] == 0
    _, stdout, _ = run(capsys, "inspect", tmp_path / "half")
    lines = [line.strip() for line in stdout.splitlines()]
    assert any(line.startswith("provenance") for line in lines)
    assert f"source {model}" in lines and "trained yes" in lines


@pytest.mark.parametrize("group", [[], ["probe"], ["lit"]], ids=str)
def test_a_command_without_arguments_prints_its_help(capsys, group):
    code, stdout, stderr = run(capsys, *group)
    assert code == 0 and stderr == ""
    assert stdout.startswith("Usage: ") and "Commands:" in stdout


def _help_pages() -> list[list[str]]:
    pages = [[], *([str(each.name)] for each in cli.app.registered_commands)]
    for group in cli.app.registered_groups:
        assert group.typer_instance is not None
        inner = group.typer_instance.registered_commands
        pages += [[str(group.name), str(each.name)] for each in inner]
    return pages


@pytest.mark.parametrize("command", _help_pages(), ids=" ".join)
def test_help_is_in_words_and_fits_a_terminal(capsys, command):
    code, stdout, _ = run(capsys, *command, "--help")
    assert code == 0 and all(len(line) <= 80 for line in stdout.splitlines())
    # Braces and angles are how the library shows types; "{}" is the place of a label in a template.
    assert not re.search(r"\{\w|<\w|\w\[\w|x>=", stdout)
    cut = [line for line in stdout.splitlines() if line.endswith("...")]
    assert not [line for line in cut if not line.startswith("Usage: ")]


def test_doctor_reports_device_and_versions(capsys):
    code, stdout, _ = run(capsys, "doctor")
    assert code == 0 and "device" in stdout and "BLAS" in stdout


def test_debug_shows_where_an_error_came_from():
    process = start("--debug", "inspect", "missing")
    _, stderr = process.communicate(timeout=60)
    assert "Traceback" in stderr and process.returncode == 1


def test_an_untrained_model_warns_on_every_use(photos, tmp_path):
    model = save(tmp_path / "untrained", trained=False)
    process = start("embed", photos / "a.png", "-o", tmp_path / "o.npz", "--model", model)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr.count("weights are random") == 1, stderr


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Photos in classes, an untrained model, and a store and probe of its vectors."""
    folder = tmp_path_factory.mktemp("untrained")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            noise = Image.fromarray(rng.integers(0, 256, (60, 70, 3), np.uint8))
            noise.save(folder / "photos" / name / f"{number}.png")
    save(folder / "model", trained=False)
    with chdir(folder), pytest.warns(UntrainedModelWarning):
        for line in ("embed photos -o store --model model", TRAIN):
            assert cli._run(list(map(str, line.split()))) == 0
    return folder


TRAIN = "probe train photos -o probe --model model --epochs 1"


@pytest.mark.parametrize(
    "line",
    [
        "search store --image photos/cat/0.png",
        "duplicates store",
        "export store rows.npz",
        "knn photos --model model",
        TRAIN,
        "probe eval probe photos",
        "probe predict probe photos",
    ],
)
def test_a_result_of_untrained_weights_says_so(capsys, untrained, monkeypatch, line):
    monkeypatch.chdir(untrained)
    with pytest.warns(UntrainedModelWarning, match="encoder's weights are random"):
        assert run(capsys, *line.split())[0] == 0


def test_a_model_and_a_store_that_are_both_untrained_say_so_once(untrained):
    other = untrained / "other.png"
    Image.new("RGB", (60, 60), (9, 80, 200)).save(other)
    process = start("search", untrained / "store", "--image", other, cwd=untrained)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr.count("weights are random") == 1, stderr


def test_a_probe_of_an_untrained_model_says_so_once_and_in_its_report(untrained):
    process = start(*TRAIN.replace("-o probe", "-o again").split(), cwd=untrained)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and stderr.count("random") == 1, stderr
    assert "weights are random" in (untrained / "again/report.html").read_text()


def test_help_and_import_do_not_load_mlx():
    code = (
        "import sys, aim_mlx, aim_mlx.cli.main as cli; cli._run(['embed', '--help']);"
        "heavy = {'mlx', 'numpy', 'PIL', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "SRC..." in done.stdout, done.stderr


def test_a_closed_pipe_ends_quietly(model):
    reader, writer = os.pipe()
    os.close(reader)
    process = start("inspect", model, stdout=writer)
    os.close(writer)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and stderr == ""


def test_ctrl_c_ends_with_130_and_leaves_no_file(model, tmp_path):
    folder = many_photos(tmp_path / "many", 500)
    out = tmp_path / "o.npz"
    process = start("embed", folder, "-o", out, "--model", model, "--batch-size", 2)
    wait_for(tmp_path / ".o.npz.aim-mlx" / "files.jsonl")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert not list(tmp_path.glob("*o.npz*"))


@pytest.mark.parametrize("moment", ["typer", "mlx.core"])
def test_ctrl_c_while_modules_load_is_told_as_such(moment):
    """A compiled module makes an ImportError of it, which looks like a missing back end."""
    code = f"""
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == {moment!r}:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                if name == "typer":
                    raise
                raise ImportError("while initializing the extension") from error
sys.meta_path.insert(0, Finder())
sys.argv = ["aim-mlx", "doctor"]
from aim_mlx.cli.start import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "aim-mlx: error: interrupted\n")
