"""Searches: which hypotheses live on. Pure host code over the best few tokens of each row."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from whisper_opt.protocol import Top

__all__ = ["Greedy", "Hypothesis", "Search"]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One candidate answer.

    Attributes:
        tokens: sampled ids without the end of text.
        sum_logprob: sum of the log-probabilities of the tokens and, if reached, the end of text.
    """

    tokens: tuple[int, ...]
    sum_logprob: float


class Search(Protocol):
    """The hypotheses of one audio."""

    width: int
    """How many tokens a row the search wants to see."""

    @property
    def rows(self) -> list[list[int]]:
        """Sampled tokens of every live hypothesis, in row order; empty when finished."""

    def step(self, top: Top) -> list[int]:
        """Take one step.

        Args:
            top: best tokens of this audio's rows, [n_rows, width].

        Returns:
            For each hypothesis that lives on, the row it continues; its new token is the last of
            :attr:`rows`.
        """

    def results(self) -> list[Hypothesis]:
        """The candidates, in no particular order; unfinished ones as they stand."""


class Greedy:
    """Always the best token (openai-whisper's GreedyDecoder at temperature 0)."""

    width = 1

    def __init__(self, eot: int) -> None:
        """``eot`` is the id that ends the answer."""
        self._eot = eot
        self._tokens: list[int] = []
        self._sum = 0.0
        self._done = False

    @property
    def rows(self) -> list[list[int]]:
        return [] if self._done else [self._tokens]

    def step(self, top: Top) -> list[int]:
        token = int(top.tokens[0, 0])
        self._sum += float(top.logprobs[0, 0])
        if token == self._eot:
            self._done = True
            return []
        self._tokens.append(token)
        return [0]

    def results(self) -> list[Hypothesis]:
        return [Hypothesis(tuple(self._tokens), self._sum)]
