"""Compares TensorRT plans with the ONNX engine: same windows, same sessions, same tokens.

Plans may build without errors and yet compute wrong values on some GPU. So both decode two windows
with all operations of sessions: a prompt at once, hypotheses that are copied, swapped and dropped,
and single steps. The ONNX engine chooses the tokens. Both are fed these tokens, and their likeliest
next tokens are compared at every position. Tokens count as equal if their scores differ by no more
than rounding in 16 bits. The plans' own choices (``choose``, and ``advance`` in multi-step
decoding) must agree with their scores. No score and no attention of the alignment heads may have a
large error.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import (
    Backend,
    Encoded,
    Logits,
    MultiStepResult,
    MultiStepSession,
    Session,
    TokenMask,
)
from whisper_opt.core.dims import N_SAMPLES
from whisper_opt.core.logits import log_sum_exp, top_row
from whisper_opt.decoding.constraints import SuppressTokens, TimestampRules, TokenConstraint
from whisper_opt.decoding.multistep import GreedyRow, greedy_row, greedy_rows
from whisper_opt.export.graphs.precision import FP16
from whisper_opt.export.verification.synthetic_audio import sample_times, synthetic_voice
from whisper_opt.text.vocabulary import Vocab

__all__ = ["compare_backends"]

N_STEPS = 12
"""Steps after the prompt."""
N_BEST = 5
MAX_ERROR = 0.05
"""Largest error of a score that can be rounding, relative to the largest score."""
_FAN_OUT = (0, 0, 1, 1)
_REORDERS = {4: (1, 0, 3, 2), 8: (2, 0, 0, 3), 10: (3, 1)}
"""Rows that continue after a step: two swap; one is copied and one dropped; two are dropped."""


@dataclasses.dataclass
class _Tally:
    """Counts and errors of the comparison."""

    tokens: int = 0
    differing: int = 0
    choices: int = 0
    error: float = 0.0
    scale: float = 0.0
    attention: float = 0.0

    def add(self, expected: F32, found: F32) -> None:
        """Compare scores [n_seq, n_vocab]."""
        rows = np.arange(len(expected))
        finite = bool(np.isfinite(found).all())
        chosen = np.where(np.isfinite(found), found, -np.inf).argmax(axis=1)
        gap = expected.max(axis=1) - expected[rows, chosen]
        scale = np.abs(expected).max(axis=1)
        self.tokens += len(rows)
        tied = gap <= FP16.logits_tolerance * scale
        self.differing += len(rows) if not finite else int((~tied).sum())
        self.scale = max(self.scale, float(scale.max()))
        if finite:  # a row without finite scores differs already
            self.error = max(self.error, float(np.abs(expected - found).max()))

    def result(self) -> dict[str, Any]:
        """The entry of the build record."""
        # false if an error is not a number
        near = self.error <= MAX_ERROR * self.scale and self.attention <= MAX_ERROR
        bad = self.differing or self.choices or not near
        detail = (
            f"{self.differing} of {self.tokens} tokens differ; scores of up to {self.scale:.3g} by"
            f" at most {self.error:.2g}, attention by {self.attention:.1%}"
        )
        if self.choices:
            detail += f"; {self.choices} tokens were not chosen by their scores"
        return {"status": "differ" if bad else "equal", "detail": detail}


def _windows(n_mels: int) -> F32:
    """Two windows [2, n_mels, 3000] of synthetic audio."""
    time = sample_times(N_SAMPLES)
    windows = []
    for pitch, pace in ((120.0, 3.0), (210.0, 4.5)):
        windows.append(log_mel(synthetic_voice(time, pitch, pace, time % 10 < 7), n_mels).head())
    return np.stack(windows)


def _last(logits: Logits) -> F32:
    scores: F32 = np.asarray(logits.numpy()[:, -1])
    return scores


def _wrong_choices(logits: Logits, scores: F32) -> int:
    """Number of tokens chosen by the backend that are not the best by its own scores."""
    n_seq, n_vocab = scores.shape
    mask = TokenMask(np.zeros((n_seq, n_vocab), np.bool_), np.full(n_seq, n_vocab, np.int64))
    top = logits.top(N_BEST, mask)
    best = np.sort(scores, axis=1)[:, : -N_BEST - 1 : -1]
    chosen = np.take_along_axis(scores, np.clip(top.tokens, 0, n_vocab - 1), axis=1)
    return int((chosen != best).any(axis=1).sum())


def _extend(pair: tuple[Session, Session], tokens: Int, tally: _Tally) -> F32:
    """Feed both the tokens; returns the reference's scores [n_seq, n_vocab]."""
    expected = _last(pair[0].extend(tokens))
    logits = pair[1].extend(tokens)
    found = _last(logits)
    tally.add(expected, found)
    tally.choices += _wrong_choices(logits, found)
    return expected


