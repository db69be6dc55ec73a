"""CLIP's byte-pair encoding: texts to token ids.

- Unicode form C, white space as one blank, lower case; words, single digits and marks apart
- each word's bytes, of which the last carries the end of the word, merged in the learned order
- a start token, the text, an end token; what is over the context length is cut before the end token
Source: Radford et al., arXiv 2103.00020, section 2.4; the rules as the published tokenizer.json
state them.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from aim_mlx.config import TextConfig
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.weights.strict_json import show
from aim_mlx.words.tokenizer_files import (
    BOS,
    BYTES,
    EOS,
    SPACES,
    SUFFIX,
    WORDS,
    Vocabulary,
    read_vocabulary,
)

CONTEXT_LENGTH = 77  # of CLIP and of the published LiT model
SMALLEST_VOCABULARY = len(BYTES) + 2


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
    """Texts to the ids of one vocabulary; made by `load` or `train`."""

    def __init__(self, vocabulary: Vocabulary, context_length: int = CONTEXT_LENGTH):
        self.context_length = context_length
        self.vocab_size = max(vocabulary.ids.values()) + 1
        self.bos_token_id, self.eos_token_id = vocabulary.ids[BOS], vocabulary.ids[EOS]
        self._tokenizer = _built(vocabulary)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], config: TextConfig | None = None
    ) -> "Tokenizer | None":
        """The tokenizer of a model's folder, None where it has none.

        From tokenizer.json, else from vocab.json and merges.txt. `config` gives the context length
        and must fit. Raises CheckpointError for files that are not sound, not a CLIP tokenizer's,
        or not that text tower's.
        """
        vocabulary = read_vocabulary(Path(folder))
        if vocabulary is None:
            return None
        if config is None:
            return cls(vocabulary)
        tokenizer = cls(vocabulary, config.context_length)
        tokenizer.check(config, vocabulary.source)
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
        learner = _rules(tokenizers.Tokenizer(BPE(end_of_word_suffix=SUFFIX)))
        # The trainer counts the bytes it meets; the vocabulary below always has all of them.
        merges = vocab_size - SMALLEST_VOCABULARY
        trainer = BpeTrainer(
            vocab_size=len(BYTES) + merges, end_of_word_suffix=SUFFIX, show_progress=False
        )
        learner.train_from_iterator(map(_text, captions), trainer)
        learned = json.loads(learner.to_str())["model"]
        if not learned["vocab"]:
            raise UsageError("the captions hold no words to learn a vocabulary from")
        pairs = [(left, right) for left, right in learned["merges"]][:merges]
        tokens = (*BYTES, *dict.fromkeys(left + right for left, right in pairs), BOS, EOS)
        ids = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
        return cls(Vocabulary(ids, pairs, "the learned vocabulary"), context_length)

    @classmethod
    def of_bytes(cls, config: TextConfig) -> "Tokenizer":
        """A tokenizer without merges, a token a byte, that fits a text tower: to try things out.

        Raises CheckpointError for a text tower whose vocabulary has no room for all bytes.
        """
        ids = {token: index for index, token in enumerate(BYTES)}
        ids |= {BOS: config.eos_token_id - 1, EOS: config.eos_token_id}
        return cls(Vocabulary(ids, [], "the vocabulary of bytes"), config.context_length)

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


def _built(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The tokenizer of a vocabulary, which was checked: the library's own errors are not kind."""
    try:
        model = BPE(dict(vocabulary.ids), vocabulary.merges, end_of_word_suffix=SUFFIX)
        tokenizer = _rules(tokenizers.Tokenizer(model))
    except Exception as error:
        raise CheckpointError(f"{vocabulary.source} is no vocabulary ({error!s:.200})") from error
    bos, eos = (vocabulary.ids[token] for token in (BOS, EOS))
    tokenizer.post_processor = processors.RobertaProcessing(
        (EOS, eos), (BOS, bos), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (BOS, EOS)])
    return tokenizer


def _rules(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Sets how a text is normalised and split."""
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(SPACES), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
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
