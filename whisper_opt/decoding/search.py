"""Token decoders: greedy decoding, sampling and beam search over the best tokens of each row.

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
    """One candidate result.

    Attributes:
        tokens: ids without the end of text, those that the result had to begin with included.
        sum_logprob: sum of the log-probabilities of the sampled tokens and, if reached, the end of
            text.
        logprobs: natural log-probability of every sampled token, the end of text left out: those
            of openai-whisper's log-softmax after its filters, at temperature 1.
    """

    tokens: tuple[int, ...]
    sum_logprob: float
    logprobs: tuple[float, ...] = ()


class TokenDecoder(Protocol):
    """The hypotheses of one window."""

    width: int
    """Number of tokens per row needed for the next step."""
    temperature: float
    """0: :meth:`step` gets the best tokens; above 0: ``width`` draws at that temperature."""
    generator: np.random.Generator | None
    """Random generator for the draws; None at temperature 0."""

    @property
    def rows(self) -> list[list[int]]:
        """Sampled tokens of every active hypothesis, in row order; empty when finished."""

    def step(self, top: Top) -> list[int]:
        """Take one step.

        Args:
            top: best or drawn tokens of this window's rows, [n_rows, width]; one row at the first
                step.

        Returns:
            For each active hypothesis, the row that it continues; its new token is the last one of
            its entry in :attr:`rows`.
        """

    def results(self) -> list[Hypothesis]:
        """The candidates in the order in which they were found, unfinished ones included."""


def rank(
    hypotheses: Sequence[Hypothesis], length_penalty: float | None, n_given: int = 0
) -> Hypothesis:
    """The candidate with the highest log-probability per token (or by Google NMT's penalty).

    The first ``n_given`` tokens were not sampled and do not count. Ties go to the first. An empty
    candidate counts as one token (the reference divides by zero).
    """

    def score(hypothesis: Hypothesis) -> float:
        length = len(hypothesis.tokens) - n_given
        if length_penalty is None:
            return hypothesis.sum_logprob / max(length, 1)
        return hypothesis.sum_logprob / float(((5 + length) / 6) ** length_penalty)

    return max(hypotheses, key=score)


class SamplingDecoder:
    """Independent random draws; at temperature 0 always the best token (greedy decoding)."""

    def __init__(
        self,
        eot: int,
        temperature: float = 0.0,
        best_of: int = 1,
        generator: np.random.Generator | None = None,
        begin: Sequence[int] = (),
    ) -> None:
        """Start with nothing sampled.

        Args:
            eot: id of the end of text.
            temperature: divisor of the scores; 0 takes the best token.
            best_of: number of candidates.
            generator: random generator; needed above temperature 0.
            begin: ids that every candidate begins with, fed after the prompt.
        """
        self.width = best_of
        self.temperature = temperature
        self.generator = generator
        self._eot = eot
        self._tokens: list[list[int]] = [list(begin) for _ in range(best_of)]
        self._sums = [0.0] * best_of
        self._logprobs: list[list[float]] = [[] for _ in range(best_of)]
        self._live = [0] if best_of == 1 else list(range(best_of))
        self._begun = False

    @property
    def rows(self) -> list[list[int]]:
        live = self._live if self._begun else self._live[:1]
        return [self._tokens[i] for i in live]

    def step(self, top: Top) -> list[int]:
        """See :meth:`TokenDecoder.step`; each of the first ``best_of`` draws starts a candidate."""
        if self._begun:
            parents = list(range(len(self._live)))
            drawn = zip(top.tokens[:, 0].tolist(), top.logprobs[:, 0].tolist())
        else:
            parents = [0] * len(self._live)
            drawn = zip(top.tokens[0].tolist(), top.logprobs[0].tolist())
        self._begun, self.width = True, 1
        live, kept = [], []
        for candidate, parent, (token, logprob) in zip(self._live, parents, drawn):
            self._sums[candidate] += logprob
            if token != self._eot:
                self._tokens[candidate].append(token)
                self._logprobs[candidate].append(logprob)
                live.append(candidate)
                kept.append(parent)
        self._live = live
        return kept

    def results(self) -> list[Hypothesis]:
        found = zip(self._tokens, self._sums, self._logprobs)
        return [Hypothesis(tuple(tokens), total, tuple(each)) for tokens, total, each in found]


class GreedyDecoder(SamplingDecoder):
    """Always the best token (openai-whisper's GreedyDecoder at temperature 0)."""

    def __init__(self, eot: int, begin: Sequence[int] = ()) -> None:
        """``eot``: id of the end of text; ``begin``: ids that the result begins with."""
        super().__init__(eot, begin=begin)
        self.eot = eot


class BeamSearchDecoder:
    """Beam search with patience (Kasai et al. 2022, arXiv:2204.05424), as in openai-whisper.

    openai-whisper ends the search when enough hypotheses are finished, however bad they are: if the
    others all end one token before the best one, a bad one is the result. With ``optimal`` it goes
    on while an unfinished hypothesis is more probable than all finished ones (Huang et al. 2017,
    "When to Finish? Optimal Beam Search for Neural Text Generation", arXiv:1809.00069).
    """

    temperature = 0.0
    generator: np.random.Generator | None = None

    def __init__(
        self,
        eot: int,
        beam_size: int,
        patience: float = 1.0,
        begin: Sequence[int] = (),
        *,
        optimal: bool = False,
    ) -> None:
        """Start with nothing sampled.

        Args:
            eot: id of the end of text.
            beam_size: number of active hypotheses.
            patience: the search ends after ``round(beam_size * patience)`` finished hypotheses.
            begin: ids that every hypothesis begins with, fed after the prompt.
            optimal: see the class.
        """
        self.width = beam_size + 1  # beam_size tokens remain if one of them is the end of text
        self._eot = eot
        self._beam_size = beam_size
        self._wanted = max(round(beam_size * patience), 1)
        self._optimal = optimal
        self._rows: list[list[int]] = [list(begin)]
        # single precision, so that ties are those of the reference
        self._sums = [np.float32(0)]
        self._logprobs: list[tuple[float, ...]] = [()]
        self._finished: dict[tuple[int, ...], Hypothesis] = {}

    @property
    def rows(self) -> list[list[int]]:
        return [] if self._ended else self._rows

    @property
    def _ended(self) -> bool:
        if len(self._finished) < self._wanted:
            return False
        best = max(each.sum_logprob for each in self._finished.values())
        return not self._optimal or best >= float(max(self._sums))

    def step(self, top: Top) -> list[int]:
        candidates = [
            (total + logprob, row, int(token), logprob)
            for row, total in enumerate(self._sums)
            for token, logprob in zip(top.tokens[row], top.logprobs[row])
        ]
        candidates.sort(key=lambda candidate: -candidate[0])  # stable: ties keep row order
        rows, sums, parents, logprobs = [], [], [], []
        ended: list[Hypothesis] = []
        for total, parent, token, logprob in candidates:
            if token == self._eot:
                ended.append(self._hypothesis(parent, float(total)))
                continue
            rows.append([*self._rows[parent], token])
            sums.append(total)
            parents.append(parent)
            logprobs.append((*self._logprobs[parent], float(logprob)))
            if len(rows) == self._beam_size:
                break
        for hypothesis in ended:
            if self._optimal or len(self._finished) < self._wanted:
                self._finished[hypothesis.tokens] = hypothesis
        self._rows, self._sums, self._logprobs = rows, sums, logprobs
        return parents if self.rows else []

    def results(self) -> list[Hypothesis]:
        found = dict(self._finished)
        for i in sorted(range(len(self._rows)), key=lambda i: -self._sums[i]):
            if not self._optimal and len(found) >= self._beam_size:
                break
            hypothesis = self._hypothesis(i, float(self._sums[i]))
            found[hypothesis.tokens] = hypothesis
        return list(found.values())

    def _hypothesis(self, row: int, total: float) -> Hypothesis:
        return Hypothesis(tuple(self._rows[row]), total, self._logprobs[row])
