"""Searches: which hypotheses live on. Pure host code over the best few tokens of each row.

The methods are those of openai-whisper (whisper/decoding.py: GreedyDecoder, BeamSearchDecoder,
MaximumLikelihoodRanker); the length penalty is that of Wu et al. 2016 (arXiv:1609.08144).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from whisper_opt.core.backend import Top

__all__ = [
    "BeamSearchDecoder",
    "GreedyDecoder",
    "Hypothesis",
    "SamplingDecoder",
    "TokenDecoder",
    "rank",
]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One candidate answer.

    Attributes:
        tokens: sampled ids without the end of text.
        sum_logprob: sum of the log-probabilities of the tokens and, if reached, the end of text.
    """

    tokens: tuple[int, ...]
    sum_logprob: float


class TokenDecoder(Protocol):
    """The hypotheses of one audio."""

    width: int
    """How many tokens a row the search wants to see at its next step."""
    temperature: float
    """0 asks for the best tokens; above 0, for ``width`` independent draws at that temperature."""
    generator: np.random.Generator | None
    """Source of the draws; None at temperature 0."""

    @property
    def rows(self) -> list[list[int]]:
        """Sampled tokens of every live hypothesis, in row order; empty when finished."""

    def step(self, top: Top) -> list[int]:
        """Take one step.

        Args:
            top: best or drawn tokens of this audio's rows, [n_rows, width]; the first step sees one
                row, which stands for all.

        Returns:
            For each hypothesis that lives on, the row it continues; its new token is the last of
            :attr:`rows`.
        """

    def results(self) -> list[Hypothesis]:
        """The candidates in the order they were found; unfinished ones as they stand."""


def rank(hypotheses: Sequence[Hypothesis], length_penalty: float | None) -> Hypothesis:
    """The best candidate: highest log-probability over its length (or Google NMT's penalty).

    Ties go to the first. An empty answer, which the reference divides by zero for, has length 1.
    """

    def score(hypothesis: Hypothesis) -> float:
        length = len(hypothesis.tokens)
        if length_penalty is None:
            return hypothesis.sum_logprob / max(length, 1)
        return hypothesis.sum_logprob / float(((5 + length) / 6) ** length_penalty)

    return max(hypotheses, key=score)


class SamplingDecoder:
    """Independent draws; at temperature 0 the best token, always: greedy decoding."""

    def __init__(
        self,
        eot: int,
        temperature: float = 0.0,
        best_of: int = 1,
        generator: np.random.Generator | None = None,
    ) -> None:
        """Start with nothing sampled.

        Args:
            eot: id that ends an answer.
            temperature: divisor of the scores; 0 takes the best token.
            best_of: how many answers to draw.
            generator: source of the draws; needed above temperature 0.
        """
        self.width = best_of
        self.temperature = temperature
        self.generator = generator
        self._eot = eot
        self._tokens: list[list[int]] = [[] for _ in range(best_of)]
        self._sums = [0.0] * best_of
        self._live = [0] if best_of == 1 else list(range(best_of))
        self._begun = False

    @property
    def rows(self) -> list[list[int]]:
        live = self._live if self._begun else self._live[:1]
        return [self._tokens[i] for i in live]

    def step(self, top: Top) -> list[int]:
        """See :meth:`TokenDecoder.step`; the first row's ``best_of`` draws become one answer each."""
        if self._begun:
            parents = list(range(len(self._live)))
            drawn = zip(top.tokens[:, 0].tolist(), top.logprobs[:, 0].tolist())
        else:
            parents = [0] * len(self._live)
            drawn = zip(top.tokens[0].tolist(), top.logprobs[0].tolist())
        self._begun, self.width = True, 1
        live, kept = [], []
        for answer, parent, (token, logprob) in zip(self._live, parents, drawn):
            self._sums[answer] += logprob
            if token != self._eot:
                self._tokens[answer].append(token)
                live.append(answer)
                kept.append(parent)
        self._live = live
        return kept

    def results(self) -> list[Hypothesis]:
        return [Hypothesis(tuple(t), s) for t, s in zip(self._tokens, self._sums)]


class GreedyDecoder(SamplingDecoder):
    """Always the best token (openai-whisper's GreedyDecoder at temperature 0)."""

    def __init__(self, eot: int) -> None:
        """``eot`` is the id that ends the answer."""
        super().__init__(eot)
        self.eot = eot


class BeamSearchDecoder:
    """Beam search with patience (Kasai et al. 2022, arXiv:2204.05424), as the reference has it."""

    temperature = 0.0
    generator: np.random.Generator | None = None

    def __init__(self, eot: int, beam_size: int, patience: float = 1.0) -> None:
        """Start with nothing sampled.

        Args:
            eot: id that ends an answer.
            beam_size: live hypotheses.
            patience: the search ends when ``round(beam_size * patience)`` answers are complete.
        """
        self.width = beam_size + 1  # enough that beam_size remain if one of them is the end
        self._eot = eot
        self._beam_size = beam_size
        self._wanted = max(round(beam_size * patience), 1)
        self._rows: list[list[int]] = [[]]
        # single precision, like the reference: sums that tie there must tie here
        self._sums = [np.float32(0)]
        self._finished: dict[tuple[int, ...], float] = {}

    @property
    def rows(self) -> list[list[int]]:
        return [] if len(self._finished) >= self._wanted else self._rows

    def step(self, top: Top) -> list[int]:
        candidates = [
            (total + logprob, row, int(token))
            for row, total in enumerate(self._sums)
            for token, logprob in zip(top.tokens[row], top.logprobs[row])
        ]
        candidates.sort(key=lambda candidate: -candidate[0])  # stable: ties keep row order
        rows, sums, parents = [], [], []
        ended: list[tuple[tuple[int, ...], float]] = []
        for total, parent, token in candidates:
            if token == self._eot:
                ended.append((tuple(self._rows[parent]), float(total)))
                continue
            rows.append([*self._rows[parent], token])
            sums.append(total)
            parents.append(parent)
            if len(rows) == self._beam_size:
                break
        for tokens, score in ended:
            if len(self._finished) < self._wanted:
                self._finished[tokens] = score
        self._rows, self._sums = rows, sums
        return parents if self.rows else []

    def results(self) -> list[Hypothesis]:
        found = dict(self._finished)
        for i in sorted(range(len(self._rows)), key=lambda i: -self._sums[i]):
            if len(found) >= self._beam_size:
                break
            found[tuple(self._rows[i])] = float(self._sums[i])
        return [Hypothesis(tokens, total) for tokens, total in found.items()]
