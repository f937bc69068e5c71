"""Windows while they are decoded: what is asked, what is allowed next, what was found."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Sequence
from typing import Callable, Protocol

import numpy as np

from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import Encoded, TokenMask, Top
from whisper_opt.decoding.constraints import TokenConstraint, banned_tokens
from whisper_opt.decoding.multistep import GreedyRow, greedy_row
from whisper_opt.decoding.search import GreedyDecoder, Hypothesis, TokenDecoder

__all__ = ["DecodeRequest", "Decoded", "Drafter", "Row", "pad", "token_mask"]


class Drafter(Protocol):
    """Proposes tokens of one window, which the model verifies."""

    def propose(self, sampled: Sequence[int], most: int) -> Sequence[int]:
        """Tokens that probably follow ``sampled``; none if nothing is known.

        Args:
            sampled: the tokens after the prompt so far, at least one. Later calls get the same
                tokens and more.
            most: maximum number of tokens.
        """


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """How to decode one window.

    Attributes:
        prompt: ids fed before the first sampled token.
        no_speech_position: index in ``prompt`` of the start-of-transcript token, after which the
            no-speech probability is read.
        no_speech_token: id of the no-speech token.
        constraints: which tokens are banned.
        timestamp_begin: id of ``<|0.00|>`` under the timestamp rules, else None.
        max_new_tokens: maximum number of sampled tokens, including the end of text.
        decoder: makes a new token decoder.
        repetition_penalty: divides positive scores of text tokens already sampled, and multiplies
            negative ones (Keskar et al. 2019, CTRL, arXiv:1909.05858); 1 has no effect.
        text: ids that are text.
        timestamp_end: id after the last timestamp; None if the timestamps are the last ids.
        drafter: makes what proposes tokens of this window; only greedy decoding uses it.
    """

    prompt: tuple[int, ...]
    no_speech_position: int
    no_speech_token: int
    constraints: tuple[TokenConstraint, ...]
    timestamp_begin: int | None
    max_new_tokens: int
    decoder: Callable[[], TokenDecoder]
    repetition_penalty: float = 1.0
    text: Container[int] = ()
    timestamp_end: int | None = None
    drafter: Callable[[], Drafter] | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Result of one window: candidates, and the probability of ``no_speech_token`` (0 to 1)."""

    hypotheses: list[Hypothesis]
    no_speech_prob: float


class Row:
    """One window while it is being decoded."""

    def __init__(self, number: int, request: DecodeRequest, n_vocab: int) -> None:
        """Nothing is sampled yet; ``number``: the key of its result."""
        self.number = number
        self.request = request
        self.no_speech_prob = 0.0
        self.decoder = request.decoder()
        self.live = 1
        """Hypotheses in the session."""
        self.left = request.max_new_tokens
        """Tokens that may still be sampled."""
        self.begin = n_vocab if request.timestamp_begin is None else request.timestamp_begin
        self.audio: Encoded | None = None
        """Its encoded audio, if that is needed to verify proposals."""
        self._n_vocab = n_vocab
        self._drafter: Drafter | None = None
        if request.drafter is not None and isinstance(self.decoder, GreedyDecoder):
            self._drafter = request.drafter()

    @functools.cached_property
    def greedy(self) -> GreedyRow | None:
        """State for multi-step decoding; None if this row needs the host at every step."""
        request, decoder = self.request, self.decoder
        if not isinstance(decoder, GreedyDecoder) or request.repetition_penalty != 1:
            return None
        return greedy_row(request.constraints, request.timestamp_begin, decoder.eot, self._n_vocab)

    @property
    def needs_scores(self) -> bool:
        """Whether it samples or has a repetition penalty, which need the scores of all tokens."""
        return self.decoder.generator is not None or self.request.repetition_penalty != 1

    @property
    def n_sampled(self) -> int:
        """Tokens sampled so far."""
        return self.request.max_new_tokens - self.left

    @property
    def has_drafter(self) -> bool:
        """Whether something may propose its next tokens."""
        return self._drafter is not None

    def propose(self, n_text_ctx: int) -> tuple[int, ...]:
        """Tokens to verify after the last sampled one, which the session does not hold yet."""
        decoder = self.decoder
        if self._drafter is None or not isinstance(decoder, GreedyDecoder):
            return ()
        room = n_text_ctx - len(self.request.prompt) - self.n_sampled
        most = min(self.left - 1, room)  # the model adds a token of its own
        found = tuple(self._drafter.propose(decoder.rows[0], most))[:most] if most > 0 else ()
        return found[: found.index(decoder.eot)] if decoder.eot in found else found

    def step(self, top: Top) -> list[int]:
        """Sample a token; see :meth:`whisper_opt.decoding.search.TokenDecoder.step`."""
        parents = self.decoder.step(top)
        self.left -= 1
        if self.left <= 0:
            parents = []
        self.live = len(parents)
        return parents

    def decoded(self) -> Decoded:
        """The result."""
        return Decoded(self.decoder.results(), self.no_speech_prob)


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Int, Int]:
    """Tokens int64 [n, longest], right-padded, and the length of each sequence, int64 [n]."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.zeros((len(sequences), int(lengths.max())), np.int64)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    return tokens, lengths


def token_mask(live: Sequence[tuple[Row, Sequence[int]]], n_vocab: int) -> TokenMask:
    """What hypotheses may sample next; ``live``: the row of each, and its sampled tokens."""
    banned = [banned_tokens(row.request.constraints, sampled) for row, sampled in live]
    begins = np.array([row.begin for row, _ in live], np.int64)
    end = live[0][0].request.timestamp_end if live else None  # the same for all rows of a model
    penalties = np.array([row.request.repetition_penalty for row, _ in live], np.float32)
    if (penalties == 1).all():
        return TokenMask(banned, begins, n_vocab=n_vocab, timestamp_end=end)
    seen = np.zeros((len(live), n_vocab), np.bool_)
    for repeated, (row, sampled) in zip(seen, live):
        repeated[[token for token in sampled if token in row.request.text]] = True
    return TokenMask(banned, begins, seen, penalties, n_vocab=n_vocab, timestamp_end=end)
