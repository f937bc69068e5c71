"""``faster_whisper.tokenizer``: text to tokens and back, ids of special tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import whisper_opt
from whisper_opt.compat.timestamps import decode_with_timestamps

__all__ = ["HfTokenizer", "Tokenizer", "get_suppressed_tokens"]

_TASKS = ("transcribe", "translate")
_LANGUAGE_CODES = tuple(whisper_opt.LANGUAGES)
"""Every language, a name of the original that programs use."""
_IDS = (
    *("transcribe", "translate", "sot", "sot_lm", "sot_prev", "eot"),
    *("no_timestamps", "no_speech", "timestamp_begin"),
)
"""Special tokens, under the names that the vocabulary has too."""


class Encoding(NamedTuple):
    """Result of :meth:`HfTokenizer.encode`."""

    ids: list[int]


class HfTokenizer:
    """``WhisperModel.hf_tokenizer``: as much of a ``tokenizers.Tokenizer`` as programs use."""

    def __init__(self, vocab: Any) -> None:
        """``vocab``: that of a loaded model."""
        self.vocab = vocab

    def token_to_id(self, token: str) -> int | None:
        """Id of a special token such as ``<|en|>``, or of text that is one token; else None."""
        name = token[2:-2]
        if token.startswith("<|") and token.endswith("|>"):
            known = {"startoftranscript": "sot", "startoflm": "sot_lm", "startofprev": "sot_prev"}
            known.update({"endoftext": "eot", "notimestamps": "no_timestamps"})
            known.update({"nospeech": "no_speech", "nocaptions": "no_speech"})
            known.update(transcribe="transcribe", translate="translate")
            if name in known:
                token_id: int = getattr(self.vocab, known[name])
                return token_id
            return self._other_id(name)
        ids: list[int] = self.vocab.encode(token)
        return ids[0] if len(ids) == 1 else None

    def _other_id(self, name: str) -> int | None:
        """Id of a language or a timestamp."""
        if name in self.vocab.languages:
            language: int = self.vocab.languages[name]
            return language
        times: range = self.vocab.times
        found = (token for i, token in enumerate(times) if f"{i * 0.02:.2f}" == name)
        return next(found, None)

    def encode(self, sequence: str, add_special_tokens: bool = False) -> Encoding:
        """Ids of text, without special tokens.

        Raises:
            OptionError: ``add_special_tokens`` is on.
        """
        if add_special_tokens:
            raise whisper_opt.OptionError(
                "add_special_tokens is on; expected False: use sot_sequence of a Tokenizer"
            )
        return Encoding(self.vocab.encode(sequence))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; timestamps are left out."""
        text: str = self.vocab.decode(ids, specials=not skip_special_tokens)
        return text


class Tokenizer:
    """Text to tokens and back, for a task and a language."""

    def __init__(
        self,
        tokenizer: HfTokenizer,
        multilingual: bool,
        task: str | None = None,
        language: str | None = None,
    ) -> None:
        """Create a tokenizer.

        Args:
            tokenizer: ``hf_tokenizer`` of a model.
            multilingual: whether the start sequence has a language and a task.
            task: ``transcribe`` or ``translate``, if multilingual.
            language: code of a language, if multilingual.

        Raises:
            OptionError: the task or the language is another.
        """
        if not isinstance(tokenizer, HfTokenizer):
            raise whisper_opt.OptionError(
                f"tokenizer is a {type(tokenizer).__name__}; expected hf_tokenizer of a model"
            )
        self.tokenizer = tokenizer
        self.task: int | None = None
        self.language: int | None = None
        self.language_code = "en"
        if multilingual:
            languages = tokenizer.vocab.languages
            for name, value, known in (
                ("task", task, _TASKS),
                ("language", language, tuple(languages)),
            ):
                if value not in known:
                    raise whisper_opt.OptionError(
                        f"{name} is {value!r}; expected one of {', '.join(known)}"
                    )
            self.task = getattr(tokenizer.vocab, task or "")
            self.language_code = language or "en"
            self.language = languages[self.language_code]

    def __getattr__(self, name: str) -> int:
        """Ids of special tokens, such as ``sot`` and ``timestamp_begin``."""
        if name not in _IDS:
            raise AttributeError(f"a Tokenizer has no {name!r}")
        token: int = getattr(self.tokenizer.vocab, name)
        return token

    @property
    def sot_sequence(self) -> list[int]:
        """Start of transcript, language and task."""
        return [token for token in (self.sot, self.language, self.task) if token is not None]

    @functools.cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Ids of symbols that are not spoken."""
        tokens: tuple[int, ...] = self.tokenizer.vocab.non_speech_tokens()
        return tokens

    def encode(self, text: str) -> list[int]:
        """Ids of text."""
        return self.tokenizer.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return self.tokenizer.decode(tokens)

    def decode_with_timestamps(self, tokens: Sequence[int]) -> str:
        """Text of ids with timestamps such as ``<|1.08|>``."""
        return decode_with_timestamps(self.decode, tokens, self.timestamp_begin)

    def split_to_word_tokens(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Words of ids of text, and the ids of each."""
        return self._split(tokens, self.language_code)

    def split_tokens_on_unicode(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Shortest runs of ids that are complete characters, and their text."""
        return self._split(tokens, "ja")

    def split_tokens_on_spaces(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Words that begin at a space or at punctuation, and the ids of each."""
        return self._split(tokens, "en")

    def _split(self, tokens: Sequence[int], language: str) -> tuple[list[str], list[list[int]]]:
        words: tuple[list[str], list[list[int]]] = self.tokenizer.vocab.split_words(
            tokens, language
        )
        return words


def get_suppressed_tokens(tokenizer: Tokenizer, suppress_tokens: Sequence[int]) -> tuple[int, ...]:
    """All ids that are never sampled: those given, -1 for symbols that are not spoken, specials."""
    listed = {token for token in suppress_tokens if token >= 0}
    if -1 in suppress_tokens:
        listed.update(tokenizer.non_speech_tokens)
    return tuple(sorted(listed.union(tokenizer.tokenizer.vocab.never_sampled())))
