"""The benchmarks measure what they say, or fail."""

import io
import shutil
import sys
from typing import Any

import pytest
from PIL import Image

import aim_mlx
from aim_mlx.backend import tree_flatten
from benchmarks import __main__ as benchmarks
from benchmarks import report, soak, store_cost, workers
from benchmarks.material import make_photos
from tests import small


def test_no_two_photographs_are_alike(tmp_path):
    count = 12  # more than there are to begin with
    assert make_photos(str(tmp_path / "photos"), count, (64, 48))["count"] == count
    contents = {path.read_bytes() for path in (tmp_path / "photos").iterdir()}
    assert len(contents) == count


@pytest.mark.parametrize("measure", [workers.peak_memory, workers.embed_folder])
def test_a_folder_with_copies_is_not_measured(tmp_path, measure):
    photos = tmp_path / "photos"
    make_photos(str(photos), 2, (64, 48))
    asked: dict[str, Any] = {"model": str(small.save(tmp_path / "model")), "folder": str(photos)}
    asked |= {"side": 56} if measure is workers.embed_folder else {}
    assert measure(**asked)["count"] == 2
    shutil.copy(photos / "0000.jpg", photos / "copy.jpg")
    with pytest.raises(SystemExit, match="2 of 3 files were computed"):
        measure(**asked)


def test_what_a_store_costs_is_not_measured_on_copies_or_damaged_photos(tmp_path):
    photos, encoder = tmp_path / "photos", aim_mlx.load(small.save(tmp_path / "model"))
    make_photos(str(photos), 2, (64, 48))
    store_cost.alone(encoder, str(photos))
    store_cost.store(encoder, str(photos))
    shutil.copy(photos / "0000.jpg", photos / "copy.jpg")
    with pytest.raises(SystemExit, match="2 of 3 files were computed"):
        store_cost.store(encoder, str(photos))
    (photos / "copy.jpg").write_bytes(b"")
    with pytest.raises(SystemExit, match="2 of 3 photos have a vector"):
        store_cost.alone(encoder, str(photos))


@pytest.mark.parametrize("holds", [True, False])
def test_a_goal_that_is_missed_is_an_exit_code(monkeypatch, holds):
    goals = [{"goal": "seconds an image", "holds": holds}]
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    monkeypatch.setattr(benchmarks, "measure", lambda plan, model: {"goals": goals})
    monkeypatch.setattr(benchmarks, "markdown", lambda result: "")
    if holds:
        benchmarks.main()
    else:
        with pytest.raises(SystemExit, match="missed: seconds an image"):
            benchmarks.main()


def test_a_folder_can_reach_less_of_the_encoder_where_both_share_the_cores():
    spread = {"median": 1.0}
    summary = {"encoder_alone_images_per_second": spread, "decode_core_seconds": spread}
    assert report.possible(summary, {"on_gpu": False, "cores": 3}) == pytest.approx(3 / 4)
    assert report.possible(summary, {"on_gpu": True, "cores": 3}) == 1


def test_memory_is_measured_over_photos_of_as_many_sizes():
    photos = soak.photos(4)
    assert len({Image.open(io.BytesIO(photo)).size for photo in photos}) == 4
    encoder = small.encoder(small.NATIVE)
    encoder.embed(photos[:1])
    weights = sum(value.nbytes for value in dict(tree_flatten(encoder.model.parameters())).values())
    assert soak.largest(encoder, photos) > weights


def test_a_photo_without_a_vector_ends_the_measurement():
    with pytest.raises(SystemExit, match="photo 1 has no vector"):
        soak.largest(small.encoder(small.NATIVE), [*soak.photos(1), b"no photo"])
