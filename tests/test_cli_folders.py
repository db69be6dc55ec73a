"""What odd folders and what happens in them get from `aim-mlx embed`, kinds 16 to 27."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageFile

from aim_mlx.cli.reporter import Progress
from tests.bad_images import JPEG, PNG, encoded
from tests.embed_runs import OUTPUTS, embed, make, vectors_of
from tests.small import save


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module", params=OUTPUTS)
def output(request) -> str:
    """The name of the output."""
    return request.param


def test_a_folder_without_images_ends_with_1_and_says_what_it_has(model, tmp_path, output):  # 16
    make(tmp_path / "in", {f"{i}.txt": b"" for i in range(214)})
    run = embed(tmp_path / "in", "-o", tmp_path / output, "--model", model)
    assert run.code == 1 and run.records == []
    assert "(ignored 214 files that are no images)" in run.stderr.splitlines()[-1]
    assert not (tmp_path / output).exists()


def test_a_missing_path_ends_with_2_before_any_work(model, tmp_path, output):  # 17
    make(tmp_path / "in", {"a.png": PNG})
    run = embed(tmp_path / "in", tmp_path / "gone", "-o", tmp_path / output, "--model", model)
    assert run.code == 2 and run.records == []
    (line,) = run.stderr.splitlines()
    assert "gone' cannot be found: check the path" in line
    assert not (tmp_path / output).exists()


def test_with_follow_every_folder_is_visited_once(model, tmp_path, output):  # 19
    make(tmp_path / "in", {"a.png": PNG, "sub/b.png": PNG})
    make(tmp_path / "elsewhere", {"c.png": PNG})
    for link, target in [("loop", "."), ("sub/up", ".."), ("c", "../elsewhere"), ("b", "sub")]:
        (tmp_path / "in" / link).symlink_to(target)
    run = embed(tmp_path / "in", "-o", tmp_path / output, "--model", model, "--follow")
    run.check_account(3, 0, 0)
    assert set(vectors_of(tmp_path / output)) == {"a.png", "b.png", "c.png"}


def test_a_file_that_goes_or_changes_during_the_run_is_skipped(
    model, tmp_path, output, monkeypatch
):  # 24
    folder = make(tmp_path / "in", {"a.png": PNG, "gone.png": PNG, "z.png": PNG})
    changing = folder / "changing.bmp"
    changing.write_bytes(encoded(format="BMP"))
    listed, load = Progress.listed, ImageFile.ImageFile.load

    def remove(self: Progress, listing: Any) -> None:
        listed(self, listing)
        (folder / "gone.png").unlink()

    def meddle(self: ImageFile.ImageFile) -> Any:
        if self.format == "BMP":
            os.truncate(changing, 100_000)
        return load(self)

    monkeypatch.setattr(Progress, "listed", remove)
    monkeypatch.setattr(ImageFile.ImageFile, "load", meddle)
    run = embed(folder, "-o", tmp_path / output, "--model", model)
    run.check_account(2, 2, 0)
    assert run.reasons == {"gone.png": "vanished", "changing.bmp": "changed"}
    assert set(vectors_of(tmp_path / output)) == {"a.png", "z.png"}


def test_the_same_content_twice_is_computed_once_and_has_two_rows(model, tmp_path, output):  # 25
    folder = make(tmp_path / "in", {"a.png": PNG, "copy.png": PNG, "other.jpg": JPEG})
    os.link(folder / "a.png", folder / "hard link.png")
    run = embed(folder, "-o", tmp_path / output, "--model", model)
    run.check_account(4, 0, 0)
    assert (run.summary["computed"], run.summary["reused"]) == (2, 2)
    vectors = vectors_of(tmp_path / output)
    for name in ("copy.png", "hard link.png"):
        np.testing.assert_array_equal(vectors[name], vectors["a.png"])


def test_a_file_renamed_since_the_last_run_keeps_its_vector(model, tmp_path):  # 26
    folder = make(tmp_path / "in", {"a.png": PNG, "b.jpg": JPEG})
    call = (folder, "-o", tmp_path / "store", "--model", model)
    embed(*call).check_account(2, 0, 0)
    before = vectors_of(tmp_path / "store")
    (folder / "b.jpg").rename(folder / "0.jpg")
    run = embed(*call)
    run.check_account(2, 0, 0)
    counts = {name: run.summary[name] for name in ("computed", "reused", "unchanged", "moved")}
    assert counts == {"computed": 0, "reused": 1, "unchanged": 1, "moved": 1}
    after = vectors_of(tmp_path / "store")
    np.testing.assert_array_equal(after["0.jpg"], before["b.jpg"])
    np.testing.assert_array_equal(after["a.png"], before["a.png"])


def test_the_output_inside_the_sources_is_no_input(model, tmp_path, output):  # 27
    folder = make(tmp_path / "in", {"a.png": PNG})
    for more in ([], ["--overwrite"]):
        run = embed(folder, "-o", folder / output, "--model", model, *more)
        run.check_account(1, 0, 0)
