"""Tokens of a frozen trunk on disk: the right ones, computed once, within the limit."""

import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aim_mlx.backend import mx
from aim_mlx.config import VisionConfig
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import AimError, CheckpointError, OutputError, UsageError
from aim_mlx.images.contents import read_content
from aim_mlx.tokens import cache as token_cache
from aim_mlx.tokens.cache import TokenCache
from aim_mlx.tokens.source import StreamedTokens, frozen_tokens
from tests.small import NATIVE, SMALL, assert_like_float16, encoder, photo, save
from tests.weights_files import PEAK

SHAPE = (16, 64)  # of SMALL: (N, D)
RECORD = 64 + 2 * 16 * 64
WIDE = VisionConfig(1024, 176, 1, 8, 14, 224)  # tokens of the size of the large model's


@pytest.fixture
def images(tmp_path) -> dict:
    """Five photographs as the cache takes them: digest -> (path, content)."""
    found = {}
    for seed in range(5):
        path = str(tmp_path / f"{seed}.png")
        Image.fromarray(photo(seed)).save(path)
        content = read_content(path)
        found[content.digest] = (path, content)
    return found


def wanted(model: Encoder, images: dict) -> np.ndarray:
    """What the model says of each image, alone."""
    pixels = [model.preprocess([path]) for path, _ in images.values()]
    return np.concatenate([np.array(model.features(each).tokens) for each in pixels])


def shards_of_two(monkeypatch) -> None:
    monkeypatch.setattr(token_cache, "_SHARD_BYTES", 2 * RECORD)
    monkeypatch.setattr(token_cache, "block_size", lambda *_: 1)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/tokens-*.npy"))


def test_cached_tokens_are_those_of_the_model_in_the_order_asked_for(tmp_path, images):
    model = encoder()
    cache = TokenCache(tmp_path / "cache", model)
    assert cache.fill(images) == []
    digests = list(images)
    rows = cache.rows(digests[::-1])
    batch = np.stack(rows.batch([0, 4, 4]))
    assert rows.shape == SHAPE and batch.dtype == np.float16
    assert_like_float16(batch, wanted(model, images)[[4, 0, 0]])


@pytest.mark.parametrize("order", [[3], [3, 1, 4], [4, 3, 2, 1, 0], [2, 2, 3] * 15])
def test_streamed_tokens_are_the_cached_ones_but_for_rounding_in_any_order(tmp_path, images, order):
    model = encoder()
    cache = TokenCache(tmp_path / "cache", model)
    cache.fill(images)
    cached = np.stack(cache.rows(list(images)).batch(order))
    streamed = np.stack(StreamedTokens(model, [path for path, _ in images.values()]).batch(order))
    assert_like_float16(streamed, cached)


def test_the_same_batch_is_streamed_to_the_same_bits_again(images):
    streamed = StreamedTokens(encoder(), [path for path, _ in images.values()])
    first = np.stack(streamed.batch([3, 1, 4, 2]))
    np.testing.assert_array_equal(streamed.batch([3, 1, 4, 2]), first)


@pytest.fixture
def batches(monkeypatch) -> list[bytes]:
    """Blocks of three images, and what is computed together, in the order that it is begun."""
    computed: list[bytes] = []
    compute = Encoder.tokens

    def watched(self, pixels, layers):
        computed.append(hashlib.sha256(np.array(pixels).tobytes()).digest())
        return compute(self, pixels, layers)

    monkeypatch.setattr(Encoder, "tokens", watched)
    monkeypatch.setattr(token_cache, "block_size", lambda *_: 3)
    return computed


