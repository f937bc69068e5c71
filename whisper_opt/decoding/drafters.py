"""Where proposed tokens come from: a text known before, or repetitions of what was decoded.

A drafter follows the tokens that the model has chosen through its text. Where the two differ, it
looks for the last chosen tokens further on (n-gram look-up, as in prompt lookup decoding, Saxena
2023), so that a wrong word costs a step or two and not the rest of the text.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Container, Sequence

from whisper_opt.decoding.rows import Drafter

__all__ = ["FirstOf", "KnownText", "LookupDrafter", "TextDrafter"]

_NEAR = 8
"""Tokens after a difference among which a single token is looked up."""
_WIDE = 64
"""Tokens around it among which two tokens are looked up; three are looked up everywhere."""
_FIRST_BLOCK = 32
"""Proposed tokens of the first call; accepted blocks double."""
_LEAST_BLOCK = 6
"""Proposed tokens after a difference."""
_MOST_BLOCK = 128


class KnownText:
    """Tokens of a text, perhaps with timestamps, and where each short sequence of them is."""

    def __init__(self, tokens: Sequence[int], times: Container[int] = ()) -> None:
        """Index a text.

        Args:
            tokens: ids of text and of timestamps.
            times: ids that are timestamps.
        """
        self.tokens = tuple(tokens)
        self.times = times
        self.places = [i for i, token in enumerate(tokens) if token not in times]
        """Index in ``tokens`` of every token of text."""
        self._text = [self.tokens[i] for i in self.places]
        self._found: dict[tuple[int, ...], list[int]] = {}
        for size in (2, 3):
            for i in range(len(self._text) - size + 1):
                self._found.setdefault(tuple(self._text[i : i + size]), []).append(i + size)

    def find(self, latest: Sequence[int], near: int) -> int | None:
        """The place after the last tokens of ``latest``; None if it is not known.

        Args:
            latest: tokens of text, at most the last three of which are looked up.
            near: place where the text was expected to go on; the nearest one after it is best.
        """
        expected = bisect.bisect_left(self.places, near)
        for size in (3, 2):
            ends = self._found.get(tuple(latest[-size:]), []) if len(latest) >= size else []
            after = bisect.bisect_left(ends, expected)
            for end in (*ends[after : after + 1], *ends[max(after - 1, 0) : after]):
                if size == 3 or abs(end - expected) <= _WIDE:
                    return self.places[end - 1] + 1
        if latest and latest[-1] in self._text[expected : expected + _NEAR]:
            return self.places[self._text.index(latest[-1], expected)] + 1
        return None


class TextDrafter:
    """Proposes how a known text goes on.

    Attributes:
        place: index of the next token of the text; None while the text differs from the tokens.
        near: where it probably is, if ``place`` is None.
    """

    def __init__(self, text: KnownText, place: int | None = 0, *, near: int = 0) -> None:
        """Begin at a place of a text.

        Args:
            text: the text.
            place: index of its first token that is expected; None if it is not known.
            near: where it may be, if it is not known.
        """
        self.place = place
        self._known = text
        self.near = near if place is None else place
        self._latest: list[int] = []
        self._n_seen = 0
        self._block = _FIRST_BLOCK
        self._proposed: tuple[int, tuple[int, ...]] = (0, ())  # sampled before, tokens

    def propose(self, sampled: Sequence[int], most: int) -> tuple[int, ...]:
        """See :class:`whisper_opt.decoding.rows.Drafter`."""
        self._adapt(sampled)
        for token in sampled[self._n_seen :]:
            self.follow(token)
        self._n_seen = len(sampled)
        found = self._ahead(sampled)[: min(most, self._block)]
        self._proposed = (len(sampled), found)
        return found

    def _adapt(self, sampled: Sequence[int]) -> None:
        """Propose more after tokens that were right, and fewer after others.

        Proposals that were not verified, or only in part, are neither.
        """
        before, proposed = self._proposed
        new = sampled[before : before + len(proposed)]
        pairs = zip(new, proposed)
        right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if right < len(new):
            self._block = max(_LEAST_BLOCK, min(right, self._block // 2))
        elif proposed and right == len(proposed):
            self._block = min(2 * self._block, _MOST_BLOCK)

    def follow(self, token: int) -> None:
        """Move on by a token that was chosen."""
        known, place = self._known, self.place
        is_time = token in known.times
        if not is_time:
            self._latest = [*self._latest[-2:], token]
        if place is None:
            if not is_time:
                self.place = known.find(self._latest, self.near)
            return
        if is_time:
            here = known.tokens[place : place + 1]
            self.place = place + 1 if here and here[0] in known.times else place
            return
        while place < len(known.tokens) and known.tokens[place] in known.times:
            place += 1
        if known.tokens[place : place + 1] == (token,):
            self.place = place + 1
        else:
            self.near = place
            self.place = known.find(self._latest, place)

    def _ahead(self, sampled: Sequence[int]) -> tuple[int, ...]:
        """The tokens that come next."""
        if self.place is None:
            return ()
        known = self._known
        rest = known.tokens[self.place : self.place + _MOST_BLOCK]
        closing = sampled[-1] in known.times and len(sampled) > 1 and sampled[-2] not in known.times
        if closing and rest:  # the next segment begins
            start = rest[0] if rest[0] in known.times else sampled[-1]
            rest = rest[1:] if rest[0] in known.times else rest
            return (max(start, sampled[-1]), *rest)
        return rest


class LookupDrafter:
    """Proposes what followed the last tokens when they occurred before: refrains, repeated names.

    This is prompt lookup decoding (Saxena 2023; ``prompt_lookup_num_tokens`` of transformers).
    """

    def __init__(self, prompt: Sequence[int], text: Container[int], most: int) -> None:
        """Look up in the prompt and in the result.

        Args:
            prompt: ids before the result.
            text: ids that are text; others are left out.
            most: maximum number of proposed tokens.
        """
        self._text = text
        self._most = most
        self._seen = [token for token in prompt if token in text]
        self._n_seen = 0
        self._latest: dict[tuple[int, ...], tuple[int, int]] = {}
        for i in range(len(self._seen)):
            self._note(i + 1)

    def _note(self, end: int) -> None:
        """Note where the last two and three tokens before ``end`` have occurred."""
        for size in (2, 3):
            if end >= size:
                key = tuple(self._seen[end - size : end])
                before = self._latest.get(key, (0, 0))
                self._latest[key] = (end, before[0])

    def propose(self, sampled: Sequence[int], most: int) -> tuple[int, ...]:
        """See :class:`whisper_opt.decoding.rows.Drafter`."""
        for token in sampled[self._n_seen :]:
            if token in self._text:
                self._seen.append(token)
                self._note(len(self._seen))
        self._n_seen = len(sampled)
        if sampled[-1] not in self._text:
            return ()
        for size in (3, 2):
            key = tuple(self._seen[-size:])
            before = self._latest.get(key, (0, 0))[1] if len(key) == size else 0
            if before:
                return tuple(self._seen[before : before + min(most, self._most)])
        return ()


class FirstOf:
    """Asks several drafters in turn, until one proposes something.

    Those that were not asked follow the tokens when they are asked again.
    """

    def __init__(self, *drafters: Drafter) -> None:
        """``drafters``: the preferred one first."""
        self._drafters = drafters

    def propose(self, sampled: Sequence[int], most: int) -> Sequence[int]:
        """See :class:`whisper_opt.decoding.rows.Drafter`."""
        for drafter in self._drafters:
            if found := drafter.propose(sampled, most):
                return found
        return ()
