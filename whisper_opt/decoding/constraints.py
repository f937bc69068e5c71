"""Token constraints: which tokens must not be sampled next.

They follow openai-whisper (whisper/decoding.py: SuppressBlank, SuppressTokens,
ApplyTimestampRules). Constraints get the sampled tokens and return banned ids; they do not use
scores. The timestamp rule that compares probabilities is part of
:func:`whisper_opt.core.logits.top_k`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Sequence
from typing import Protocol

from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import BannedTokens

__all__ = [
    "NoRepeatNGram",
    "SuppressAtBegin",
    "SuppressBeforeWord",
    "SuppressTokens",
    "TimestampRules",
    "TokenConstraint",
    "banned_tokens",
]


class TokenConstraint(Protocol):
    """Bans tokens of one row."""

    def __call__(self, sampled: Sequence[int], banned: BannedTokens) -> None:
        """Add the tokens that must not follow ``sampled`` to ``banned``.

        ``sampled`` are the tokens after the prompt, oldest first.
        """


def banned_tokens(constraints: Iterable[TokenConstraint], sampled: Sequence[int]) -> BannedTokens:
    """Tokens that must not follow ``sampled`` under any of the constraints."""
    banned = BannedTokens()
    for constraint in constraints:
        constraint(sampled, banned)
    return banned


@dataclasses.dataclass(frozen=True)
class SuppressTokens:
    """Never sample these ids."""

    tokens: Int

    def __call__(self, sampled: Sequence[int], banned: BannedTokens) -> None:
        banned.add(self.tokens)


@dataclasses.dataclass(frozen=True)
class SuppressAtBegin:
    """Do not sample these ids first (blank and end of text, which give an empty result)."""

    tokens: Int

    def __call__(self, sampled: Sequence[int], banned: BannedTokens) -> None:
        if not sampled:
            banned.add(self.tokens)


@dataclasses.dataclass(frozen=True)
class SuppressBeforeWord:
    """Do not sample these ids before there is a word after the first ``after`` tokens.

    ``marks``: ids that are no words.
    """

    tokens: Int
    after: int
    marks: Container[int]

    def __call__(self, sampled: Sequence[int], banned: BannedTokens) -> None:
        new = sampled[self.after :]
        if len(sampled) >= self.after and all(token in self.marks for token in new):
            banned.add(self.tokens)


@dataclasses.dataclass(frozen=True)
class NoRepeatNGram:
    """No n-gram of ``size`` text tokens occurs twice in a result; timestamps are ignored.

    This is ``no_repeat_ngram_size`` of CTranslate2 and transformers (Paulus et al. 2017,
    arXiv:1705.04304). ``text`` holds the ids that are text.
    """

    size: int
    text: Container[int]

    def __call__(self, sampled: Sequence[int], banned: BannedTokens) -> None:
        text = [token for token in sampled if token in self.text]
        head = self.size - 1
        latest = text[len(text) - head :]
        for i in range(len(text) - head):
            if text[i : i + head] == latest:
                banned.add(text[i + head])


@dataclasses.dataclass(frozen=True)
class TimestampRules:
    """Timestamps come first, in pairs, and never decrease.

    Attributes:
        begin: id of ``<|0.00|>``, the first timestamp.
        eot: id of the end of text; every id below it is text.
        no_timestamps: id of ``<|notimestamps|>``.
        max_initial: latest first timestamp, in steps of 0.02 s after 0.00; None for no limit.
        end: id after the last timestamp, from which ids are text again; None if the timestamps are
            the last ids.
    """

    begin: int
    eot: int
    no_timestamps: int
    max_initial: int | None
    end: int | None = None

    def __call__(self, sampled: Sequence[int], banned: BannedTokens) -> None:
        begin, end = self.begin, self.end
        banned.add(self.no_timestamps)
        if not sampled:
            banned.add(slice(begin))
            if self.max_initial is not None:
                banned.add(slice(begin + self.max_initial + 1, None))
            elif end is not None:
                banned.add(slice(end, None))
            return
        last_is_time = self._is_time(sampled[-1])
        # a single timestamp at the very beginning counts as the second of a pair
        closes_pair = len(sampled) < 2 or self._is_time(sampled[-2])
        if last_is_time:
            if closes_pair:
                banned.add(slice(begin, end))
            else:
                banned.add(slice(self.eot))
                if end is not None:
                    banned.add(slice(end, None))
        latest = next((token for token in reversed(sampled) if self._is_time(token)), None)
        if latest is not None:
            # the start of a segment may equal the end of the previous one; all others must increase
            first = latest if last_is_time and not closes_pair else latest + 1
            banned.add(slice(begin, first))

    def _is_time(self, token: int) -> bool:
        return token >= self.begin and (self.end is None or token < self.end)
