"""Pictures and captions as batches of pre-training."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aim_mlx.data.pairs import read_pairs
from aim_mlx.errors import AimError, UsageError
from aim_mlx.images.pictures import Pictures
from tests.pretraining import data_of, pairs_in, write_pairs
from tests.small import photo


def read(source):
    return read_pairs(source, may_lack_captions=True)


def same(first, second) -> bool:
    arrays = zip(
        (first.pixels, first.prefix, first.ids, first.lengths),
        (second.pixels, second.prefix, second.ids, second.lengths),
        strict=True,
    )
    return all(np.array_equal(a, b) for a, b in arrays)


@pytest.fixture
def pairs(tmp_path):
    return pairs_in(tmp_path / "pictures")


def test_the_same_pairs_come_from_every_kind_of_table(tmp_path):
    table = write_pairs(tmp_path)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    digests = {read(tmp_path / f"pairs.{kind}")[0].digest() for kind in ("jsonl", "csv", "parquet")}
    assert len(digests) == 1


def test_pictures_without_captions_are_kept(pairs):
    assert len(pairs.paths) == 12
    assert set(pairs.images) == {i for i in range(12) if i % 4 != 3}


def test_a_folder_is_pictures_without_captions(tmp_path):
    write_pairs(tmp_path / "a")
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    pairs, _ = read(tmp_path / "a")
    assert len(pairs.paths) == 13 and not pairs.captions
    with pytest.raises(UsageError, match="no images"):
        read(tmp_path / "empty")


def test_a_batch_is_a_function_of_seed_and_step(pairs):
    first = [data_of(pairs).batch(step) for step in range(4)]
    again = data_of(pairs)
    for step in (3, 0, 2, 1):
        assert same(first[step], again.batch(step))
    assert not same(first[0], first[1])
    assert not same(first[0], data_of(pairs, seed=1).batch(0))


def test_the_memory_decides_nothing(pairs):
    kept, read_again = data_of(pairs), data_of(pairs, limit=0)
    # A second time, when pictures come from the memory.
    for step in (0, 1, 2, 0, 1, 2):
        assert same(kept.batch(step), read_again.batch(step))
    assert kept.pictures._kept and not read_again.pictures._kept


def test_every_epoch_shows_every_picture_once(pairs):
    data = data_of(pairs, batch_size=5, epochs=3)
    assert data.steps == 8
    dealt = np.concatenate([data._dealt(step * 5 + np.arange(5)) for step in range(data.steps)])
    epochs = dealt[:36].reshape(3, 12)
    assert (np.sort(epochs) == np.arange(12)).all()
    assert not np.array_equal(epochs[0], epochs[1])


def test_all_captions_of_a_picture_come_and_end_with_the_end_token(pairs):
    data = data_of(pairs, batch_size=12, epochs=20)
    seen: dict[int, set[tuple[int, ...]]] = {}
    for step in range(20):
        batch, images = data.batch(step), data._dealt(step * 12 + np.arange(12))
        assert batch.ids is not None and batch.ids.shape[1] % 8 == 0
        for image, ids, length in zip(images, batch.ids, batch.lengths, strict=True):
            seen.setdefault(int(image), set()).add(tuple(ids[:length].tolist()))
    tokenizer = data.tokenizer
    assert tokenizer is not None
    for image, texts in seen.items():
        captions = [c for c, i in zip(pairs.captions, pairs.images, strict=True) if i == image]
        encoded = tokenizer.encode(captions)
        expected = {
            tuple(ids[1:length].tolist())
            for ids, length in zip(encoded.ids, encoded.lengths, strict=True)
        }
        assert texts == (expected or {()})
        assert all(text[-1] == tokenizer.eos_token_id for text in texts if text)


def test_captions_have_no_say_without_atokenizer(pairs):
    batch = data_of(pairs, captions=False).batch(0)
    assert batch.ids is None and not batch.lengths.any()


def test_prefixes_leave_at_least_one_patch(pairs):
    data = data_of(pairs, batch_size=12, epochs=100)
    prefixes = np.concatenate([data.batch(step).prefix for step in range(20)])
    assert prefixes.min() == 1 and prefixes.max() == 15


@pytest.mark.parametrize("flip", [False, True])
def test_only_with_flip_are_pictures_mirrored(tmp_path, flip):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    batch = data_of(read(tmp_path)[0], captions=False, batch_size=32, flip=flip).batch(0)
    mirrored = batch.pixels[:, :, :28].mean(axis=(1, 2, 3)) > batch.pixels[:, :, 28:].mean(
        (1, 2, 3)
    )
    assert mirrored.any() == flip and not mirrored.all()


@pytest.mark.parametrize("option", [{"flip": True}, {"jitter": 0.5}, {"smallest_crop": 0.1}])
def test_views_change_as_the_options_say(pairs, option):
    plain = {"flip": False, "jitter": 0.0, "smallest_crop": 0.9}
    first, second = data_of(pairs, **plain), data_of(pairs, **{**plain, **option})
    steps = range(3)
    assert any(not np.array_equal(first.batch(s).pixels, second.batch(s).pixels) for s in steps)


def test_validation_is_the_same_every_time(pairs):
    data = data_of(pairs)
    rows = np.arange(4)
    first = data.fixed(rows)
    assert same(first, data_of(pairs).fixed(rows))
    # A picture's prefix does not depend on which others are there.
    assert data.fixed(rows[2:]).prefix.tolist() == first.prefix[2:].tolist()


def test_large_pictures_are_kept_smaller_and_bounded(tmp_path):
    paths = []
    for i in range(3):
        Image.fromarray(photo(i, 300, 400)).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    pairs = read(tmp_path)[0]
    files = {p: c.at(p) for p, c in zip(pairs.paths, pairs.contents, strict=True)}
    one = 60 * 80 * 3
    pictures = Pictures(files, 60, 2 * one)
    assert pictures[paths[0]].size == (80, 60)
    assert not pictures.check(lambda *_: None)
    assert sum(pixels.nbytes for pixels in pictures._kept.values()) == 2 * one


def test_pictures_that_cannot_be_decoded_are_named(tmp_path):
    write_pairs(tmp_path)
    data = (tmp_path / "5.png").read_bytes()
    (tmp_path / "5.png").write_bytes(data[: len(data) // 2])
    pairs, _ = read(tmp_path)
    files = {p: c.at(p) for p, c in zip(pairs.paths, pairs.contents, strict=True)}
    pictures = Pictures(files, 60, 0)
    failures = pictures.check(lambda *_: None)
    assert [skip.path for skip in failures] == [str(tmp_path / "5.png")]
    with pytest.raises(AimError, match="put it back"):
        pictures.required(failures[0].path)
