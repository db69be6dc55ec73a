"""The facade for host apps: every answer is a dictionary, whatever is asked."""

import ctypes
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.bridge import Embedder
from aim_mlx.models.pooling import normalized
from aim_mlx.words.zeroshot import ZeroShotHead
from tests import small
from tests.bad_images import BAD, GOOD, JPEG, PNG

FIELDS = {"ok", "error", "kind", "shape", "values", "skipped", "notes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LiT model, an encoder without words, and three photographs."""
    folder = tmp_path_factory.mktemp("bridge")
    small.save_lit(folder / "lit")
    small.save(folder / "vision")
    for seed in range(3):
        Image.fromarray(small.photo(seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def lit(folder):
    return aim_mlx.load_lit(folder / "lit")


@pytest.fixture(scope="module")
def embedder(folder):
    embedder = Embedder(folder / "lit")
    yield embedder
    embedder.release()


def rows(answer) -> np.ndarray:
    """The values of an answer that is as it should be, in their shape."""
    assert set(answer) == FIELDS and answer["ok"] and not answer["error"], answer
    values = answer["values"]
    assert values.dtype == np.float32 and values.ndim == 1
    assert values.flags.c_contiguous and values.flags.owndata | values.base.flags.owndata
    return values.reshape(answer["shape"])


def check_refused(answer, *kinds: str) -> None:
    assert set(answer) == FIELDS and answer["ok"] is False, answer
    assert answer["kind"] in kinds, answer
    assert 5 < len(answer["error"]) <= 1000 and "\n" not in answer["error"]
    assert (answer["shape"], answer["values"].tolist()) == ([0], [])


def same(actual, expected) -> None:
    # Batches of other sizes round otherwise, in the last bits of float32.
    assert abs(actual - expected).max() < 1e-5


def test_files_bytes_and_pixels_give_the_vectors_of_the_encoder(folder, lit, embedder):
    paths = [str(folder / f"{seed}.png") for seed in range(3)]
    expected = lit.embed(paths)
    same(rows(embedder.embed_files(paths)), expected)
    same(rows(embedder.embed_files(folder / "1.png")), expected[1:2])
    contents = [(folder / f"{seed}.png").read_bytes() for seed in range(3)]
    same(rows(embedder.embed_bytes(contents)), expected)
    same(rows(embedder.embed_bytes(bytearray(contents[2]))), expected[2:])
    same(rows(embedder.embed_rgb(small.photo(0).tobytes(), 60, 80)), expected[:1])


def test_texts_and_labels_give_the_numbers_of_the_model(folder, lit, embedder):
    texts = ["a cat", "a dog on a sofa"]
    same(rows(embedder.embed_text(texts)), np.array(normalized(lit.encode_text(texts))))
    assert embedder.embed_text("a cat")["shape"] == [1, 32]
    images = [folder / "0.png", (small.photo(1).tobytes(), 60, 80), (folder / "2.png").read_bytes()]
    scores = rows(embedder.classify(images, ["a cat", "a dog"], "varied"))
    same(
        scores, lit.classify([folder / f"{i}.png" for i in range(3)], ["a cat", "a dog"], "varied")
    )
    cosines = rows(embedder.classify(folder / "0.png", ["a cat"], multi_label=True))
    same(cosines, lit.classify([folder / "0.png"], ["a cat"], multi_label=True))


def test_labels_are_encoded_once_for_all_images_that_follow(embedder, monkeypatch):
    built = []

    def counted(*given, **options):
        built.append(1)
        return original(*given, **options)

    original = ZeroShotHead.build
    monkeypatch.setattr(ZeroShotHead, "build", counted)
    for labels in (["red", "green"], ["red", "green"], ["red", "blue"]):
        assert embedder.classify(PNG, labels)["ok"]
    assert len(built) == 2


def test_nested_lists_come_by_request(folder, lit):
    answer = Embedder(folder / "lit", as_lists=True).embed_files(folder / "0.png")
    assert type(answer["values"]) is type(answer["values"][0]) is list
    same(np.array(answer["values"]), lit.embed([folder / "0.png"]))


def test_an_image_that_cannot_be_embedded_costs_no_other(folder, lit, embedder):
    answer = embedder.embed_files([folder / "0.png", folder / "none.png", folder / "2.png", None])
    assert (answer["ok"], answer["kind"], answer["shape"]) == (False, "skipped", [4, 32])
    assert answer["error"] == (
        "2 of 4 images skipped, first image 1: vanished: the file is not there"
    )
    assert [(s["index"], s["reason"]) for s in answer["skipped"]] == [
        (1, "vanished"),
        (3, "not_image"),
    ]
    values = answer["values"].reshape(4, 32)
    assert np.isnan(values[[1, 3]]).all()
    same(values[[0, 2]], lit.embed([folder / "0.png", folder / "2.png"]))
    scores = embedder.classify([PNG, b""], ["a cat", "a dog"])
    assert np.isnan(scores["values"]).tolist() == [False, False, True, True]


def test_every_kind_of_image_gets_its_reason_and_nothing_is_printed(folder, capfd):
    embedder = Embedder(folder / "vision")
    images = [bad.content for bad in BAD.values()] + [data for data, _ in GOOD.values()]
    answer = embedder.embed_bytes(images)
    assert answer["kind"] == "skipped", answer["error"]
    reasons = {skip["index"]: skip["reason"] for skip in answer["skipped"]}
    expected = {index: bad.reason for index, bad in enumerate(BAD.values())}
    heic = list(BAD).index("phone.heic")  # whose reason depends on what is installed
    assert reasons == expected | {heic: reasons.get(heic)}
    values = answer["values"].reshape(len(images), -1)
    assert np.isfinite(values[len(BAD) :]).all() and np.isnan(values[: len(BAD)]).all()
    for bad in list(BAD.values())[:4]:
        check_refused(embedder.embed_bytes(bad.content), bad.reason)
    assert capfd.readouterr() == ("", "")


class Hostile:
    """Raises whatever is done with it, and is a path, a number, a list and a text all the same."""

    def refuse(self, *_):
        raise SystemExit("hostile")

    __fspath__ = __index__ = __len__ = __iter__ = __getitem__ = __bool__ = __float__ = refuse
    __repr__ = __str__ = __eq__ = __buffer__ = refuse  # pyright: ignore[reportAssignmentType]
    __hash__: Any = refuse


class HostileText(str):
    __repr__ = __str__ = __len__ = strip = encode = __fspath__ = Hostile.refuse  # type: ignore


ANYTHING: list[Any] = [None, True, -1, 1.5, float("nan"), 10**30, "", "a\0b", "\udcff", "x" * 10**6]
ANYTHING += [b"", b"\0" * 99, [], [[]], [None], {}, {"a": 1}, {1, 2}, (), (1, 2, 3), object(), dict]
ANYTHING += [iter("ab"), lambda: 0, np.zeros((3, 3)), np.zeros(0, np.uint8), np.array([None]), 1j]
ANYTHING += [memoryview(b"abcdef")[::2], [b"x", "y", 3], ["\udcff"], Hostile(), [Hostile()]]
ANYTHING += [HostileText("x"), [HostileText("x")], Image.new("RGB", (0, 0)), ImportError, ...]


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcfromtimestamp")
def test_anything_at_all_gets_an_answer(folder, embedder, capfd):
    calls = {
        "files": embedder.embed_files,
        "bytes": embedder.embed_bytes,
        "text": embedder.embed_text,
        "buffer": lambda given: embedder.embed_rgb(given, 1, 1),
        "height": lambda given: embedder.embed_rgb(b"abc", given, 1),
        "width": lambda given: embedder.embed_rgb(b"abc", 1, given),
        "image": lambda given: embedder.classify(given, ["a", "b"]),
        "labels": lambda given: embedder.classify(PNG, given),
        "templates": lambda given: embedder.classify(PNG, ["a", "b"], given),
        "multi": lambda given: embedder.classify(PNG, ["a", "b"], "plain", given),
        "model": lambda given: Embedder(given).prepare(),
        "dtype": lambda given: Embedder(folder / "vision", dtype=given).prepare(),
        "limit": lambda given: Embedder(folder / "vision", memory_limit_mb=given).prepare(),
        "offline": lambda given: Embedder("no-such-model", offline=given).prepare(),
    }
    refused = 0
    for name, call in calls.items():
        for given in ANYTHING:
            answer = call(given)
            assert set(answer) == FIELDS, name
            assert answer["ok"] is not bool(answer["error"]) and "\n" not in answer["error"]
            refused += not answer["ok"]
    assert refused > 400
    assert rows(embedder.embed_bytes(PNG)).shape == (1, 32)  # and all goes on
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "given",
    [
        (bytes(14399), 60, 80),
        (bytes(14401), 60, 80),
        (bytes(14400), 80, 61),
        (bytes(14400), -60, -80),
        (b"", 0, 80),
        (bytes(14400), 60.0, 80),
        (bytes(14400), "60", 80),
        (bytes(14400), None, 80),
        (np.zeros(3600, np.float32), 60, 80),
        (np.zeros(14400, np.int8), 60, 80),
        (np.zeros((60, 80, 3), bool), 60, 80),
        ("x" * 14400, 60, 80),
    ],
    ids=lambda given: f"{type(given[0]).__name__} {given[1:]}",
)
def test_a_buffer_that_is_not_height_x_width_x_3_bytes_is_refused(embedder, given):
    check_refused(embedder.embed_rgb(*given), "usage")


def test_every_kind_of_buffer_is_read_as_it_lies(embedder):
    photo = small.photo(0)
    expected = rows(embedder.embed_rgb(photo.tobytes(), 60, 80))
    fixed = photo.copy()
    fixed.flags.writeable = False
    spread = np.zeros((60, 80, 6), np.uint8)
    spread[..., ::2] = photo
    array = (ctypes.c_uint8 * photo.nbytes).from_buffer_copy(photo.tobytes())
    kinds = [bytearray(photo.tobytes()), photo.data, fixed, spread[..., ::2], array]
    kinds += [np.asfortranarray(photo), np.ascontiguousarray(photo[::-1])[::-1]]
    for buffer in kinds:
        same(rows(embedder.embed_rgb(buffer, np.int64(60), 80)), expected)


@pytest.mark.parametrize(
    "words",
    [
        ([],),
        (["cat"],),
        (["cat", "Cat "],),
        (["cat", " "],),
        (["cat", "x" * 3000],),
        (["cat", "dog"], []),
        (["cat", "dog"], ["a photo"]),
        (["cat", "dog"], ["{} and {}"]),
        (["cat", "dog"], ["{0.__class__}"]),
        (["cat", "dog"], "no such file"),
    ],
    ids=lambda words: repr(words)[:30],
)
def test_labels_and_templates_that_do_not_serve_are_refused(embedder, words):
    check_refused(embedder.classify(PNG, *words), "usage")


@pytest.mark.parametrize("kind", ["none", "folder", "pointer", "not json", "no text tower"])
def test_a_model_that_cannot_be_had_is_said_in_each_call(folder, tmp_path, kind):
    model: Any = tmp_path / "model"
    if kind != "none":
        model.mkdir()
    if kind == "pointer":
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        (model / "model.safetensors").write_text(pointer)
    if kind == "not json":
        (model / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"not json")
    if kind == "no text tower":
        check_refused(Embedder(folder / "vision").embed_text("a cat"), "usage")
        check_refused(Embedder(folder / "vision").classify(PNG, ["a", "b"]), "usage")
        return
    embedder = Embedder(model)
    for answer in (embedder.prepare(), embedder.embed_bytes(PNG), embedder.embed_text("a cat")):
        check_refused(answer, "model")


def test_what_is_warned_of_elsewhere_stands_in_the_notes(folder, tmp_path, capfd):
    untrained = small.save(tmp_path / "model", trained=False)
    embedder = Embedder(untrained)
    assert "random" in embedder.prepare()["notes"][0]
    dark = small.photo(0)[..., 0].astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert "nearly black" in embedder.embed_files(tmp_path / "dark.png")["notes"][0]
    words = Embedder(folder / "lit")
    assert "cut to that length" in words.embed_text("a cat " * 99)["notes"][0]
    assert "cut to that length" in words.classify(PNG, ["cat " * 99, "dog"])["notes"][0]
    assert capfd.readouterr() == ("", "")


def started(work) -> tuple[threading.Thread, list]:
    """A thread at work, and the list that its answer goes into."""
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    return thread, answers


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_call_is_cancelled_within_its_list_and_the_next_is_not(embedder):
    embedder.prepare()
    running, answers = started(lambda: embedder.embed_bytes([PNG] * 20_000))
    wait_until(lambda: embedder.progress()["done"] > 0)
    progress = embedder.progress()
    assert progress["running"] and 0 < progress["done"] < progress["total"] == 20_000
    embedder.cancel()
    running.join()
    check_refused(answers[0], "cancelled")
    assert embedder.progress() == {"running": False, "done": 0, "total": 0}
    embedder.cancel()  # of nothing
    assert embedder.embed_bytes(PNG)["ok"]


def test_a_call_that_waits_is_cancelled_before_it_starts(embedder):
    embedder.prepare()
    running, first = started(lambda: embedder.embed_bytes([PNG] * 20_000))
    wait_until(lambda: embedder.progress()["done"] > 0)
    waiting, second = started(lambda: embedder.embed_text(["a cat"]))
    wait_until(lambda: len(embedder._calls()) == 2)
    embedder.cancel()
    for thread in (running, waiting):
        thread.join()
    check_refused(first[0], "cancelled")
    check_refused(second[0], "cancelled")


def test_release_ends_what_runs_and_a_later_call_loads_again(folder):
    embedder = Embedder(folder / "vision")
    before = rows(embedder.embed_bytes(PNG))
    running, answers = started(lambda: embedder.embed_bytes([PNG] * 20_000))
    wait_until(lambda: embedder.progress()["done"] > 0)
    held = mx.get_active_memory()
    assert embedder.release()["ok"]
    running.join()
    check_refused(answers[0], "cancelled")
    weights = (folder / "vision" / "model.safetensors").stat().st_size
    assert mx.get_active_memory() < held - 0.9 * weights
    assert embedder.release()["ok"]  # of nothing
    same(rows(embedder.embed_bytes(PNG)), before)


def test_each_of_several_threads_gets_its_own_rows_from_one_thread(folder, lit, embedder):
    photos = [small.photo(seed) for seed in range(8)]
    expected = lit.embed(photos)
    calls = [
        started(lambda photo=photo: [embedder.embed_rgb(photo, 60, 80) for _ in range(5)])
        for photo in photos
    ]
    for (thread, answers), vector in zip(calls, expected, strict=True):
        thread.join()
        for answer in answers[0]:
            same(rows(answer)[0], vector)
    owners = [t for t in threading.enumerate() if t.name.startswith("aim_mlx.bridge")]
    assert len(owners) == 1


@pytest.mark.parametrize("too_small", [0.1, 1.0])
def test_a_model_that_cannot_keep_to_the_memory_limit_is_refused(folder, too_small):
    answer = Embedder(folder / "lit", memory_limit_mb=too_small).embed_bytes(PNG)
    check_refused(answer, "memory")
    assert "memory_limit_mb" in answer["error"]


def test_the_memory_limit_is_kept_by_fewer_images_at_a_time(folder, lit):
    photos = [small.photo(seed) for seed in range(40)]
    contents = [(photo.tobytes(), 60, 80) for photo in photos]
    free = Embedder(folder / "lit")
    assert free.prepare()["ok"]
    limit = mx.get_active_memory() / 2**20 + 3.5
    free.release()
    before = mx.get_memory_limit()
    embedder = Embedder(folder / "lit", memory_limit_mb=limit)
    assert embedder.prepare()["ok"]
    mx.reset_peak_memory()
    vectors = rows(embedder.classify(contents, ["a cat", "a dog"]))
    assert mx.get_peak_memory() / 2**20 < limit
    same(vectors, lit.classify(photos, ["a cat", "a dog"]))
    embedder.release()
    assert mx.get_memory_limit() == before


def test_half_precision_is_that_of_the_encoder(folder):
    expected = aim_mlx.load(folder / "vision", dtype="float16").embed([folder / "0.png"])
    same(rows(Embedder(folder / "vision", dtype="float16").embed_files(folder / "0.png")), expected)


def test_no_image_at_all_gives_no_row(embedder):
    assert embedder.embed_files([])["shape"] == [0, 32]
    assert embedder.embed_text([])["shape"] == [0, 32]
    assert JPEG[:2] == b"\xff\xd8" and embedder.embed_bytes(JPEG)["shape"] == [1, 32]
