"""Vocabulary: special ids by name, languages, prompts, text to tokens and back."""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.core.options import AUTO
from whisper_opt.core.text_ids import TextIds, is_special
from whisper_opt.text.languages import LANGUAGES, language_code

if TYPE_CHECKING:
    import tiktoken

__all__ = ["BYTE_CHARACTERS", "Vocab", "language_code"]

_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""OpenAI's name, and the name in older Hugging Face tokenizers."""
_RENAMED = {"iw": "he"}
"""Old language codes in tokenizers -> current ones."""
_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""GPT-2's pre-tokenizer (Radford et al. 2019), the ``ByteLevel`` one of tokenizer.json."""
_MARKS = (*".,?!:;-–—…。，、？！：；", "..", "...", "--")  # noqa: RUF001 - full-width ones are meant
# The symbols whose tokens openai-whisper never samples (whisper/tokenizer.py, non_speech_tokens).
_SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *[
        "<<",
        ">>",
        "<<<",
        ">>>",
        "--",
        "---",
        "-(",
        "-[",
        "('",
        '("',
        "((",
        "))",
        "(((",
        ")))",
        "[[",
        "]]",
        "{{",
        "}}",
        "♪♪",
        "♪♪♪",
    ],
)
_MUSIC = "♩♪♫♬♭♮♯"
_UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages written without spaces between words."""


def _byte_characters() -> tuple[str, ...]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
"""The printable character that stands for each byte value in GPT-2's tokens (openai/gpt-2,
src/encoder.py)."""
_ALPHABET = frozenset(BYTE_CHARACTERS)
_LATIN1 = str.maketrans({char: chr(byte) for byte, char in enumerate(BYTE_CHARACTERS)})


def _merged(merges: Sequence[Any]) -> list[str]:
    """The token of each merge; merges are strings of two tokens or, in newer files, pairs."""
    if merges and isinstance(merges[0], str):
        joined = "\n".join(merges)
        if joined.count(" ") != len(merges):
            raise ValueError("a merge does not have two tokens")
        return joined.replace(" ", "").split("\n")
    return ["".join(pair) for pair in merges]


def _ranks(model: Mapping[str, Any], specials: Set[str]) -> dict[str, int]:
    """Every ordinary token, in GPT-2's alphabet -> its id, which is its merge rank.

    Raises:
        ValueError: the ids do not follow the order of the merges, so they are not ranks.
    """
    # bulk operations: three times as fast as a loop, and part of every load
    vocab: dict[str, int] = dict(model["vocab"])
    for name in specials & vocab.keys():
        del vocab[name]
    ids = list(vocab.values())
    if set(map(type, ids)) != {int}:
        raise TypeError("an id is not an integer")
    order = list(map(vocab.__getitem__, _merged(model["merges"])))
    if order != sorted(order):
        raise ValueError("token ids do not follow the order of the merges")
    if not set("".join(vocab)) <= _ALPHABET:
        raise ValueError("a token has characters outside GPT-2's byte alphabet")
    if len(set(ids)) != len(ids) or not vocab.keys() >= _ALPHABET:
        raise ValueError("an id is used twice, or one of the 256 bytes has no token")
    return vocab


def _bytes(piece: str) -> bytes:
    """The bytes of a token."""
    return piece.translate(_LATIN1).encode("latin-1")


def _time(i: int, dims: ModelDims) -> str:
    """The name of timestamp number ``i``."""
    return f"<|{i * dims.time_precision:.2f}|>"


def _length(text: bytes) -> int:
    """Characters in ``text`` as it is decoded."""
    return len(text.decode("utf-8", errors="replace"))


class Vocab:
    """The token ids of one checkpoint, read from its ``tokenizer.json``, and its text codec.

    Attributes:
        eot, sot, translate, transcribe, sot_lm, sot_prev, no_speech, no_timestamps: special ids.
        times: ids of the timestamps, 0.02 s apart.
        timestamp_begin: id of ``<|0.00|>``, the first of ``times``.
        timestamp_end: the id after the last of ``times``; None if there are no such ids.
        text: ids of text, including tokens added in fine-tuning.
        is_multilingual: whether prompts contain language and task tokens.
        languages: id of every language token by code, in the order of their ids.
    """

    def __init__(
        self, tokenizer_json: str, dims: ModelDims, is_multilingual: bool | None = None
    ) -> None:
        """Parse a ``tokenizer.json``.

        Args:
            tokenizer_json: contents of the file.
            dims: dimensions of the model.
            is_multilingual: from the manifest; default: by the size of the vocabulary, as in
                openai-whisper.

        Raises:
            EngineError: it is not a byte-level BPE tokenizer with Whisper's special tokens, or its
                ids do not fit ``dims.n_vocab``.
        """
        try:
            values = json.loads(tokenizer_json)
            added = {token["content"]: int(token["id"]) for token in values["added_tokens"]}
            words = {t["content"] for t in values["added_tokens"] if not is_special(t)}
            pieces = _ranks(values["model"], added.keys())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"tokenizer.json is not a byte-level BPE tokenizer ({type(error).__name__}:"
                f" {error}); export the engine again from a checkpoint with its own tokenizer.json"
            ) from error
        self.is_multilingual = dims.is_multilingual if is_multilingual is None else is_multilingual
        self._special = {name: i for name, i in added.items() if name not in words}
        self._words = {name: added[name] for name in words}
        self.eot = self._id("<|endoftext|>")
        self.sot = self._id("<|startoftranscript|>")
        self.translate = self._id("<|translate|>")
        self.transcribe = self._id("<|transcribe|>")
        self.sot_lm = self._id("<|startoflm|>")
        self.sot_prev = self._id("<|startofprev|>")
        self.no_speech = self._id(*_NO_SPEECH)
        self.no_timestamps = self._id("<|notimestamps|>")
        self.timestamp_begin = self._special.get(_time(0, dims), self.no_timestamps + 1)
        self.times = range(self.timestamp_begin, self.timestamp_begin + dims.n_audio_ctx + 1)
        self._check_ids(added, dims)
        self._check_ids(pieces, dims)
        beyond = {*self._words.values(), *pieces.values()}
        beyond.difference_update(range(self.eot + 1))
        self.text = TextIds(self.eot, beyond)
        self.timestamp_end = None if dims.n_vocab == self.times.stop else self.times.stop
        found = (
            (i, _RENAMED.get(match.group(1), match.group(1)))
            for token, i in self._special.items()
            if (match := re.fullmatch(r"<\|([a-z]{2,3})\|>", token))
        )
        self.languages = {code: i for i, code in sorted(found) if code in LANGUAGES}
        self._dims = dims
        self._pieces = dict(zip(pieces.values(), pieces))
        self._spelled = {i: token.encode() for token, i in self._words.items()}
        self._names = {i: token.encode() for token, i in self._special.items()}

    def _check_ids(self, ids: Mapping[str, int], dims: ModelDims) -> None:
        """Refuse ids outside the vocabulary, and other tokens at the ids of timestamps."""
        if self.times.stop > dims.n_vocab:
            raise EngineError(
                f"tokenizer.json puts {_time(0, dims)} at {self.timestamp_begin}, which leaves no"
                f" room for {len(self.times)} timestamps in a vocabulary of {dims.n_vocab}: either"
                " it belongs to another model, or the model was made without timestamp tokens,"
                " which are needed"
            )
        # bulk operations: part of every load
        timed = set(self.times).intersection(ids.values())
        if not timed and max(ids.values()) < dims.n_vocab:
            return
        for name, i in ids.items():
            if i >= dims.n_vocab:
                raise EngineError(
                    f"tokenizer.json gives {name!r} the id {i}, but the model's ids end at"
                    f" {dims.n_vocab - 1}; export the engine again with the model's own tokenizer"
                )
            if i in self.times and name != _time(i - self.timestamp_begin, dims):
                raise EngineError(
                    f"tokenizer.json gives {name!r} the id {i}, which is the timestamp"
                    f" {_time(i - self.timestamp_begin, dims)}; add tokens after the"
                    f" {len(self.times)} timestamps (from {self.times.stop}) and train again"
                )

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        # created on first use: it takes longer than the rest of a load, and is seldom needed
        import tiktoken

        times = {_time(i, self._dims): token for i, token in enumerate(self.times)}
        return tiktoken.Encoding(
            "whisper",
            pat_str=_PATTERN,
            mergeable_ranks={_bytes(piece): token for token, piece in self._pieces.items()},
            special_tokens={**times, **self._special, **self._words},
        )

    def _id(self, *names: str) -> int:
        for name in names:
            if name in self._special:
                return self._special[name]
        raise EngineError(f"tokenizer.json has no {names[0]} token, so it is not Whisper's")

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens around it.

        Raises:
            OptionError: ``text`` contains the spelling of a special token such as ``<|en|>``.
        """
        try:
            return self._encoding.encode(text, allowed_special=set(self._words))
        except ValueError as error:
            names = self._encoding.special_tokens_set - self._words.keys()
            found = next(name for name in names if name in text)
            raise OptionError(
                f"text contains the special token {found}; remove it: special tokens cannot be"
                " given as text"
            ) from error

    def decode(self, tokens: Sequence[int], *, specials: bool = False) -> str:
        """Text of ``tokens``; times are left out, invalid UTF-8 becomes U+FFFD.

        With ``specials`` other special tokens appear by name, as in openai-whisper's ``decode``;
        without, they are left out.
        """
        parts = []
        for token in tokens:
            if token in self.text:
                parts.append(self._spelling(token))
            elif specials and token not in self.times:
                parts.append(self._names.get(token, b""))
        return b"".join(parts).decode("utf-8", errors="replace")

    def spelling(self, tokens: Sequence[int]) -> bytes:
        """UTF-8 of the text in ``tokens``; a part of it may begin or end within a character."""
        return b"".join(self._spelling(token) for token in tokens if token in self.text)

    def _spelling(self, token: int) -> bytes:
        """The bytes of a text token."""
        word = self._spelled.get(token)
        return _bytes(self._pieces.get(token, "")) if word is None else word

    def split_words(
        self, tokens: Sequence[int], language: str
    ) -> tuple[list[str], list[list[int]]]:
        """Words of ``tokens`` (ids of text) and the tokens of each; no token is left out.

        The rule is openai-whisper's (whisper/tokenizer.py): a word begins at a space or at ASCII
        punctuation. In languages without spaces every token is a word, or the tokens that share a
        character. Invalid UTF-8 becomes U+FFFD, as in :meth:`decode`.
        """
        words: list[str] = []
        word_tokens: list[list[int]] = []
        for piece in self._characters(tokens):
            text = self.decode(piece)
            if (
                not words
                or language in _UNSPACED
                or text.startswith(" ")
                or text.strip() in string.punctuation  # a substring of it: "()", or empty
            ):
                words.append(text)
                word_tokens.append(piece)
            else:
                words[-1] += text
                word_tokens[-1].extend(piece)
        return words, word_tokens

    def _characters(self, tokens: Sequence[int]) -> list[list[int]]:
        """``tokens`` split into the shortest runs of complete characters."""
        pieces: list[list[int]] = []
        current: list[int] = []
        left = b""
        texts = [self._spelling(token) for token in tokens]
        for i, token in enumerate(tokens):
            current.append(token)
            left += texts[i]
            # A character has at most 4 bytes, so the next 3 bytes show whether one spans the
            # border: splitting it would give more characters.
            right = b"".join(texts[i + 1 : i + 4])[:3]
            if _length(left) + _length(right) == _length(left + right):
                pieces.append(current)
                current, left = [], b""
        return pieces

    def equals(self, other: Vocab) -> bool:
        """Whether every id stands for the same text or special token."""
        special = [
            (vocab.eot, vocab.sot, vocab.no_timestamps, vocab.timestamp_begin, vocab.timestamp_end)
            for vocab in (self, other)
        ]
        return (
            special[0] == special[1]
            and self._pieces == other._pieces
            and self.languages == other.languages
        )

    def encode_sentence(self, text: str, language: str) -> list[int]:
        """Ids of text as a result has it: after a space, except in languages without spaces."""
        text = " ".join(text.split())
        return self.encode(text if language in _UNSPACED else f" {text}") if text else []

    @property
    def default_language(self) -> str:
        """The language of a recording without speech: English."""
        return "en"

    def check_language(self, language: str | None, task: str) -> str | None:
        """The language code for the prompt; None for None or ``auto``, which are to be detected.

        Raises:
            OptionError: Whisper or this model does not support the language, or the model is
                English-only and the language or the task is another.
        """
        if language is not None and language.strip().lower() == AUTO:
            language = None
        code = None if language is None else language_code(language)
        if not self.is_multilingual:
            if code not in (None, "en"):
                raise OptionError(
                    f"language is {language!r}, but this model is English-only; use a"
                    " multilingual model (one whose name does not end in .en)"
                )
            if task != "transcribe":
                raise OptionError(
                    f"task is {task!r}, but this English-only model can only transcribe; use a"
                    " multilingual model"
                )
            return "en"
        if code is not None and code not in self.languages:
            raise OptionError(
                f"language {language!r} ({code}) is not among the {len(self.languages)} languages"
                " of this model"
            )
        return code

    def start(self, language: str, task: str, *, timestamps: bool) -> list[int]:
        """The start-of-transcript sequence: sot, language, task and, optionally, notimestamps."""
        tokens = [self.sot]
        if self.is_multilingual:
            tokens.append(self.languages[language])
            tokens.append(self.transcribe if task == "transcribe" else self.translate)
        if not timestamps:
            tokens.append(self.no_timestamps)
        return tokens

    def never_sampled(self) -> tuple[int, ...]:
        """Special tokens that occur only in prompts."""
        return (
            self.sot,
            self.translate,
            self.transcribe,
            self.sot_lm,
            self.sot_prev,
            self.no_speech,
        )

    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens of symbols that are not spoken, by openai-whisper's rule.

        A symbol is included if it is a single token, with or without a space before it; of musical
        symbols the first token is always included, and so are " -" and " '".
        """
        found = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in (*_SYMBOLS, *_MUSIC):
            for tokens in (self.encode(symbol), self.encode(" " + symbol)):
                if len(tokens) == 1 or symbol in _MUSIC:
                    found.add(tokens[0])
        return tuple(sorted(found))

    @functools.cached_property
    def marks(self) -> frozenset[int]:
        """Tokens of the punctuation between words and sentences."""
        found = (self.encode(space + mark) for mark in _MARKS for space in ("", " "))
        return frozenset(tokens[0] for tokens in found if len(tokens) == 1)

    def blank_tokens(self) -> tuple[int, ...]:
        """A single space and the end of text: the first tokens of an empty result."""
        return (*self.encode(" "), self.eot)
