"""Rules: which tokens may not come next. They see tokens and write bans, never scores.

The rules are those of openai-whisper (whisper/decoding.py: SuppressBlank, SuppressTokens,
ApplyTimestampRules); the one comparison of probabilities among them lives in ``topk``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Protocol

from whisper_opt.core.arrays import Bool, Int
from whisper_opt.core.backend import BannedTokens

__all__ = [
    "NoRepeatNGram",
    "SuppressAtBegin",
    "SuppressTokens",
    "TimestampRules",
    "TokenConstraint",
]


class TokenConstraint(Protocol):
    """Bans next tokens of one row."""

    def __call__(self, sampled: Sequence[int], ban: Bool | BannedTokens) -> None:
        """Set ``ban`` (as a bool [n_vocab]) True for tokens that may not follow ``sampled``.

        ``sampled`` holds the tokens after the prompt, oldest first.
        """


@dataclasses.dataclass(frozen=True)
class SuppressTokens:
    """Never sample these ids."""

    tokens: Int

    def __call__(self, sampled: Sequence[int], ban: Bool | BannedTokens) -> None:
        ban[self.tokens] = True


@dataclasses.dataclass(frozen=True)
class SuppressAtBegin:
    """Do not sample these ids first (blank and end of text: an empty answer)."""

    tokens: Int

    def __call__(self, sampled: Sequence[int], ban: Bool | BannedTokens) -> None:
        if not sampled:
            ban[self.tokens] = True


@dataclasses.dataclass(frozen=True)
class NoRepeatNGram:
    """No run of ``size`` text tokens comes twice in an answer (timestamps between them aside).

    The option is CTranslate2's and transformers' ``no_repeat_ngram_size`` (Paulus et al. 2017,
    arXiv:1705.04304); ``text`` holds the ids that are text.
    """

    size: int
    text: Container[int]

    def __call__(self, sampled: Sequence[int], ban: Bool | BannedTokens) -> None:
        text = [token for token in sampled if token in self.text]
        head = self.size - 1
        latest = text[len(text) - head :]
        for i in range(len(text) - head):
            if text[i : i + head] == latest:
                ban[text[i + head]] = True


@dataclasses.dataclass(frozen=True)
class TimestampRules:
    """Timestamps come first, in pairs, and never go back.

    Attributes:
        begin: id of ``<|0.00|>``, the first timestamp.
        eot: id of the end of text; every id below it is text.
        no_timestamps: id of ``<|notimestamps|>``.
        max_initial: how many steps of 0.02 s after 0.00 the first timestamp may be, or None.
        end: the id after the last timestamp, from which on ids are text again; None: the timestamps
            are the last ids.
    """

    begin: int
    eot: int
    no_timestamps: int
    max_initial: int | None
    end: int | None = None

    def __call__(self, sampled: Sequence[int], ban: Bool | BannedTokens) -> None:
        begin, end = self.begin, self.end
        ban[self.no_timestamps] = True
        if not sampled:
            ban[:begin] = True
            if self.max_initial is not None:
                ban[begin + self.max_initial + 1 :] = True
            elif end is not None:
                ban[end:] = True
            return
        last_is_time = self._is_time(sampled[-1])
        # a timestamp that stands alone at the very beginning counts as the second of a pair
        closes_pair = len(sampled) < 2 or self._is_time(sampled[-2])
        if last_is_time:
            if closes_pair:
                ban[begin:end] = True
            else:
                ban[: self.eot] = True
                if end is not None:
                    ban[end:] = True
        latest = next((token for token in reversed(sampled) if self._is_time(token)), None)
        if latest is not None:
            # the start of a segment may repeat the end of the one before; anything else must grow
            ban[begin : latest if last_is_time and not closes_pair else latest + 1] = True

    def _is_time(self, token: int) -> bool:
        return token >= self.begin and (self.end is None or token < self.end)