@pytest.mark.parametrize("last", range(1, 9))
def test_a_fill_that_was_stopped_goes_on_in_the_same_batches_to_the_same_bits(
    tmp_path, batches, last
):
    """Whatever it was stopped at, and with an image that cannot be decoded on the way."""
    images = {}
    for seed in range(8):
        path = tmp_path / f"{seed}.png"
        Image.fromarray(photo(seed)).save(path)
        if seed == 1:
            path.write_bytes(b"not an image")
        content = read_content(str(path))
        images[content.digest] = (str(path), content)
    sound = [digest for i, digest in enumerate(images) if i != 1]
    straight = TokenCache(tmp_path / "straight", encoder())
    straight.fill(images)
    expected, whole = np.stack(straight.rows(sound).batch(range(7))), set(batches)
    batches.clear()

    def stop(done: int, total: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TokenCache(tmp_path / "stopped", encoder()).fill(images, stop)
    kept = 8 - len(TokenCache(tmp_path / "stopped", encoder()).missing(list(images)))
    assert kept == {1: 0, 2: 0, 3: 2, 4: 2, 5: 2, 6: 5, 7: 5, 8: 7}[last]
    again = TokenCache(tmp_path / "stopped", encoder())
    assert [skip.reason for skip in again.fill(images)] == ["not_image"]
    np.testing.assert_array_equal(again.rows(sound).batch(range(7)), expected)
    assert set(batches) == whole


def test_layers_give_the_mean_of_their_outputs(tmp_path, images):
    model = encoder()
    cache = TokenCache(tmp_path / "cache", model, layers=(0, -1))
    cache.fill(images)
    path = next(iter(images.values()))[0]
    outputs = model.features(model.preprocess([path]), [0, -1]).layers
    mean = (np.array(outputs[0]) + np.array(outputs[-1])) / 2
    assert_like_float16(cache.rows(list(images)).batch([0]), mean)


def test_what_is_there_is_not_computed_again(tmp_path, images, monkeypatch):
    TokenCache(tmp_path / "cache", encoder()).fill(images)
    cache = TokenCache(tmp_path / "cache", encoder())
    assert cache.missing(list(images)) == [] and cache.bytes_to_add(list(images)) == 0
    monkeypatch.setattr(token_cache, "frozen_tokens", None)
    assert cache.fill(images) == []


@pytest.mark.parametrize(
    "change", ["weights", "preprocessing", "layers"], ids=lambda change: f"other_{change}"
)
def test_tokens_of_another_encoder_are_not_mixed_in(tmp_path, images, change):
    TokenCache(tmp_path / "cache", encoder()).fill(images)
    other = encoder(seed=1 if change == "weights" else 0)
    if change == "preprocessing":
        other.preprocessing = type(other.preprocessing).imagenet(56)
    layers = (0,) if change == "layers" else ()
    cache = TokenCache(tmp_path / "cache", other, layers)
    assert len(cache.missing(list(images))) == 5


def test_the_limit_holds_for_the_whole_folder(tmp_path, images):
    folder = tmp_path / "cache"
    limit = 5 * (RECORD + 256)
    first = TokenCache(folder, encoder(), limit=limit)
    assert first.fits(list(images))
    first.fill(images)
    used = sum(path.stat().st_size for path in shards(folder))
    assert 5 * RECORD < used <= limit
    second = TokenCache(folder, encoder(seed=1), limit=limit)
    assert not second.fits(list(images)[:1])
    with pytest.raises(UsageError, match="the limit is"):
        second.fill(images)
    assert sum(path.stat().st_size for path in shards(folder)) == used


def test_the_limit_holds_where_another_fills_the_folder_in_the_meantime(tmp_path, images):
    folder, limit = tmp_path / "cache", 5 * (RECORD + 256)

    def another(done: int, total: int) -> None:
        (folder / "other").mkdir(exist_ok=True)
        (folder / "other" / "tokens-000000.npy").write_bytes(bytes(RECORD))

    with pytest.raises(OutputError, match="has grown to its limit"):
        TokenCache(folder, encoder(), limit=limit).fill(images, another)
    assert [path.parent.name for path in shards(folder)] == ["other"]


def test_what_a_killed_run_of_another_encoder_left_does_not_pass_the_limit(tmp_path, images):
    folder = tmp_path / "cache"
    TokenCache(folder, encoder(seed=1)).fill(images)
    unfinished = shards(folder)[0].with_name(".tokens-000007.npy.1.aim-mlx.tmp")
    unfinished.write_bytes(bytes(RECORD))
    TokenCache(folder, encoder(), limit=10 * (RECORD + 256)).fill(images)
    assert len(shards(folder)) == 2 and not unfinished.exists()


def test_two_encoders_take_turns_in_writing_below_one_limit(tmp_path, images):
    folder = tmp_path / "cache"
    folder.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with token_cache._turn(folder):
            filling = pool.submit(_fill_apart, folder, images)
            deadline = time.monotonic() + 60
            while not list(folder.glob("*/identity.json")) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)  # it waits for its turn
            written, done = shards(folder), filling.done()
        filling.result(timeout=60)
    assert not written and not done and len(shards(folder)) == 1


