"""openai-whisper's logit filters, written plainly for single rows of scores.

Written from the behaviour of whisper/decoding.py, and on purpose in another way than
``whisper_opt.decoding.constraints`` and ``whisper_opt.core.logits``: scores are overwritten rather
than banned, token by token, and the probabilities of the comparison are made by a full log-softmax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from whisper_opt.core.arrays import F32

__all__ = ["Reference", "reference_log_softmax"]

NEVER = np.float32(-np.inf)


def reference_log_softmax(scores: F32) -> F32:
    """Log-softmax of one row, float32 throughout."""
    peak = scores.max()
    total = np.exp(scores - peak).sum(dtype=np.float32)
    result: F32 = scores - peak - np.log(total)
    return result


@dataclasses.dataclass(frozen=True)
class Reference:
    """The filters of one row; ``None`` leaves a filter out.

    Attributes:
        eot: id of the end of text.
        no_timestamps: id of ``<|notimestamps|>``.
        timestamp_begin: id of ``<|0.00|>``.
        blank: ids of SuppressBlank.
        suppress: ids of SuppressTokens.
        timestamps: whether ApplyTimestampRules is on.
        max_initial: its index of the last first timestamp.
    """

    eot: int
    no_timestamps: int
    timestamp_begin: int
    blank: tuple[int, ...] | None
    suppress: tuple[int, ...] | None
    timestamps: bool
    max_initial: int | None

    def is_time(self, token: int) -> bool:
        return token >= self.timestamp_begin

    def apply(self, scores: F32, sampled: Sequence[int]) -> F32:
        """Scores after every filter, a new array."""
        scores = scores.copy()
        if self.blank is not None and len(sampled) == 0:
            for token in self.blank:
                scores[token] = NEVER
        for token in self.suppress or ():
            scores[token] = NEVER
        if self.timestamps:
            self._structure(scores, sampled)
            self._weigh(scores)
        return scores

    def _structure(self, scores: F32, sampled: Sequence[int]) -> None:
        scores[self.no_timestamps] = NEVER
        self._first(scores, sampled)
        n_vocab = len(scores)
        one_before = len(sampled) > 0 and self.is_time(sampled[-1])
        two_before = self.is_time(sampled[-2]) if len(sampled) > 1 else True
        if one_before and two_before:
            for token in range(self.timestamp_begin, n_vocab):
                scores[token] = NEVER
        if one_before and not two_before:
            for token in range(self.eot):
                scores[token] = NEVER
        times = [token for token in sampled if self.is_time(token)]
        if times:
            may_repeat = one_before and not two_before
            for token in range(self.timestamp_begin, n_vocab):
                if token < times[-1] or (token == times[-1] and not may_repeat):
                    scores[token] = NEVER

    def _first(self, scores: F32, sampled: Sequence[int]) -> None:
        if len(sampled) > 0:
            return
        latest = len(scores) if self.max_initial is None else self.max_initial
        for token in range(len(scores)):
            if not 0 <= token - self.timestamp_begin <= latest:
                scores[token] = NEVER

    def _weigh(self, scores: F32) -> None:
        logprobs = reference_log_softmax(scores)
        texts, times = logprobs[: self.timestamp_begin], logprobs[self.timestamp_begin :]
        peak = times.max()
        if peak == NEVER:
            return
        together = peak + np.log(np.exp(times - peak).sum(dtype=np.float32))
        if together > texts.max():
            scores[: self.timestamp_begin] = NEVER

    def best(self, scores: F32, sampled: Sequence[int]) -> tuple[int, float]:
        """The greedy choice and its log-probability."""
        filtered = self.apply(scores, sampled)
        token = int(filtered.argmax())
        return token, float(reference_log_softmax(filtered)[token])

    def order(self, scores: F32, sampled: Sequence[int], k: int) -> list[tuple[int, float]]:
        """The k best and their log-probabilities, equal ones by id."""
        filtered = self.apply(scores, sampled)
        logprobs = reference_log_softmax(filtered)
        ranked = sorted(range(len(scores)), key=lambda token: (-filtered[token], token))
        return [(token, float(logprobs[token])) for token in ranked[:k]]
