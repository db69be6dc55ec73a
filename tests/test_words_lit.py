"""Words in, vectors out: the text side of a LiT with its tokenizer."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import aim_mlx
from aim_mlx.backend import mx
from aim_mlx.errors import CheckpointError, TruncatedTextWarning, UsageError
from aim_mlx.weights.convert import convert_checkpoint
from aim_mlx.words import lit as lit_module
from aim_mlx.words.lit import LiT, text_batches
from tests.small import COSTLY, SMALL_LIT, TOKENIZER, costly, peak_bytes, photo, save_lit

TEXTS = ["a photo of a cat", "two dogs", "", "it's the dog's 2nd ball, isn't it", "x", "two dogs"]
CLOSE = 6e-6  # the same sums over batches of another shape: seen 6e-7
CUT = "1 text of more than 32 tokens cut"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_lit(tmp_path_factory.mktemp("lit") / "model")


@pytest.fixture(scope="module")
def lit(folder) -> LiT:
    return aim_mlx.load_lit(folder)


def one_by_one(lit: LiT, texts: list[str]) -> np.ndarray:
    return np.concatenate([np.array(lit.encode_text([text])) for text in texts])


def test_texts_give_what_their_ids_give(lit):
    ids = lit.tokenize(TEXTS[:3]).ids
    expected = np.array(lit.lit.encode_text(ids))
    np.testing.assert_allclose(np.array(lit.encode_text(TEXTS[:3])), expected, atol=CLOSE)
    np.testing.assert_allclose(np.array(lit.encode_text(ids)), expected, atol=CLOSE)


@pytest.mark.filterwarnings(f"ignore:{CUT}")
@pytest.mark.parametrize("tokens", [1, 20, 1000])
def test_neither_the_batch_nor_its_padding_changes_a_text(lit, tokens, monkeypatch):
    expected = one_by_one(lit, TEXTS)
    monkeypatch.setattr(lit_module, "_CPU_TOKENS", tokens)
    monkeypatch.setattr(lit_module, "_GPU_TOKENS", tokens)
    np.testing.assert_allclose(np.array(lit.encode_text(TEXTS)), expected, atol=CLOSE)
    backwards = np.array(lit.encode_text(TEXTS[::-1]))[::-1]
    np.testing.assert_allclose(backwards, expected, atol=CLOSE)


def test_many_texts_that_begin_alike_get_what_each_gets_alone(lit):
    texts = [f"{a} photo of a {b} {c}" for a in "ax" for b in "bcdefgh" for c in range(12)]
    texts += ["", "a photo of a b 1", "the end"]
    np.testing.assert_allclose(
        np.array(lit.encode_text(texts)), one_by_one(lit, texts), atol=2 * CLOSE
    )


def test_other_texts_get_other_vectors(lit):
    vectors = one_by_one(lit, TEXTS[:3])
    assert np.abs(vectors[0] - vectors[1]).max() > 0.1 < np.abs(vectors[0] - vectors[2]).max()


def test_more_padding_or_anything_behind_the_end_changes_no_bit(lit):
    ids = lit.tokenize(["two dogs"]).ids
    wider = np.concatenate([ids, np.full((1, 5), 7, np.int32)], axis=1)
    assert np.array_equal(np.array(lit.encode_text(ids)), np.array(lit.encode_text(wider)))


def test_long_texts_are_cut_with_a_warning_and_keep_their_end(lit):
    with pytest.warns(TruncatedTextWarning, match=CUT):
        vector = np.array(lit.encode_text(["2 " * 100, "cat"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(vector[0], np.array(lit.encode_text(["2 " * 30]))[0], atol=CLOSE)


def test_no_texts_give_no_rows(lit):
    assert lit.encode_text([]).shape == (0, 32)


def test_logits_take_words(lit):
    pixels = lit.preprocess([photo(0), photo(1)])
    images, texts = np.array(lit.encode_image(pixels)), one_by_one(lit, TEXTS[:3])
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    expected = np.exp(2.5) * images @ texts.T
    np.testing.assert_allclose(np.array(lit.logits(pixels, TEXTS[:3])), expected, atol=1e-4)


@pytest.mark.parametrize(("dtype", "most"), [("float16", 0.009), ("bfloat16", 0.07)])
def test_projected_images_and_texts_are_float32_whatever_the_weights_are(lit, folder, dtype, most):
    half = aim_mlx.load_lit(folder, dtype=dtype)
    pixels = lit.preprocess([photo(0), photo(1)])
    for ask in (lambda m: m.encode_image(pixels), lambda m: m.encode_text(TEXTS[:3])):
        projected, expected = ask(half), np.array(ask(lit))
        assert projected.dtype == mx.float32
        # Of the largest value 0.0009 was seen in float16, 0.0074 with bfloat16's 8 bits.
        assert np.abs(np.array(projected) - expected).max() < most * np.abs(expected).max()


@pytest.mark.parametrize(("images", "shape"), [(2, (1, 32)), (1, (1, 31)), (1, (32,))])
def test_maps_of_other_shapes_are_refused(lit, images, shape):
    pixels = lit.preprocess([photo(0)] * images)
    with pytest.raises(UsageError, match=r"pixels of one image and text vectors \(C, 32\)"):
        lit.similarity_maps(pixels, np.ones(shape))


def test_text_features_are_those_that_the_vector_is_made_of(lit):
    features = lit.text_features(TEXTS[:2], layers=[0, -1])
    assert list(features.layers) == [0, -1] and features.layers[0].shape == (2, 10, 48)
    ends = np.array(features.tokens)[np.arange(2), features.ends]
    projected = ends @ np.array(lit.lit.text_projector.weight).T
    np.testing.assert_allclose(projected, np.array(lit.encode_text(TEXTS[:2])), atol=CLOSE)
    normed = lit.lit.text_encoder.trunk.post_trunk_norm(features.layers[-1])
    np.testing.assert_allclose(np.array(normed), np.array(features.tokens), atol=CLOSE)


def test_no_text_block_after_the_last_one_that_is_read_is_computed(lit, monkeypatch):
    last = lit.lit.text_encoder.trunk.blocks[1].mlp.fc2  # modules are dictionaries
    monkeypatch.setitem(last, "weight", last.weight * costly())
    features = lit.text_features(["cat"], layers=[0])
    assert peak_bytes(features.layers[0]) < COSTLY <= peak_bytes(features.tokens)


def test_a_text_layer_that_does_not_exist_is_refused(lit):
    with pytest.raises(UsageError, match="layer must be"):
        lit.text_features(["cat"], layers=[2])


@pytest.mark.parametrize("texts", ["cat", ["cat", 3], [[1384], [5, 1384]], [["cat"]], [3.0]])
def test_what_is_neither_texts_nor_ids_is_refused(lit, texts):
    with pytest.raises(UsageError, match="expected"):
        lit.encode_text(texts)


def test_a_model_without_tokenizer_files_takes_images_and_ids_and_says_what_words_need(tmp_path):
    lit = aim_mlx.load(save_lit(tmp_path / "bare", tokenizer=False))
    assert isinstance(lit, LiT)
    assert lit.embed([photo(0)]).shape == (1, 32)
    assert lit.encode_text([[5, 1384]]).shape == (1, 32)
    with pytest.raises(CheckpointError, match=r"tokenizer.json, or vocab.json.*bare"):
        lit.encode_text(["cat"])


def test_a_tokenizer_that_does_not_fit_stops_the_loading(tmp_path):
    folder = save_lit(tmp_path / "m", tokenizer=False)
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text())
    vocabulary["<|endoftext|>"] = 1400
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.copy(TOKENIZER / "merges.txt", folder)
    with pytest.raises(CheckpointError, match="vocab.json with merges.txt has ids up to 1400"):
        aim_mlx.load(folder)


def test_the_tokenizer_goes_along_when_a_model_is_converted(folder, lit, tmp_path):
    convert_checkpoint(folder, tmp_path / "half", dtype="float16", compare=False)
    half = aim_mlx.load(tmp_path / "half")
    assert isinstance(half, LiT)
    # float16 has 11 bits of mantissa; the vectors are of size one.
    np.testing.assert_allclose(
        np.array(half.encode_text(TEXTS[:2])), one_by_one(lit, TEXTS[:2]), atol=2e-2
    )


def test_a_similarity_map_is_the_cosine_of_each_patch_by_itself(lit):
    heat = lit.similarity_map(photo(0), "two dogs")
    assert heat.shape == (4, 4) and heat.dtype == np.float32
    tokens = np.array(lit.features(lit.preprocess([photo(0)])).tokens)[0]
    pool, project = lit.lit.image_encoder.head, np.array(lit.lit.image_projector.weight)
    text = np.array(lit.encode_text(["two dogs"]))[0]
    for place, token in enumerate(tokens):
        value = np.array(pool.v.weight) @ token
        patch = project @ (np.array(pool.linear.weight) @ value + np.array(pool.linear.bias))
        cosine = patch @ text / np.linalg.norm(patch) / np.linalg.norm(text)
        assert heat[place // 4, place % 4] == pytest.approx(cosine, abs=1e-5)


def test_patches_by_themselves_average_to_the_image_where_attention_is_even(lit):
    pool = lit.lit.image_encoder.head
    query = pool.cls_token
    tokens = lit.features(lit.preprocess([photo(0)])).tokens
    try:
        pool.cls_token = query * 0
        even = np.array(lit.lit.project_tokens(tokens))
    finally:
        pool.cls_token = query
    np.testing.assert_allclose(np.array(lit.lit.project_each(tokens)).mean(axis=1), even, atol=1e-5)
    assert np.abs(np.array(lit.lit.project_tokens(tokens)) - even).max() > 1e-3


def test_an_image_that_is_not_square_has_its_map_in_height_and_width(tmp_path):
    config = replace(SMALL_LIT, vision=replace(SMALL_LIT.vision, image_size=None))
    native = aim_mlx.load(save_lit(tmp_path / "native", config))
    assert isinstance(native, LiT)
    assert native.similarity_map(photo(0, 140, 280), "a dog").shape == (10, 20)


# Texts in batches


def batches_of(rows: list[list[int]], tokens: int = 1000) -> list[tuple[list[int], int]]:
    """Which rows make a batch, and how many tokens they share, for texts that end with 0."""
    ids = np.zeros((len(rows), max(map(len, rows)) + 1), int)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(row) + 1 for row in rows])
    found = [(part.tolist(), shared) for part, shared in text_batches(ids, lengths, tokens)]
    assert sorted(i for part, _ in found for i in part) == list(range(len(rows)))
    for part, shared in found:
        assert (ids[part, :shared] == ids[part[0], :shared]).all()
        assert shared < lengths[part].min()
    return found


def test_texts_that_begin_alike_run_together_and_share_that(monkeypatch):
    monkeypatch.setattr("aim_mlx.words.lit._SMALLEST_GROUP", 2)
    rows = [[9, 1, 2, 5], [9, 3, 3], [9, 1, 2, 6, 6], [9, 3, 4], [9, 7], [9, 8, 8, 8]]
    assert batches_of(rows) == [([2, 0], 3), ([1, 3], 2), ([5, 4], 1)]


def test_a_few_that_go_on_alike_stay_with_the_others():
    rows = [[9, 1, 2, 5], [9, 3, 3], [9, 1, 2, 6, 6], [9, 3, 4]]
    assert batches_of(rows) == [([2, 0, 1, 3], 1)]


def test_no_text_shares_its_last_token_and_equal_ones_are_kept():
    assert batches_of([[9, 1, 2], [9, 1, 2], [9, 1, 2, 3]]) == [([2, 0, 1], 3)]
    assert batches_of([[9, 1, 2], [9, 1, 2]]) == [([0, 1], 3)]  # of four tokens with the end token
    assert batches_of([[9]]) == [([0], 0)]
    assert list(text_batches(np.zeros((0, 3), int), np.zeros(0, int), 10)) == []


def test_a_batch_of_texts_is_bounded_by_its_tokens_with_padding():
    rows = [[9, *range(i, 2 * i)] for i in range(1, 8)]
    sizes = [1 + max(len(rows[i]) for i in part) - shared for part, shared in batches_of(rows, 12)]
    counts = [len(part) for part, _ in batches_of(rows, 12)]
    assert all(n * size <= 12 or n == 1 for n, size in zip(counts, sizes, strict=True))
    assert len(batches_of(rows, 1)) == len(rows)
