"""Tokens of a data set: cached as far as they fit, else computed, with random views or without."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from aim_mlx.data.labelled import Data
from aim_mlx.data.splits import DataSet, divided
from aim_mlx.errors import UsageError
from aim_mlx.images.augment import augmented, random_box
from aim_mlx.probe.features import (
    Augmentation,
    DataSetTokens,
    Views,
    encoder_of_views,
    view_key,
)
from aim_mlx.training.report import Silent
from tests.small import assert_like_float16, encoder, photo, save

RECORD = 64 + 2 * 16 * 64 + 256  # of SMALL, with what is reckoned for a header


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes: list[str] = []
        self.stages: dict[str, tuple[int, int]] = {}

    def noted(self, note: str) -> None:
        self.notes.append(note)

    def advanced(self, what: str, done: int, total: int) -> None:
        self.stages[what] = (done, total)


@pytest.fixture
def data(tmp_path) -> DataSet:
    """Two classes of ten: 14 images to train on, 4 to choose by, 2 to test with."""
    for seed in range(20):
        folder = tmp_path / "data" / ("cat" if seed < 10 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(seed)).save(folder / f"{seed}.png")
    return divided(Data(tmp_path / "data", val=0.2, test=0.1))


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/tokens-*.npy"))


def all_tokens(features: DataSetTokens, data: DataSet, name: str, epoch: int = 0) -> np.ndarray:
    part = data.parts[name]
    return np.stack(features.tokens(name, part).for_epoch(epoch).batch(range(len(part))))


def test_the_size_is_said_before_it_starts_and_each_part_is_cached(tmp_path, data):
    features, told = DataSetTokens(encoder(), tmp_path / "cache", 10**9), Listener()
    assert features.prepare(data, told, told.advanced) is data
    (note,) = told.notes
    assert (
        note
        == f"the tokens of train, val, test take {20 * RECORD / 1e6:.2f} MB on the disk, at most"
    )
    assert told.stages["computing the tokens of train"] == (14, 14)
    assert all(features.tokens(*each).cached for each in data.parts.items())
    again = Listener()
    DataSetTokens(encoder(), tmp_path / "cache", 10**9).prepare(data, again, again.advanced)
    assert again.notes == [] and again.stages == {}


@pytest.mark.parametrize(("fit", "cached"), [(19, {"val", "test"}), (5, {"val"}), (3, {"test"})])
def test_what_does_not_fit_is_computed_from_the_images_to_the_same_tokens(
    tmp_path, data, fit, cached
):
    model = encoder()
    whole = DataSetTokens(model, tmp_path / "whole", None)
    whole.prepare(data, Listener(), lambda *_: None)
    features, told = DataSetTokens(model, tmp_path / "cache", fit * RECORD), Listener()
    features.prepare(data, told, told.advanced)
    assert {
        name for name, part in data.parts.items() if features.tokens(name, part).cached
    } == cached
    assert size(tmp_path / "cache") <= fit * RECORD
    assert sum("over the limit" in note for note in told.notes) == 3 - len(cached)
    for name in data.parts:
        # The same float32 tokens in batches of another size, rounded to float16's 11 bits.
        assert_like_float16(all_tokens(features, data, name), all_tokens(whole, data, name))


def test_images_that_cannot_be_decoded_leave_the_data_cached_or_not(tmp_path, data):
    bad = [data.parts["train"].paths[0], data.parts["val"].paths[0]]
    for number, path in enumerate(bad):
        with open(path, "wb") as file:
            file.write(b"%d" % number)  # no image, and no copy of the other
    spoilt = divided(Data(tmp_path / "data", val=0.2, test=0.1))
    for limit in (10**9, 0):
        features = DataSetTokens(encoder(), tmp_path / f"cache {limit}", limit)
        rest = features.prepare(spoilt, Listener(), lambda *_: None)
        assert {(skip.path, skip.reason) for skip in rest.skips} == {(p, "not_image") for p in bad}
        for name in rest.parts:
            assert len(all_tokens(features, rest, name)) == len(rest.parts[name])


def test_views_differ_by_epoch_and_are_the_same_for_a_seed(tmp_path, data):
    def views(seed: int, epoch: int) -> np.ndarray:
        features = DataSetTokens(encoder(), tmp_path, 10**9, augmentation=Augmentation(seed))
        features.prepare(data, Listener(), lambda *_: None)
        return all_tokens(features, data, "train", epoch)

    first = views(0, 0)
    assert_like_float16(views(0, 0), first)  # batches of another size
    assert np.abs(views(0, 1) - first).max() > 0.1 < np.abs(views(1, 0) - first).max()


def test_endless_views_are_said_and_only_the_other_parts_are_cached(tmp_path, data):
    features = DataSetTokens(encoder(), tmp_path / "cache", 10**9, augmentation=Augmentation())
    told = Listener()
    features.prepare(data, told, told.advanced)
    assert "train has new random views" in told.notes[0] and "val, test take" in told.notes[1]
    assert told.stages["checking the images of train"] == (14, 14)
    assert size(tmp_path / "cache") < 7 * RECORD


def test_a_number_of_views_is_cached_and_used_in_turn(tmp_path, data):
    features = DataSetTokens(encoder(), tmp_path / "cache", 10**9, augmentation=Augmentation(0, 2))
    features.prepare(data, Listener(), lambda *_: None)
    assert size(tmp_path / "cache") > (2 * 14 + 6) * (RECORD - 256)
    zero, one, two = (all_tokens(features, data, "train", epoch) for epoch in range(3))
    np.testing.assert_array_equal(zero, two)
    assert np.abs(zero - one).max() > 0.1
    endless = DataSetTokens(encoder(), tmp_path / "other", 10**9, augmentation=Augmentation(0))
    endless.prepare(data, Listener(), lambda *_: None)
    assert_like_float16(all_tokens(endless, data, "train", 1), one)


def test_views_share_one_limit_with_the_other_parts(tmp_path, data):
    limit = (2 * 14 + 5) * RECORD
    features = DataSetTokens(encoder(), tmp_path / "cache", limit, augmentation=Augmentation(0, 2))
    told = Listener()
    features.prepare(data, told, told.advanced)
    assert "the tokens of train would take" in told.notes[0] and size(tmp_path / "cache") <= limit


def test_layers_are_those_of_the_tokens(tmp_path, data):
    model = encoder()
    features = DataSetTokens(model, tmp_path / "cache", 10**9, layers=(0, 1))
    features.prepare(data, Listener(), lambda *_: None)
    outputs = model.features(model.preprocess([data.parts["val"].paths[0]]), [0, 1]).layers
    mean = (np.array(outputs[0]) + np.array(outputs[1])) / 2
    assert_like_float16(all_tokens(features, data, "val")[:1], mean)


_PREPARE = """
import sys
import aim_mlx
from aim_mlx.tokens import cache as token_cache
from aim_mlx.data.labelled import Data
from aim_mlx.probe.features import DataSetTokens
from aim_mlx.data.splits import divided
from aim_mlx.training.report import Silent
token_cache._SHARD_BYTES = 1
token_cache.block_size = lambda *_: 1
advanced = lambda what, done, total: print(what, done, flush=True)
data = divided(Data(sys.argv[1]))
features = DataSetTokens(aim_mlx.load(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
features.prepare(data, Silent(), advanced)
"""


def test_a_cache_killed_while_it_is_filled_goes_on_and_stays_within_its_limit(tmp_path):
    for seed in range(100):
        folder = tmp_path / "data" / ("cat" if seed < 50 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(seed)).save(folder / f"{seed}.png")
    cache, limit = tmp_path / "cache", 101 * RECORD
    folders = [str(tmp_path / "data"), str(save(tmp_path / "model")), str(cache), str(limit)]
    command = [sys.executable, "-c", _PREPARE, *folders]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "computing the tokens of train 3\n" in process.stdout
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("*/tokens-*.npy")}
    assert kept and size(cache) <= limit
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    computed = [line for line in done.stdout.splitlines() if line.startswith("computing")]
    assert len(computed) == 100 - len(kept) and size(cache) <= limit
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_view_is_of_the_size_asked_for_and_depends_on_the_key_alone(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(photo(0, 300, 400)).save(path)
    keys = [view_key("ab", Augmentation(), number) for number in range(3)]
    first, second, third = Views([str(path)] * 3, keys, 56)
    again = Views([str(path)], keys[1:2], 56)[0]
    assert isinstance(first, Image.Image) and first.size == (56, 56)
    assert pixels(second) == pixels(again)
    assert len({pixels(each) for each in (first, second, third)}) == 3


def pixels(image) -> bytes:
    return image.tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (64, 64)])
def test_an_image_of_any_shape_has_views(shape):
    image = Image.fromarray(photo(0, 500, 500)).crop((0, 0, *shape))
    for seed in range(20):
        assert augmented(image, 56, np.random.default_rng(seed)).size == (56, 56)


def test_boxes_lie_in_the_image_and_have_the_area_and_shape_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(640, 480, rng, 0.08) for _ in range(2000)])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 640 and boxes[:, 3].max() <= 480
    area, ratio = across * down / (640 * 480), across / down
    assert area.min() > 0.0799 and area.max() <= 1.0 and area.min() < 0.1 < 0.8 < area.max()
    assert (
        ratio.min() > 0.7499 and ratio.max() < 1.3334 and 0.9 < np.exp(np.log(ratio).mean()) < 1.1
    )


def test_half_of_the_views_are_mirrored_and_colours_change():
    image = Image.new("RGB", (80, 80), (100, 120, 140))
    image.paste((0, 0, 0), (0, 0, 40, 80))
    views = [np.asarray(augmented(image, 56, np.random.default_rng(i))) for i in range(200)]
    darker_left = [
        v[:, :28].mean() < v[:, 28:].mean() for v in views if np.ptp(v.mean((0, 2))) > 50
    ]
    assert 0.35 < np.mean(darker_left) < 0.65
    assert np.ptp([v.max() for v in views]) > 30


def test_a_view_of_what_cannot_be_decoded_is_left_to_the_decoder(tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"no image")
    assert Views([str(path)], [view_key("ab", Augmentation(), 0)], 56)[0] == str(path)


def test_the_encoder_of_views_takes_them_as_they_are():
    model = encoder()
    model.preprocessing = type(model.preprocessing).imagenet(56)
    view = augmented(Image.fromarray(photo(1)), 56, np.random.default_rng(0))
    found = encoder_of_views(model).preprocess([view])[0]
    mean, std = (
        np.array(v, np.float32) for v in (model.preprocessing.mean, model.preprocessing.std)
    )
    np.testing.assert_allclose(found, (np.asarray(view) / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("views", [-1, 1.5, 1001])
def test_a_number_of_views_that_cannot_be_is_refused(views):
    with pytest.raises(UsageError, match="--views must be from 0 to 1000"):
        Augmentation(0, views)