def _fill_apart(folder: Path, images: dict) -> None:
    TokenCache(folder, encoder()).fill(images)


_OPEN = """
import sys
from aim_mlx.tokens import cache as token_cache
from tests.small import encoder
from tests.test_tokens_cache import WIDE
model = encoder(WIDE)
before = peak()
cache = token_cache.TokenCache(sys.argv[1], model)
print(len(cache._shards), peak() - before)
"""


def test_opening_a_large_cache_takes_no_memory_for_its_tokens(tmp_path):
    """1.3 GB of shards, all holes; mapped, 0.3 MB around each digest would be read and kept."""
    record = token_cache.record_of((256, 1024))
    cache = TokenCache(tmp_path / "cache", encoder(WIDE))
    cache._folder.mkdir(parents=True)
    for number in range(20):
        with open(cache._folder / f"tokens-{number:06d}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": record.descr, "fortran_order": False, "shape": (127,)}
            )
            file.truncate(file.tell() + 127 * record.itemsize)
    command = [sys.executable, "-c", PEAK + _OPEN, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    opened, grown = map(int, done.stdout.split())
    assert opened == 20 and grown < 20e6, grown


def test_images_that_cannot_be_decoded_are_returned_with_the_reason(tmp_path, images):
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"not an image")
    content = read_content(str(path))
    cache = TokenCache(tmp_path / "cache", encoder())
    skips = cache.fill({content.digest: (str(path), content), **images})
    assert [(skip.path, skip.reason) for skip in skips] == [(str(path), "not_image")]
    assert cache.missing([content.digest, *images]) == [content.digest]


def test_a_file_that_changed_since_it_was_digested_is_not_kept_under_the_old_digest(
    tmp_path, images
):
    digest, (path, _) = next(iter(images.items()))
    Image.fromarray(photo(99, 61)).save(path)
    cache = TokenCache(tmp_path / "cache", encoder())
    assert [skip.reason for skip in cache.fill(images)] == ["changed"]
    assert cache.missing(list(images)) == [digest]


def test_a_model_whose_tokens_all_pass_float16_is_refused(images):
    model = encoder()
    model.model.trunk.post_trunk_norm.weight *= mx.where(mx.arange(64) == 3, 1e5, 1)
    with pytest.raises(CheckpointError, match="finite"):
        list(frozen_tokens(model, [path for path, _ in images.values()]))


def test_one_image_beyond_float16_is_named(images, monkeypatch):
    model, paths = encoder(), [path for path, _ in images.values()]
    compute = Encoder.tokens

    def overflowing(self, pixels, layers):
        factors = mx.where(mx.arange(len(pixels)) == 0, 1e6, 1)
        return compute(self, pixels, layers) * factors[:, None, None]

    monkeypatch.setattr(Encoder, "tokens", overflowing)
    with pytest.raises(AimError, match=r"0\.png.*beyond float16"):
        list(frozen_tokens(model, paths))


def test_the_native_resolution_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="one image size"):
        TokenCache(tmp_path / "cache", encoder(NATIVE))


def test_tokens_that_changed_on_the_disk_are_never_used(tmp_path, images, monkeypatch):
    shards_of_two(monkeypatch)
    folder, model = tmp_path / "cache", encoder()
    TokenCache(folder, model).fill(images)
    sound = np.stack(TokenCache(folder, model).rows(list(images)).batch(range(5)))
    damaged = shards(folder)[1]
    bits = bytearray(damaged.read_bytes())
    bits[-100] ^= 1
    damaged.write_bytes(bits)
    rows = TokenCache(folder, model).rows(list(images))
    np.testing.assert_array_equal(np.stack(rows.batch([4, 0, 1, 2])), sound[[4, 0, 1, 2]])
    for _ in range(2):
        with pytest.raises(OutputError, match=f"{damaged.name}' is damaged: remove it"):
            rows.batch([2, 3])
    damaged.unlink()
    cache = TokenCache(folder, model)
    cache.fill(images)
    np.testing.assert_array_equal(np.stack(cache.rows(list(images)).batch(range(5))), sound)


