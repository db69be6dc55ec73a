"""The lines of README.md and of docs/, run as they stand."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

import aim_mlx
from aim_mlx.cli.models import size_at
from aim_mlx.config import LiTConfig, VisionConfig
from aim_mlx.errors import UntrainedModelWarning
from aim_mlx.registry import MODELS
from tests import small
from tests.embed_runs import SAME

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TEXT = "\n".join([README, *PAGES.values()])
# Deep enough that little of it is the patch embedding, which is not quantised.
DEEP = VisionConfig(256, 704, 12, 2, 14, 56)


def block(mark: str) -> str:
    """The lines between a mark and the end mark, without the fence."""
    found = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)```", TEXT, re.S)
    assert found, f"no page has a block marked {mark}"
    return found[1]


def code_of(page: str, language: str = "python") -> str:
    """All code of one language on a page of docs/, in its order."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)
    assert found, f"docs/{page}.md has no {language}"
    return "\n".join(found)


def run_block(mark: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The lines of a block run in a folder; installing is what CI does."""
    lines = re.sub(r"^(python3? -m venv|pip install) .*\n", "", block(mark), flags=re.M)
    lines = lines.replace("python examples", f"python {ROOT}/examples")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", lines],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder in which the lines of the first block were run."""
    folder = tmp_path_factory.mktemp("readme")
    yield folder, run_block("photos", folder)
    for weights in folder.rglob("*.safetensors"):  # pytest keeps the folders of several runs
        weights.unlink()


@pytest.fixture(scope="module")
def stored(started, tmp_path_factory):
    """The same photographs with small models for large ones, and the lines about stores run."""
    folder = tmp_path_factory.mktemp("stores")
    shutil.copytree(started[0] / "photos", folder / "photos")
    shutil.copy(started[0] / "vectors.npz", folder)
    small.save(folder / "model", trained=False)
    small.save_lit(folder / "lit")
    return folder, run_block("store", folder)


def test_the_first_lines_find_drawings_by_words(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = run_block("start", tmp_path)
    assert done.returncode == 0, done.stderr
    names = [line.split("/")[-1] for line in done.stdout.splitlines()]
    with open(ROOT / "examples/drawings.csv", newline="") as file:
        kinds = {Path(row["path"]).name: row["label"] for row in csv.DictReader(file)}
    faces = [name for name in names if kinds[name].startswith("face ")]
    assert len(names) == 10 and len(faces) >= 7, names  # 36 of the 288 are faces
    page = (tmp_path / "found.html").read_text()
    assert page.count("data:image/jpeg;base64,") + page.count("data:image/png;base64,") >= 10
    done = run_block("drawings", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 288


def test_a_first_run_embeds_real_photographs_with_an_encoder_of_full_size(started):
    folder, done = started
    assert done.returncode == 0, done.stderr
    assert "cut_short.jpg: truncated" in done.stderr and "weights are random" in done.stderr
    page = (folder / "similar.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 6 and "on_its_side.jpg" in page
    done = run_block("export", folder)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "vectors.npz") as archive:
        vectors = dict(zip(map(str, archive["paths"]), archive["embeddings"], strict=True))
    assert len(vectors) == 6 and all(v.shape == (1024,) for v in vectors.values())
    upright, turned = vectors["photos/chelsea.jpg"], vectors["photos/on_its_side.jpg"]
    # Compressed before and after the turn, so alike but not equal; another photograph is not.
    assert upright @ turned > 0.999 > 0.95 > upright @ vectors["photos/rocket.jpg"]


def test_the_lines_about_stores_verify_and_export(stored):
    folder, done = stored
    assert done.returncode == 0, done.stderr
    assert "2 of 2 photos" in done.stderr and "sound and complete: 6 rows" in done.stderr
    assert "embedding-atlas atlas.parquet --vector embedding --image image" in done.stderr
    assert pq.read_table(folder / "atlas.parquet")["image"].null_count == 0


def test_the_lines_that_merge_give_the_store_of_one_machine(stored):
    folder, _ = stored
    done = run_block("merge", folder)
    assert done.returncode == 3 and "2 stores merged: 6 embedded, 1 skipped" in done.stderr
    with pytest.warns(UntrainedModelWarning):
        whole, merged = (aim_mlx.EmbeddingStore(folder / name) for name in ("vectors", "merged"))
    assert merged.paths == whole.paths
    np.testing.assert_allclose(merged.vectors, whole.vectors, atol=SAME)


def test_the_python_lines_about_stores_run(stored, monkeypatch):
    monkeypatch.chdir(stored[0])
    names: dict = {}
    with pytest.warns(UntrainedModelWarning):
        exec(code_of("embedding"), names)
    assert names["store"].vectors.shape == (6, small.SMALL.embed_dim)


def test_the_query_in_sql_finds_the_photo_that_was_turned(stored, monkeypatch):
    monkeypatch.chdir(stored[0])
    with duckdb.connect() as connection:
        first, second, _ = connection.execute(code_of("embedding", "sql")).fetchall()
    assert first == ("photos/chelsea.jpg", pytest.approx(1, abs=1e-5))
    assert second[0] == "photos/on_its_side.jpg" and second[1] > 0.999


def test_the_python_lines_run(stored, monkeypatch, capsys):
    monkeypatch.chdir(stored[0])
    with pytest.warns(UntrainedModelWarning):
        exec(code_of("python"), {})
        exec(code_of("words"), {})
    assert f"0 ({small.SMALL.embed_dim},)" in capsys.readouterr().out
    exec(code_of("apps"), names := {})
    assert (names["rows"], names["length"]) == (2, small.SMALL.embed_dim)
    assert capsys.readouterr().out.startswith("1 of 2 images skipped, first image 1: truncated: ")


def test_the_line_that_quantises_runs_and_says_what_it_cost(tmp_path):
    small.save(tmp_path / "model", DEEP)
    done = run_block("convert", tmp_path)
    assert done.returncode == 0 and "cosine" in done.stderr, done.stderr
    sizes = [
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "model-8bit")
    ]
    # Norms and the file's header are the few bytes that the table's rule leaves out.
    assert sizes[1] == pytest.approx(size_at(DEEP, "8 bits"), rel=0.01)
    assert sizes[0] == pytest.approx(size_at(DEEP, "float32"), rel=0.01)


def test_the_line_that_writes_a_file_for_apps_runs_and_says_how_it_differs(tmp_path):
    small.save(tmp_path / "model")
    done = run_block("apps", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "differs from MLX by" in done.stderr and (tmp_path / "Photos.mlxfn").is_file()


def test_the_lines_that_search_find_the_photo_that_was_turned(stored):
    folder, _ = stored
    done = run_block("search", folder)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert found[0][1] == "photos/on_its_side.jpg" and len(found[0]) == 2
    assert [line[:2] for line in found[3:]][0] == ["1", "reference"] and len(found) > 4
    for page in ("like-chelsea.html", "duplicates.html"):
        assert "data:image/jpeg;base64," in (folder / page).read_text()


def test_the_line_about_thresholds_tells_altered_copies_from_photos_that_differ(stored):
    folder, _ = stored
    done = run_block("threshold", folder)
    assert done.returncode == 0, done.stderr
    rows = {line[:24].strip(): line[24:].split() for line in done.stdout.splitlines()}
    assert len(rows) == 9 and "cut_short.jpg" in done.stderr
    # The photos are few, and two of them are one that was turned.
    assert float(rows["half the size"][0]) > 0.9 > float(rows["photos that differ"][1])
    assert rows["half the size"][3] == "100%" and rows["photos that differ"][2] == "1.000"


def test_the_line_with_words_runs_and_makes_a_page(stored):
    folder, _ = stored
    done = run_block("classify", folder)
    assert done.returncode == 3 and len(done.stdout.splitlines()) == 6, done.stderr
    assert (folder / "labels.html").read_text().count("<img ") == 6


def test_the_line_that_makes_an_untrained_lit_model_names_a_published_one():
    # The model is 1.7 GB; what init writes of such a model is tested with a small one elsewhere.
    command, name, folder = block("lit").removeprefix("aim-mlx ").split()
    assert (command, folder) == ("init", "lit") and isinstance(MODELS[name].config, LiTConfig)


def test_the_lines_that_train_words_run(tmp_path):
    done = run_block("pairs", tmp_path)
    assert done.returncode == 0 and "320 pairs of 320 images" in done.stderr, done.stderr
    assert (tmp_path / "my-lit/model.safetensors").is_file()


def test_the_lines_that_pretrain_an_encoder_run(tmp_path):
    done = run_block("pretrain", tmp_path)
    assert done.returncode == 0 and "320 images with 320 captions" in done.stderr, done.stderr
    assert done.stdout.count("\tshapes/pictures/") == 2
    assert (tmp_path / "my-encoder/report.html").is_file()
    assert (tmp_path / "continued.png").is_file()


def test_the_commands_of_the_first_table_are_lines_that_are_run():
    commands = re.findall(r"^\|[^|]*\| `(aim-mlx [^`]*)` \| \[", README, re.M)
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.S)).splitlines()
    assert len(commands) == 5 and not set(commands) - set(lines)


def test_links_lead_to_files_that_are_there():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    ]
    assert len(links) > 20
    assert [link for page, link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 200


def test_every_command_of_the_pages_is_in_a_block_that_is_run():
    blocks = set(re.findall(r"(?:<!-- ([\w-]+) -->\n)?```bash\n(.*?)```", TEXT, re.S))
    assert [lines for mark, lines in blocks if not mark] == [
        "sudo apt-get install libopenblas0-pthread\n"
    ]
    tests = Path(__file__).read_text()
    for mark in {mark for mark, _ in blocks if mark} - {"tests"}:  # those are run by CI
        assert f'block("{mark}"' in tests


def test_the_lines_that_search_by_words_run(stored):
    folder, _ = stored
    done = run_block("words", folder)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr


def test_the_lines_that_train_a_probe_run_and_make_a_report(tmp_path, monkeypatch):
    done = run_block("probe", tmp_path)
    assert done.returncode == 0, done.stderr
    # Seen 0.87 with an untrained encoder; the largest class is a tenth.
    accuracy = re.search(r"^accuracy\t([\d.]+)%", done.stdout, re.M)
    assert accuracy and float(accuracy[1]) > 70
    sevens = (tmp_path / "sevens.csv").read_text().splitlines()[1:]
    assert len(sevens) == 179 and (tmp_path / "my-probe/report.html").is_file()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"aim_mlx": aim_mlx}
    with pytest.warns(UntrainedModelWarning):
        exec(code_of("probes"), names)
    assert len(names["names"]) == 1 and names["looks"].shape[-2:] == (4, 4)
    # Fine-tuning goes on from the probe.
    done = run_block("finetune", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"right: .* beside .* of the probe, on the same \d+ images", done.stderr)
    assert len(np.load(tmp_path / "vectors-of-digits.npy")) == 183
    with pytest.warns(UntrainedModelWarning):
        exec(code_of("finetuning"), names)
    assert names["classifier"].encoder.weights_digest == names["encoder"].weights_digest


def test_the_table_of_commands_is_complete():
    from aim_mlx.cli.main import app

    names = {command.name for command in app.registered_commands}
    names |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"^\| `aim-mlx ([\w-]+)", README, re.M)) == names


def test_the_version_is_stated_once():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(rf'^version = "{re.escape(aim_mlx.__version__)}"$', text, re.M)
