"""CLIP's byte-pair encoding: texts to token ids.

- Unicode form C, white space as one blank, lower case; words, single digits and marks apart
- each word's bytes, of which the last carries the end of the word, merged in the learned order
- a start token, the text, an end token; what is over the context length is cut before the end token
Source: Radford et al., arXiv 2103.00020, section 2.4; the rules as the published tokenizer.json
state them. The rules are fixed here and a file gives the vocabulary alone. What a tokenizer.json
states beside it must be these rules: another pattern would split texts otherwise, and running an
unknown one could take for ever.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from aim_mlx.config import TextConfig
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.weights.strict_json import at, parse_object, read_bytes, show

CONTEXT_LENGTH = 77  # of CLIP and of the published LiT model
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"  # of what ends a word
# Each byte as the character that stands for it, then each once more as the end of a word, in the
# order of CLIP's vocabulary. With all of them there is no unknown text.
_CHARACTERS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256 + 68))]
BYTES = (*_CHARACTERS, *(character + SUFFIX for character in _CHARACTERS))
SMALLEST_VOCABULARY = len(BYTES) + 2
_JSON, _VOCAB, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
LARGEST_FILE = 16 * 2**20  # bytes; CLIP's tokenizer.json has two million, indented four

# Files of transformers 4 leave out the special tokens, and transformers 5 puts them in on reading:
# a special token in capitals is text like any other, but stays apart from the marks around it.
_PLAIN_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|" + _PLAIN_WORDS
_DECODER = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(SUFFIX, " ")])
# What of a tokenizer.json has a say in the ids, beside the vocabulary.
_PARTS = ("normalizer", "pre_tokenizer", "post_processor")
_FIELDS = {"type", "pattern", "content", "behavior", "invert", "add_prefix_space", "sep", "cls"}
_MODEL_FIELDS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
_MODEL_FIELDS += ("ignore_merges",)


@dataclass(frozen=True)
class TokenIds:
    """Texts as ids (B, L) int32, padded with the end token to the longest of them.

    `lengths` (B,) counts each text's tokens, start and end included; `cut` names the rows that
    were over the context length.
    """

    ids: np.ndarray
    lengths: np.ndarray
    cut: tuple[int, ...]


class Tokenizer:
    """Texts to the ids of one vocabulary; made by `load`, `train` or `of_bytes`.

    `ids` are those of all tokens, `merges` pairs of tokens in the order in which they are tried,
    and `source` names both in errors. Raises CheckpointError for a vocabulary that is not sound.
    """

    def __init__(
        self,
        ids: dict[str, int],
        merges: Sequence[Sequence[str]],
        source: str,
        context_length: int = CONTEXT_LENGTH,
    ):
        _check_vocabulary(ids, merges, source)
        self.context_length = context_length
        self.vocab_size = max(ids.values()) + 1
        self.bos_token_id, self.eos_token_id = ids[BOS], ids[EOS]
        try:
            pairs = [(left, right) for left, right in merges]
            model = BPE(ids, pairs, end_of_word_suffix=SUFFIX)
        except Exception as error:
            raise CheckpointError(f"{source} is no vocabulary ({show(str(error))})") from error
        self._tokenizer = _with_rules(model)
        self._tokenizer.post_processor = processors.RobertaProcessing(
            (EOS, ids[EOS]), (BOS, ids[BOS]), trim_offsets=False, add_prefix_space=False
        )
        self._tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (BOS, EOS)])

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], config: TextConfig | None = None
    ) -> "Tokenizer | None":
        """The tokenizer of a model's folder, None where it has none.

        From tokenizer.json, else from vocab.json and merges.txt. `config` gives the context length
        and must fit. Raises CheckpointError for files that are not sound, not a CLIP tokenizer's,
        or not that text tower's.
        """
        whole, *pair = (Path(folder, name) for name in (_JSON, _VOCAB, _MERGES))
        length = CONTEXT_LENGTH if config is None else config.context_length
        if os.path.lexists(whole):
            values, source = parse_object(read_bytes(whole, LARGEST_FILE), at(whole)), at(whole)
            tokenizer = cls(*_vocabulary(values, source), source, length)
            _check_rules(values, json.loads(tokenizer._tokenizer.to_str()), source)
        elif there := [path for path in pair if os.path.lexists(path)]:
            if len(there) == 1:
                raise CheckpointError(f"{at(there[0])} needs both of {_VOCAB} and {_MERGES}")
            source = f"{at(pair[0])} with {_MERGES}"
            tokenizer = cls(*_read_pair(*pair), source, length)
        else:
            return None
        if config is not None:
            tokenizer.check(config, source)
        return tokenizer

    @classmethod
    def train(
        cls, captions: Iterable[str], vocab_size: int, context_length: int = CONTEXT_LENGTH
    ) -> "Tokenizer":
        """A vocabulary of at most `vocab_size` tokens, learned from captions by CLIP's rules.

        The same captions in the same order give the same tokenizer. Raises UsageError for a size
        below 514 (every byte, also as the end of a word, start and end) or captions without words.
        """
        if type(vocab_size) is not int or vocab_size < SMALLEST_VOCABULARY:
            raise UsageError(
                f"vocab_size must be a whole number from {SMALLEST_VOCABULARY}, got {vocab_size!r}"
            )
        learner = _with_rules(BPE(end_of_word_suffix=SUFFIX))
        # The trainer counts the bytes it meets; the vocabulary below always has all of them.
        merges = vocab_size - SMALLEST_VOCABULARY
        trainer = BpeTrainer(
            vocab_size=len(BYTES) + merges, end_of_word_suffix=SUFFIX, show_progress=False
        )
        learner.train_from_iterator(map(_text, captions), trainer)
        learned = json.loads(learner.to_str())["model"]
        if not learned["vocab"]:
            raise UsageError("the captions hold no words to learn a vocabulary from")
        pairs = learned["merges"][:merges]
        tokens = dict.fromkeys((*BYTES, *(left + right for left, right in pairs), BOS, EOS))
        ids = {token: index for index, token in enumerate(tokens)}
        return cls(ids, pairs, "the learned vocabulary", context_length)

    @classmethod
    def of_bytes(cls, config: TextConfig) -> "Tokenizer":
        """A tokenizer without merges, a token a byte, that fits a text tower: to try things out.

        Raises CheckpointError for a text tower whose vocabulary has no room for all bytes.
        """
        ids = {token: index for index, token in enumerate(BYTES)}
        ids |= {BOS: config.eos_token_id - 1, EOS: config.eos_token_id}
        return cls(ids, [], "the vocabulary of bytes", config.context_length)

    def check(self, config: TextConfig, source: str = "the tokenizer") -> None:
        """Raises CheckpointError where the ids are not those of a text tower."""
        if self.vocab_size > config.vocab_size or self.eos_token_id != config.eos_token_id:
            raise CheckpointError(
                f"{source} has ids up to {self.vocab_size - 1} and the end token "
                f"{self.eos_token_id}, the text tower up to {config.vocab_size - 1} and "
                f"{config.eos_token_id}: use the tokenizer that the model was published with"
            )

    def files(self) -> dict[str, bytes]:
        """The tokenizer as the files of a model's folder: name -> content."""
        return {"tokenizer.json": self._tokenizer.to_str().encode()}

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: in lower case, with a blank behind each word and mark."""
        tokens = map(self._tokenizer.id_to_token, ids)
        return _DECODER.decode([t for t in tokens if t not in (None, BOS, EOS)]).strip()

    def encode(self, texts: Sequence[str]) -> TokenIds:
        """Texts -> ids, each with its start and end token.

        Raises UsageError for what is not a list of texts.
        """
        if isinstance(texts, (str, bytes)):
            raise UsageError("expected a list of texts, got a single one: put it in [ ]")
        encoded = self._tokenizer.encode_batch_fast([_text(text) for text in texts])
        rows = [row.ids for row in encoded]
        longest = self.context_length
        cut = tuple(i for i, row in enumerate(rows) if len(row) > longest)
        for i in cut:
            rows[i] = [*rows[i][: longest - 1], self.eos_token_id]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.full((len(rows), max(map(len, rows), default=2)), self.eos_token_id, np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return TokenIds(ids, lengths, cut)


def _with_rules(model: BPE) -> tokenizers.Tokenizer:
    """A tokenizer that normalises and splits texts as CLIP does."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _text(text: object) -> str:
    """A text that can be encoded; raises UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"expected a text, got {type(text).__name__}: {show(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"expected a text in Unicode, got {show(text)}") from None
    return text


def _check_vocabulary(ids: dict[str, Any], merges: Sequence[Any], source: str) -> None:
    """Raises CheckpointError for what the library would take, and fail on or fill memory with."""
    seen = set()
    for token, index in ids.items():
        if type(index) is not int or not 0 <= index < 2**24 or index in seen:
            raise CheckpointError(
                f"{source}: token {show(token)} has the id {show(index)}: expected a whole number "
                "of its own"
            )
        seen.add(index)
    for token in (*BYTES, BOS, EOS):
        if token not in ids:
            raise CheckpointError(
                f"{source} lacks the token {show(token)}: expected CLIP's vocabulary, which has "
                "every byte, with and without the end of a word"
            )
    if len(merges) > len(ids):
        raise CheckpointError(
            f"{source} has {len(merges)} merges for {len(ids)} tokens: expected at most one for "
            "each token"
        )


def _vocabulary(values: dict[str, Any], source: str) -> tuple[dict[str, Any], list[Any]]:
    """The ids and merges of a tokenizer.json."""
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise CheckpointError(f"{source}: expected a model of type BPE, got {show(kind)}")
    ids, added = model.get("vocab"), values.get("added_tokens")
    if not isinstance(ids, dict):
        raise CheckpointError(f"{source}: expected a vocabulary as an object, got {show(ids)}")
    for entry in added if isinstance(added, list) else []:
        entry = entry if isinstance(entry, dict) else {"content": entry}
        token, index = entry.get("content"), entry.get("id")
        if token not in (BOS, EOS) or ids.setdefault(token, index) != index:
            raise CheckpointError(
                f"{source}: unexpected added token {show(token)} with id {show(index)}: "
                f"expected {BOS} and {EOS} as in the vocabulary"
            )
    return ids, _merges(model.get("merges"), source)


def _read_pair(vocab: Path, merges: Path) -> tuple[dict[str, Any], list[Any]]:
    """The ids and merges of vocab.json and merges.txt."""
    ids = parse_object(read_bytes(vocab, LARGEST_FILE), at(vocab))
    try:
        lines = read_bytes(merges, LARGEST_FILE).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{at(merges)} is not UTF-8 ({error.reason})") from None
    if lines[0].startswith("#version"):
        del lines[0]
    return ids, _merges([line for line in lines if line.strip()], at(merges))


def _merges(values: Any, source: str) -> list[Any]:
    """Merges given as "a b" or as [a, b], each as a list of two."""
    if not isinstance(values, list):
        raise CheckpointError(f"{source}: expected a list of merges, got {show(values)}")
    merges = [value.split() if isinstance(value, str) else value for value in values]
    for merge in merges:
        if not isinstance(merge, list) or len(merge) != 2:
            raise CheckpointError(f"{source}: expected a merge of two tokens, got {show(merge)}")
    return merges


def _check_rules(theirs: dict[str, Any], ours: dict[str, Any], source: str) -> None:
    """Raises CheckpointError where a tokenizer.json states rules that are not CLIP's."""
    stated = _rules(theirs)
    for what, expected in _rules(ours).items():
        if stated[what] != expected:
            raise CheckpointError(
                f"{source}: the {what} is {show(stated[what])}, which is not CLIP's: "
                f"expected {show(expected)}"
            )


def _rules(values: dict[str, Any]) -> dict[str, Any]:
    """What of a tokenizer.json decides about ids beside the vocabulary, in one spelling."""
    rules = {f"model's {field}": values["model"].get(field) or None for field in _MODEL_FIELDS}
    return rules | {part: _steps(values.get(part)) for part in _PARTS}


def _steps(rule: Any) -> list[Any]:
    """The steps of a rule, whether or not it is a sequence; of each the fields that matter."""
    steps = [rule]
    if isinstance(rule, dict) and rule.get("type") == "Sequence":
        steps = next((value for value in rule.values() if isinstance(value, list)), [rule])
    steps = [
        {k: v for k, v in step.items() if k in _FIELDS} if isinstance(step, dict) else step
        for step in steps
    ]
    for step in steps:
        if isinstance(step, dict) and step.get("pattern") == {"Regex": _PLAIN_WORDS}:
            step["pattern"] = {"Regex": _WORDS}
    return steps