def test_a_damaged_shard_is_computed_again_and_the_others_are_kept(tmp_path, images, monkeypatch):
    shards_of_two(monkeypatch)
    folder = tmp_path / "cache"
    TokenCache(folder, encoder()).fill(images)
    first, second, third = shards(folder)
    kept = first.read_bytes()
    second.write_bytes(second.read_bytes()[:-1])
    cache = TokenCache(folder, encoder())
    assert cache.missing(list(images)) == list(images)[2:4]
    cache.fill(images)
    assert cache.missing(list(images)) == [] and first.read_bytes() == kept
    expected = wanted(encoder(), images)
    assert_like_float16(cache.rows(list(images)).batch(range(5)), expected)


def test_a_shard_with_any_damage_to_its_header_is_computed_again(tmp_path, images):
    model = encoder()
    TokenCache(tmp_path / "cache", model).fill(images)
    (path,) = shards(tmp_path / "cache")
    sound = path.read_bytes()
    for place in range(128):
        for bit in (1, 2, 4):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ bit]) + sound[place + 1 :])
            cache = TokenCache(tmp_path / "cache", model)
            assert len(cache.missing(list(images))) in (0, 5)


_FILL = """
import sys
import aim_mlx
from aim_mlx.tokens import cache as token_cache
from aim_mlx.images.contents import read_content
from aim_mlx.tokens.cache import TokenCache
token_cache._SHARD_BYTES = 1
token_cache.block_size = lambda *_: 1
images = {}
for path in sys.argv[3:]:
    content = read_content(path)
    images[content.digest] = (path, content)
cache = TokenCache(sys.argv[2], aim_mlx.load(sys.argv[1]))
cache.fill(images, lambda done, total: print(done, flush=True))
"""


def test_a_killed_run_keeps_its_shards_and_the_next_one_computes_the_rest(tmp_path):
    paths = []
    for seed in range(200):
        paths.append(str(tmp_path / f"{seed}.png"))
        Image.fromarray(photo(seed)).save(paths[-1])
    folder, model = tmp_path / "cache", save(tmp_path / "model")
    command = [sys.executable, "-c", _FILL, str(model), str(folder), *paths]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in shards(folder)}
    assert 3 <= len(kept) < 200
    (folder / shards(folder)[0].parent.name / ".tokens-000009.npy.1.aim-mlx.tmp").write_bytes(b"x")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(200 - len(kept))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(folder.glob("*/.*.aim-mlx.tmp"))


def test_a_disk_that_is_too_small_is_said_before_any_work(tmp_path, images, monkeypatch):
    usage = token_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(token_cache.shutil, "disk_usage", lambda _: usage._replace(free=RECORD))
    monkeypatch.setattr(token_cache, "frozen_tokens", None)
    with pytest.raises(OutputError, match="free"):
        TokenCache(tmp_path / "cache", encoder()).fill(images)


def test_a_cache_says_what_it_is_of(tmp_path, images):
    TokenCache(tmp_path / "cache", encoder()).fill(images)
    (identity,) = (tmp_path / "cache").glob("*/identity.json")
    values = json.loads(identity.read_text())
    assert values["encoder"]["embed_dim"] == SMALL.embed_dim and values["layers"] == []


def test_a_shard_closes_by_time_too(tmp_path, images, monkeypatch):
    clock = iter(range(0, 10_000, 61))
    monkeypatch.setattr(token_cache, "block_size", lambda *_: 1)
    monkeypatch.setattr(token_cache.time, "monotonic", lambda: next(clock))
    TokenCache(tmp_path / "cache", encoder()).fill(images)
    assert len(shards(tmp_path / "cache")) == 5
