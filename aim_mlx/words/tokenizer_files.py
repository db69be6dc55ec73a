"""The vocabulary and merges of a CLIP tokenizer, read from a model's folder and checked.

CLIP's rules are fixed in aim_mlx.tokenizer; a file gives only the vocabulary. What a tokenizer.json
states beside it must be those rules: another pattern would split texts otherwise, and running an
unknown one could take for ever.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.strict_json import at, parse_object, read_bytes, show

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"  # of what ends a word
SPACES = r"\s+"
_PLAIN_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# A special token in capitals is text like any other, but stays apart from the marks around it.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|" + _PLAIN_WORDS
# Each byte as the character that stands for it, then each once more as the end of a word, in the
# order of CLIP's vocabulary. With all of them there is no unknown text.
_CHARACTERS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256 + 68))]
BYTES = (*_CHARACTERS, *(character + SUFFIX for character in _CHARACTERS))
LARGEST_FILE = 16 * 2**20  # bytes; CLIP's tokenizer.json has two million, indented four

_JSON, _VOCAB, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
# Files of transformers 4 leave out the special tokens, and transformers 5 puts them in on reading.
_WORD_PATTERNS = (WORDS, _PLAIN_WORDS)
_MODEL_RULES: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": ("", None),
    "end_of_word_suffix": (SUFFIX,),
    "byte_fallback": (False, None),
    "ignore_merges": (False, None),
}
_NORMALIZER = [
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": SPACES}, "content": " "},
    {"type": "Lowercase"},
]
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
# What of a rule's fields has a say in the ids.
_FIELDS = {"type", "pattern", "content", "behavior", "invert", "add_prefix_space", "sep", "cls"}


@dataclass(frozen=True)
class Vocabulary:
    """Token -> id, and the merges in the order in which they are tried; `source` names the file."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    source: str

    def __post_init__(self):
        seen = set()
        for token, index in self.ids.items():
            if type(index) is not int or not 0 <= index < 2**24 or index in seen:
                raise CheckpointError(
                    f"{self.source}: token {show(token)} has the id {show(index)}: expected a "
                    "whole number of its own"
                )
            seen.add(index)
        for token in (*BYTES, BOS, EOS):
            if token not in self.ids:
                raise CheckpointError(
                    f"{self.source} lacks the token {show(token)}: expected CLIP's vocabulary, "
                    "which has every byte, with and without the end of a word"
                )
        if len(self.merges) > len(self.ids):
            raise CheckpointError(
                f"{self.source} has {len(self.merges)} merges for {len(self.ids)} tokens: expected "
                "at most one for each token"
            )
        for left, right in self.merges:
            for token in (left, right, left + right):
                if token not in self.ids:
                    raise CheckpointError(
                        f"{self.source}: the merge of {show(left)} and {show(right)} needs the "
                        f"token {show(token)}, which the vocabulary lacks"
                    )


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """From tokenizer.json, else from vocab.json and merges.txt; None where neither is there.

    Raises CheckpointError for files that are not sound or not a CLIP tokenizer's.
    """
    if os.path.lexists(folder / _JSON):
        return _from_json(folder / _JSON)
    pair = [folder / _VOCAB, folder / _MERGES]
    there = [path for path in pair if os.path.lexists(path)]
    if len(there) == 1:
        other = next(path for path in pair if path not in there)
        raise CheckpointError(f"{at(there[0])} is there without {other.name}: both are needed")
    return _from_pair(*pair) if there else None


def _from_json(path: Path) -> Vocabulary:
    values = parse_object(read_bytes(path, LARGEST_FILE), at(path))
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise CheckpointError(f"{at(path)}: expected a model of type BPE, got {show(kind)}")
    ids = _with_added(path, _ids(path, model.get("vocab")), values.get("added_tokens"))
    vocabulary = Vocabulary(ids, _merges(path, model.get("merges")), at(path))
    _check_rules(path, values, model, ids)
    return vocabulary


def _from_pair(vocab: Path, merges: Path) -> Vocabulary:
    ids = _ids(vocab, parse_object(read_bytes(vocab, LARGEST_FILE), at(vocab)))
    try:
        lines = read_bytes(merges, LARGEST_FILE).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{at(merges)} is not UTF-8 ({error.reason})") from None
    if lines[0].startswith("#version"):
        del lines[0]
    return Vocabulary(ids, _merges(merges, [line for line in lines if line.strip()]), at(vocab))


def _ids(path: Path, values: Any) -> dict[str, int]:
    if not isinstance(values, dict):
        raise CheckpointError(f"{at(path)}: expected a vocabulary as an object, got {show(values)}")
    return values


def _merges(path: Path, values: Any) -> list[tuple[str, str]]:
    """Merges as "a b", or as [a, b]; each as two tokens."""
    if not isinstance(values, list):
        raise CheckpointError(f"{at(path)}: expected a list of merges, got {show(values)}")
    merges = []
    for value in values:
        pair = value.strip("\r").split(" ") if isinstance(value, str) else value
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(t, str) for t in pair)
        ):
            raise CheckpointError(f"{at(path)}: expected a merge of two tokens, got {show(value)}")
        merges.append((pair[0], pair[1]))
    return merges


def _with_added(path: Path, ids: dict[str, int], added: Any) -> dict[str, int]:
    """The vocabulary with the added tokens, which can only be the two special ones."""
    all_ids: dict[Any, Any] = dict(ids)
    for entry in added if isinstance(added, list) else []:
        entry = entry if isinstance(entry, dict) else {"content": entry}
        token, index = entry.get("content"), entry.get("id")
        if token not in (BOS, EOS) or all_ids.setdefault(token, index) != index:
            raise CheckpointError(
                f"{at(path)}: unexpected added token {show(token)} with id {show(index)}: "
                f"expected {BOS} and {EOS} as in the vocabulary"
            )
    return all_ids


def _check_rules(
    path: Path, values: dict[str, Any], model: dict[str, Any], ids: dict[str, int]
) -> None:
    """Raises CheckpointError where a tokenizer.json states rules that are not CLIP's."""

    def expect(what: str, value: Any, *accepted: Any) -> None:
        if value not in accepted:
            raise CheckpointError(
                f"{at(path)}: {what} is {show(value)}, which is not CLIP's: "
                f"expected {show(accepted[0])}"
            )

    for field, accepted in _MODEL_RULES.items():
        expect(f"the model's {field}", model.get(field), *accepted)
    expect("the normalizer", _steps(values.get("normalizer"), "normalizers"), _NORMALIZER)
    expect(
        "the pre_tokenizer",
        _steps(values.get("pre_tokenizer"), "pretokenizers"),
        *([_split(pattern), _BYTE_LEVEL] for pattern in _WORD_PATTERNS),
    )
    ends = {"sep": [EOS, ids[EOS]], "cls": [BOS, ids[BOS]], "add_prefix_space": False}
    expect(
        "the post_processor",
        _steps(values.get("post_processor"), "processors"),
        [{"type": "RobertaProcessing", **ends}],
    )


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}


def _steps(rule: Any, parts: str) -> list[Any]:
    """The steps of a rule, whether or not it is a sequence; of each the fields that matter."""
    steps = rule.get(parts) if isinstance(rule, dict) and rule.get("type") == "Sequence" else [rule]
    return [
        {k: v for k, v in step.items() if k in _FIELDS} if isinstance(step, dict) else step
        for step in (steps if isinstance(steps, list) else [steps])
    ]
