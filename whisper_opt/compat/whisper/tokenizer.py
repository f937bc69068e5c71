"""``whisper.tokenizer``: languages, and the vocabularies of the models that were loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import whisper_opt
from whisper_opt import LANGUAGE_CODES, LANGUAGES
from whisper_opt.compat.timestamps import decode_with_timestamps

__all__ = ["LANGUAGES", "TO_LANGUAGE_CODE", "Tokenizer", "get_tokenizer", "remember"]

TO_LANGUAGE_CODE = dict(LANGUAGE_CODES)

_vocabularies: dict[tuple[bool, int], Any] = {}
"""Of the newest model of each kind: whether it is multilingual, and its number of languages."""


def remember(model: whisper_opt.Whisper) -> None:
    """Keep the vocabulary of a model for :func:`get_tokenizer`."""
    vocab = model.vocab
    _vocabularies[vocab.is_multilingual, len(vocab.languages)] = vocab


class Tokenizer:
    """Text to tokens and back, and the ids of special tokens."""

    def __init__(
        self, vocab: Any, num_languages: int, language: str | None = None, task: str | None = None
    ) -> None:
        """``vocab``: that of a loaded model."""
        self.vocab = vocab
        self.num_languages = num_languages
        self.language = language
        self.task = task
        self.eot: int = vocab.eot
        self.sot: int = vocab.sot
        self.sot_lm: int = vocab.sot_lm
        self.sot_prev: int = vocab.sot_prev
        self.transcribe: int = vocab.transcribe
        self.translate: int = vocab.translate
        self.no_speech: int = vocab.no_speech
        self.no_timestamps: int = vocab.no_timestamps
        self.timestamp_begin: int = vocab.timestamp_begin

    @property
    def encoding(self) -> Any:
        """Refused: tiktoken's object is not part of the public interface."""
        raise AttributeError("no encoding here; use the methods encode and decode")

    @functools.cached_property
    def sot_sequence(self) -> tuple[int, ...]:
        """Start of transcript, language and task."""
        language = () if self.language is None else (self.to_language_token(self.language),)
        task = {None: (), "transcribe": (self.transcribe,)}.get(self.task, (self.translate,))
        return (self.sot, *language, *task)

    @property
    def sot_sequence_including_notimestamps(self) -> tuple[int, ...]:
        """The start sequence without timestamps."""
        return (*self.sot_sequence, self.no_timestamps)

    @property
    def language_token(self) -> int:
        """Id of the language; ValueError if there is none."""
        if self.language is None:
            raise ValueError("this tokenizer has no language; give one to get_tokenizer")
        return self.to_language_token(self.language)

    def to_language_token(self, language: str) -> int:
        """Id of a language code; KeyError if there is none."""
        token: int = self.vocab.languages[language]
        return token

    @property
    def all_language_tokens(self) -> tuple[int, ...]:
        """Ids of all languages."""
        return tuple(self.vocab.languages.values())

    @property
    def all_language_codes(self) -> tuple[str, ...]:
        """Codes of all languages, in the order of their tokens."""
        return tuple(self.vocab.languages)

    @functools.cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Ids of symbols that are not spoken."""
        tokens: tuple[int, ...] = self.vocab.non_speech_tokens()
        return tokens

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Ids of ``text``; tiktoken's further arguments are refused.

        Raises:
            OptionError: ``text`` has the spelling of a special token, or there are arguments.
        """
        _refuse(kwargs)
        tokens: list[int] = self.vocab.encode(text)
        return tokens

    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str:
        """Text of ids; timestamps are left out, other special tokens appear by name."""
        _refuse(kwargs)
        text: str = self.vocab.decode(token_ids, specials=True)
        return text

    def decode_with_timestamps(self, token_ids: Sequence[int], **kwargs: Any) -> str:
        """Text of ids with timestamps such as ``<|1.08|>``."""
        _refuse(kwargs)
        return decode_with_timestamps(self.decode, token_ids, self.timestamp_begin)

    def split_to_word_tokens(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Words of ids of text, and the ids of each."""
        return self._split(tokens, self.language or "en")

    def split_tokens_on_unicode(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Shortest runs of ids that are complete characters, and their text."""
        return self._split(tokens, "ja")

    def split_tokens_on_spaces(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Words that begin at a space or at punctuation, and the ids of each."""
        return self._split(tokens, "en")

    def _split(self, tokens: Sequence[int], language: str) -> tuple[list[str], list[list[int]]]:
        words: tuple[list[str], list[list[int]]] = self.vocab.split_words(tokens, language)
        return words


def _refuse(arguments: dict[str, Any]) -> None:
    for name in arguments:
        raise whisper_opt.OptionError(
            f"{name} is given, but it is an argument of tiktoken, which the tokenizer does not"
            " expose; leave it out"
        )


def get_tokenizer(
    multilingual: bool,
    *,
    num_languages: int = 99,
    language: str | None = None,
    task: str | None = None,
) -> Tokenizer:
    """The tokenizer of models that were loaded in this process.

    The package has no vocabulary of its own: it is part of an engine.

    Args:
        multilingual: ``model.is_multilingual``.
        num_languages: ``model.num_languages``.
        language: code or English name; default: English.
        task: ``transcribe`` (default) or ``translate``.

    Raises:
        OptionError: no such model was loaded, or the language is unknown.
    """
    if language is not None:
        given, language = language, language.lower()
        language = language if language in LANGUAGES else TO_LANGUAGE_CODE.get(language)
        if language is None:
            raise whisper_opt.OptionError(f"Unsupported language: {given}")
    vocab = _vocabularies.get((multilingual, num_languages))
    if vocab is None:
        kind = f"multilingual model with {num_languages} languages"
        raise whisper_opt.OptionError(
            f"no {kind if multilingual else 'English-only model'} was loaded; call load_model"
            " first: a vocabulary is part of its engine"
        )
    if not multilingual:
        return Tokenizer(vocab, num_languages)
    return Tokenizer(vocab, num_languages, language or "en", task or "transcribe")
