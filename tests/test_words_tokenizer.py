"""The tokenizer against the ids of transformers' CLIP tokenizer, and against files that lie."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_mlx.config import TextConfig
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.words.tokenizer import (
    BOS,
    BYTES,
    EOS,
    LARGEST_FILE,
    SMALLEST_VOCABULARY,
    Tokenizer,
)

DATA = Path(__file__).parent / "data" / "clip_tokenizer"
CASES = json.loads((DATA / "cases.json").read_text())
CAPTIONS = ["a red circle above a blue square", "two dogs on a beach, it's 12 o'clock"] * 3


def loaded(folder: Path, config: TextConfig | None = None) -> Tokenizer:
    tokenizer = Tokenizer.load(folder, config)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return loaded(DATA)


def text_config(**changes: Any) -> TextConfig:
    return TextConfig(32, 64, 1, 2, **{"vocab_size": 1385, "eos_token_id": 1384, **changes})


def as_json(clip: Tokenizer) -> dict[str, Any]:
    return json.loads(clip.files()["tokenizer.json"])


def write(folder: Path, content: Any) -> Path:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "tokenizer.json").write_bytes(data)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"][:20]))
def test_awkward_texts_get_the_ids_of_the_reference(clip, case):
    assert clip.encode([case["text"]]).ids[0].tolist() == case["ids_truncated_77"]


# What transformers 5.24 gives; a test of parity asks it again.
CAPITALS = {
    "<|ENDOFTEXT|>!": [1383, 27, 347, 517, 740, 69, 660, 91, 285, 256, 1384],
    "a <|EndOfText|>!!": [1383, 320, 27, 347, 517, 740, 69, 660, 91, 285, 0, 256, 1384],
    "<|STARTOFTEXT|>.": [1383, 27, 347, 574, 523, 564, 69, 660, 91, 285, 269, 1384],
    "!<|ENDOFTEXT|>": [1383, 0, 27, 347, 517, 740, 69, 660, 91, 285, 1384],
    "<|endoftext|>!": [1383, 1384, 256, 1384],
}


@pytest.mark.parametrize("text", CAPITALS)
def test_a_special_token_in_capitals_is_text_that_stays_apart_from_marks(clip, text):
    assert clip.encode([text]).ids[0].tolist() == CAPITALS[text]


def test_without_a_limit_the_long_ones_get_them_whole(clip):
    whole = loaded(DATA, text_config(context_length=1000))
    for case in CASES:
        assert whole.encode([case["text"]]).ids[0].tolist() == case["ids"]


def test_all_texts_together_are_padded_with_the_end_token_and_counted(clip):
    encoded = clip.encode([case["text"] for case in CASES])
    assert encoded.ids.shape == (len(CASES), 77) and encoded.ids.dtype == np.int32
    for case, row, length in zip(CASES, encoded.ids, encoded.lengths, strict=True):
        assert row[:length].tolist() == case["ids_truncated_77"]
        assert (row[length:] == clip.eos_token_id).all()
    over = tuple(i for i, case in enumerate(CASES) if len(case["ids"]) > 77)
    assert encoded.cut == over != ()


def test_no_texts_give_no_rows(clip):
    assert clip.encode([]).ids.shape[0] == 0


@pytest.mark.parametrize("texts", ["a cat", [b"a cat"], [3], [None], ["\udcff"]])
def test_what_is_not_a_list_of_texts_is_refused(clip, texts):
    with pytest.raises(UsageError, match="expected a"):
        clip.encode(texts)


def test_a_tokenizer_json_gives_the_same_ids(clip, tmp_path):
    again = loaded(write(tmp_path, as_json(clip)))
    texts = [case["text"] for case in CASES]
    np.testing.assert_array_equal(again.encode(texts).ids, clip.encode(texts).ids)


def test_merges_as_texts_and_the_pattern_of_transformers_4_are_read_too(clip, tmp_path):
    values = as_json(clip)
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    split = values["pre_tokenizer"]["pretokenizers"][0]
    specials, plain = split["pattern"]["Regex"].split("|'s|")
    assert specials == r"<\|startoftext\|>|<\|endoftext\|>"
    split["pattern"]["Regex"] = "'s|" + plain
    del values["model"]["type"]
    again = loaded(write(tmp_path, values))
    assert again.files() == clip.files()


def test_a_folder_without_tokenizer_files_has_none(tmp_path):
    assert Tokenizer.load(tmp_path) is None


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_half_a_pair_of_files_is_refused(name, tmp_path):
    shutil.copy(DATA / name, tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} needs both"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 1384, "eos_token_id": 1383}, {"eos_token_id": 1383}]
)
def test_a_tokenizer_of_another_text_tower_is_refused(changes):
    with pytest.raises(CheckpointError, match="published with"):
        Tokenizer.load(DATA, text_config(**changes))


def test_a_larger_table_of_embeddings_is_no_contradiction():
    assert loaded(DATA, text_config(vocab_size=1408)).vocab_size == 1385


def changed(path: str, value: Any):
    """A change of one field of a tokenizer.json, as a named parameter."""

    def change(values: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            values = values[name]
        values[last] = value

    return pytest.param(change, id=f"{path}={value!s:.20}")


@pytest.mark.parametrize(
    "change",
    [
        changed("model", None),
        changed("model", [[]]),
        changed("model.type", "WordPiece"),
        changed("model.vocab", []),
        changed("model.vocab", {}),
        changed("model.vocab.cat", -1),
        changed("model.vocab.cat", 2**40),
        changed("model.vocab.cat", 1.5),
        changed("model.vocab.cat", True),
        changed("model.vocab.cat", None),
        changed("model.vocab.cat", 7),
        changed("model.merges", {}),
        changed("model.merges", [["a"]]),
        changed("model.merges", ["a b c"]),
        changed("model.merges", [[1, 2]]),
        changed("model.merges", [["zq", "qz"]]),
        changed("model.dropout", 0.5),
        changed("model.end_of_word_suffix", None),
        changed("model.continuing_subword_prefix", "##"),
        changed("model.byte_fallback", True),
        changed("model.ignore_merges", True),
        changed("normalizer", None),
        changed("normalizer", {"type": "Sequence", "normalizers": 3}),
        changed("normalizer.normalizers", [{"type": "NFC"}]),
        changed("pre_tokenizer", {"type": "Whitespace"}),
        changed("pre_tokenizer.pretokenizers", ["Split"]),
        changed("post_processor", None),
        changed("post_processor.sep", [EOS, 5]),
        changed("added_tokens", [{"content": "<pad>", "id": 3}]),
        changed("added_tokens", [{"content": EOS, "id": 3}]),
        changed("added_tokens", ["<pad>"]),
    ],
)
def test_a_tokenizer_json_with_other_rules_or_a_broken_vocabulary_is_refused(
    clip, change, tmp_path
):
    values = as_json(clip)
    change(values)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(write(tmp_path, values))
    assert "tokenizer.json" in str(caught.value) and len(str(caught.value)) < 700


def test_a_pattern_that_could_take_for_ever_is_never_run(clip, tmp_path):
    values = as_json(clip)
    values["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$"
    with pytest.raises(CheckpointError, match="not CLIP's"):
        Tokenizer.load(write(tmp_path, values))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[1]",
        b"\xff\xfe",
        b'{"model": ' + b"[" * 100_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"version https://git-lfs.github.com/spec/v1",
        b" " * (LARGEST_FILE + 1),
    ],
    ids=["empty", "text", "list", "bytes", "open", "deep", "pointer", "large"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_files_that_are_no_json_object_are_refused(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"\xff", b"a b c", b"a", b"zq qz"])
def test_merges_that_are_none_are_refused(content, tmp_path):
    shutil.copy(DATA / "vocab.json", tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n" + content)
    with pytest.raises(CheckpointError, match="merges.txt"):
        Tokenizer.load(tmp_path)


def test_more_merges_than_tokens_are_refused(tmp_path):
    """Four million lines of one merge took 16 seconds and 0.7 GB, and gave a tokenizer."""
    shutil.copy(DATA / "vocab.json", tmp_path)
    (tmp_path / "merges.txt").write_text("a b\n" * 2000)
    with pytest.raises(CheckpointError, match="2000 merges for 1385 tokens"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_that_lacks_a_byte_is_refused_as_it_would_end_texts_early(tmp_path):
    vocabulary = json.loads((DATA / "vocab.json").read_text())
    del vocabulary[BYTES[100]]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.copy(DATA / "merges.txt", tmp_path)
    with pytest.raises(CheckpointError, match="every byte"):
        Tokenizer.load(tmp_path)


def test_a_learned_tokenizer_is_used_again_from_its_file(tmp_path):
    learned = Tokenizer.train(CAPTIONS, 560, context_length=12)
    for name, content in learned.files().items():
        (tmp_path / name).write_bytes(content)
    config = TextConfig(32, 64, 1, 2, learned.vocab_size, 12, learned.eos_token_id)
    again = loaded(tmp_path, config)
    texts = [*CAPTIONS, "Zebra ŽŽ 😀 " * 9, ""]
    np.testing.assert_array_equal(again.encode(texts).ids, learned.encode(texts).ids)
    assert again.encode(texts).ids.shape[1] == 12


def test_learning_makes_tokens_of_frequent_words_and_needs_none_for_the_rest():
    learned = Tokenizer.train(CAPTIONS, 560)
    assert 514 < learned.vocab_size <= 560
    short, unseen = learned.encode(["dogs", "žluťoučký"]).lengths
    assert short == 3  # start, one token, end
    assert unseen > 9  # letter by letter, but never unknown


def test_learning_twice_gives_the_same_tokenizer():
    assert Tokenizer.train(CAPTIONS, 560).files() == Tokenizer.train(CAPTIONS, 560).files()


def test_the_smallest_vocabulary_has_the_bytes_alone():
    learned = Tokenizer.train(CAPTIONS, SMALLEST_VOCABULARY)
    assert learned.vocab_size == 514 == len({*BYTES, BOS, EOS})
    assert learned.encode(["dogs"]).lengths[0] == 6


@pytest.mark.parametrize(
    ("captions", "size"), [(CAPTIONS, 513), (CAPTIONS, "600"), ([], 600), (["", " "], 600)]
)
def test_nothing_can_be_learned_from_no_words_or_in_no_room(captions, size):
    with pytest.raises(UsageError):
        Tokenizer.train(captions, size)


def test_a_tokenizer_of_bytes_fits_any_text_tower_with_room_for_them(clip, tmp_path):
    config = text_config(vocab_size=49_408, eos_token_id=49_407)
    for name, content in Tokenizer.of_bytes(config).files().items():
        (tmp_path / name).write_bytes(content)
    encoded = loaded(tmp_path, config).encode(["a dog"])
    assert encoded.lengths[0] == 6 and encoded.ids[0, 0] == 49_406 and encoded.ids[0, -1] == 49_407
    assert encoded.ids[0, 1] == clip.encode(["a"]).ids[0, 1]
    with pytest.raises(CheckpointError, match="id"):
        Tokenizer.of_bytes(text_config(vocab_size=100, eos_token_id=99))


@pytest.mark.parametrize("text", ["a red circle", "größe 日本語 🙂", "ü" * 3, "it's 12 o'clock!"])
def test_ids_become_their_text_again_with_blanks_between_words_and_marks(clip, text):
    ids = clip.encode([text]).ids[0]
    assert clip.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert clip.decode(clip.encode(["a red circle"]).ids[0]) == "a red circle"
    assert clip.decode([]) == ""