def _run(session: Session, first: Int, rows: list[GreedyRow]) -> MultiStepResult | None:
    """Multi-step decoding of a session; None if it has none."""
    if not (isinstance(session, MultiStepSession) and session.supports_multistep):
        return None
    state = greedy_rows(rows, [[token] for token in first.tolist()])
    return session.decode_steps(first[:, None], state, N_STEPS)


def _wrong_steps(backend: Backend, encoded: Encoded, prompt: Int, vocab: Vocab) -> int:
    """Number of tokens of multi-step decoding that differ from those of single steps.

    One window has timestamps, the other does not.
    """
    never = SuppressTokens(np.array(sorted(set(vocab.never_sampled())), np.int64))
    begin, eot, n_vocab = vocab.timestamp_begin, vocab.eot, backend.dims.n_vocab
    timed = TimestampRules(begin, eot, vocab.no_timestamps, None)
    rules: list[list[TokenConstraint]] = [[never, timed], [never]]
    begins = [begin, None]
    rows = [greedy_row(rule, start, eot, n_vocab) for rule, start in zip(rules, begins)]
    first = np.array([begin, 1], np.int64)
    sessions = [backend.open(encoded) for _ in range(2)]
    try:
        for session in sessions:
            session.extend(prompt)
        run = _run(sessions[0], first, [row for row in rows if row is not None])
        if run is None:
            return 0
        wrong, sampled = 0, [[token] for token in first.tolist()]
        for chosen, logprobs in zip(run.tokens.tolist(), run.logprobs.tolist()):
            scores = _last(sessions[1].extend(np.array([[row[-1]] for row in sampled])))
            for i, history in enumerate(sampled):
                if history[-1] != eot:
                    mask = np.zeros(n_vocab, np.bool_)
                    for rule in rules[i]:
                        rule(history, mask)
                    allowed = np.where(mask, np.float32(-np.inf), scores[i])
                    wrong += _is_wrong(allowed, begins[i] or n_vocab, chosen[i], logprobs[i])
                history.append(chosen[i])
        return wrong
    finally:
        for session in sessions:
            session.close()


def _is_wrong(scores: F32, begin: int, token: int, logprob: float) -> bool:
    """Whether a token is worse than the best of scores [n_vocab] by more than rounding."""
    within = FP16.logits_tolerance * float(np.abs(scores[np.isfinite(scores)]).max(initial=1.0))
    (best,), (expected,) = top_row(scores.copy(), begin, 1)
    if token == best:
        return not abs(logprob - expected) <= within
    if (token < begin) != (best < begin):  # all timestamps against the best text token
        return not abs(log_sum_exp(scores[begin:]) - scores[:begin].max()) <= within
    return not scores[best] - scores[token] <= within


def compare_backends(reference: Backend, candidate: Backend, vocab: Vocab) -> dict[str, Any]:
    """Decode the same windows with both backends and compare every next token.

    Args:
        reference: the ONNX engine's backend.
        candidate: the plans' backend.
        vocab: vocabulary of the engine.

    Returns:
        ``status`` (``equal`` or ``differ``) and ``detail`` (the measured errors), for the build
        record.
    """
    mel, tally = _windows(reference.dims.n_mels), _Tally()
    prompt = np.array([vocab.start(vocab.default_language, "transcribe", timestamps=False)] * 2)
    encoded = (reference.encode(mel), candidate.encode(mel))
    lengths = np.full(len(prompt), prompt.shape[1])
    expected = reference.attention(encoded[0], prompt, lengths).scores
    found = candidate.attention(encoded[1], prompt, lengths).scores
    tally.attention = float(np.abs(found - expected).max() / np.abs(expected).max())
    pair = (reference.open(encoded[0]), candidate.open(encoded[1]))
    try:
        scores = _extend(pair, prompt, tally)
        for session in pair:
            session.gather(np.array(_FAN_OUT))
        # the two hypotheses of a window differ from the first token
        order = np.argsort(-scores, axis=1)
        tokens = order[[0, 0, 1, 1], [0, 1, 0, 1]]
        for step in range(N_STEPS):
            tokens = _extend(pair, tokens[:, None], tally).argmax(axis=1)
            rows = _REORDERS.get(step)
            if rows is not None:
                for session in pair:
                    session.gather(np.array(rows))
                tokens = tokens[list(rows)]
    finally:
        for session in pair:
            session.close()
    tally.choices += _wrong_steps(candidate, encoded[1], prompt, vocab)
    return tally.result()
