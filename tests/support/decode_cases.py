"""Windows with options of all kinds, on a fake model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from tests.decoding.test_constraints import BEGIN, EOT, N_VOCAB, NO_TIMESTAMPS, constraints_of
from tests.decoding.test_loop import DIMS, lively
from tests.support.decoding import decode
from tests.support.fake_backend import FakeBackend, FakeEncoded
from tests.support.reference_rules import Reference
from whisper_opt.core.arrays import F32
from whisper_opt.decoding import (
    BeamSearchDecoder,
    Decoded,
    DecodeRequest,
    GreedyDecoder,
    SamplingDecoder,
    TokenDecoder,
)
from whisper_opt.decoding.constraints import NoRepeatNGram

__all__ = [
    "BACKEND",
    "FREE",
    "PROBE_TOKEN",
    "Case",
    "alone",
    "random_case",
    "random_cases",
    "scores_of",
]

PROBE_TOKEN = 36
SHARPNESS = (0.3, 1.0, 3.0)
"""Factors of the scores: nearly uniform, as from ``lively``, nearly certain."""


@functools.lru_cache(maxsize=100_000)
def _scores(seed: int, tokens: tuple[int, ...]) -> F32:
    scores: F32 = lively(seed, tokens) * np.float32(SHARPNESS[seed % len(SHARPNESS)])
    scores.flags.writeable = False
    return scores


def scores_of(seed: int, tokens: Sequence[int]) -> F32:
    """Scores of the fake model; their sharpness depends on the seed."""
    return _scores(seed, tuple(tokens))


BACKEND = FakeBackend(DIMS, scores_of)


@dataclasses.dataclass(frozen=True)
class Case:
    """Everything in which windows can differ.

    ``kind`` is greedy, beam or sample; ``size`` the number of beams or of draws.
    """

    audio: int
    prompt: tuple[int, ...]
    no_speech_position: int
    reference: Reference
    max_new_tokens: int
    kind: str = "greedy"
    size: int = 1
    patience: float = 1.0
    length_penalty: float | None = None
    temperature: float = 1.0
    penalty: float = 1.0
    ngram: int = 0
    seed: int = 0

    @property
    def request(self) -> DecodeRequest:
        constraints = constraints_of(self.reference)
        if self.ngram:
            constraints.append(NoRepeatNGram(self.ngram, range(EOT)))
        return DecodeRequest(
            prompt=self.prompt,
            no_speech_position=self.no_speech_position,
            no_speech_token=PROBE_TOKEN,
            constraints=tuple(constraints),
            timestamp_begin=BEGIN if self.reference.timestamps else None,
            max_new_tokens=self.max_new_tokens,
            decoder=self.decoder,
            repetition_penalty=self.penalty,
            text=range(EOT),
        )

    def decoder(self) -> TokenDecoder:
        if self.kind == "beam":
            return BeamSearchDecoder(EOT, self.size, self.patience)
        if self.kind == "sample":
            return SamplingDecoder(
                EOT, self.temperature, self.size, np.random.default_rng(self.seed)
            )
        return GreedyDecoder(EOT)


def random_case(rng: np.random.Generator, audio: int) -> Case:
    prompt = rng.integers(0, N_VOCAB, int(rng.integers(1, 13)))
    suppressed = rng.choice(BEGIN, int(rng.integers(0, 6)), replace=False)
    room = DIMS.n_text_ctx + 1 - len(prompt)
    return Case(
        audio=audio,
        prompt=tuple(prompt.tolist()),
        no_speech_position=int(rng.integers(len(prompt))),
        reference=Reference(
            EOT,
            NO_TIMESTAMPS,
            BEGIN,
            blank=(7, EOT) if rng.random() < 0.7 else None,
            suppress=tuple(suppressed.tolist()) if rng.random() < 0.7 else None,
            timestamps=bool(rng.random() < 0.6),
            max_initial=int(rng.integers(0, 20)) if rng.random() < 0.5 else None,
        ),
        max_new_tokens=int(rng.integers(1, min(room, 14) + 1)),
        kind=str(rng.choice(["greedy", "beam", "beam", "sample"])),
        size=int(rng.integers(1, 6)),
        patience=float(rng.choice([1.0, 1.0, 2.0, 0.6])),
        length_penalty=float(rng.choice([0.0, 0.6, 1.0])) if rng.random() < 0.5 else None,
        temperature=float(rng.choice([0.2, 1.0, 3.0])),
        penalty=float(rng.choice([0.5, 1.3, 4.0])) if rng.random() < 0.4 else 1.0,
        ngram=int(rng.integers(1, 4)) if rng.random() < 0.4 else 0,
        seed=int(rng.integers(1000)),
    )


def random_cases(n: int, seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = [random_case(rng, int(rng.integers(2**31))) for _ in range(n)]
    # a beam search for zero hypotheses is refused when options are read
    return [
        dataclasses.replace(case, patience=1.0) if round(case.size * case.patience) < 1 else case
        for case in cases
    ]


def alone(case: Case) -> Decoded:
    (found,) = decode(BACKEND, FakeEncoded((case.audio,)), [case.request])
    return found


FREE = Reference(EOT, NO_TIMESTAMPS, BEGIN, None, (EOT,), False, None)
"""Results that end at their limit only."""
