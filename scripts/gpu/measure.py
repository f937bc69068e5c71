"""Latency of a backend: encoder, prefill and steps, through the decode loop's interfaces."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Backend, GreedyRows, MultiStepSession, Session, TokenMask
from whisper_opt.core.dims import N_FRAMES, ModelDims

__all__ = ["CASES", "Case", "figures", "latency", "time_runs"]

PROMPT, PAST = 4, 100
"""Tokens of the timed prefill; tokens in the cache when steps are timed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Windows decoded together, and hypotheses per window."""

    batch: int
    beam: int

    @property
    def name(self) -> str:
        """``b16 beam5``."""
        return f"b{self.batch} beam{self.beam}"


CASES = tuple(Case(batch, beam) for beam in (1, 5) for batch in (1, 4, 16, 64))


def figures(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and 95th percentile (nearest rank) in milliseconds, and number of runs."""
    ordered = sorted(seconds)
    rank = max(int(np.ceil(0.95 * len(ordered))) - 1, 0)
    return {
        "p50_ms": round(1e3 * statistics.median(ordered), 4),
        "p95_ms": round(1e3 * ordered[rank], 4),
        "n": len(ordered),
    }


def time_runs(
    run: Callable[[], object], at_most: float, rounds: int, least: int = 3
) -> list[float]:
    """Seconds of each ``run``: ``rounds`` of them, or fewer that fill ``at_most`` seconds.

    Args:
        run: what is timed; returns when it is done on the device.
        at_most: seconds after which no further run begins.
        rounds: number of runs.
        least: number of runs that are timed however long they take.
    """
    seconds: list[float] = []
    end = time.perf_counter() + at_most
    while len(seconds) < rounds and (len(seconds) < least or time.perf_counter() < end):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds


def _timed(
    run: Callable[[], object], wait: Callable[[], object], at_most: float, rounds: int
) -> dict[str, Any]:
    """Time ``run`` after a warm-up, each time until ``wait`` says that the device is done."""

    def whole() -> None:
        run()
        wait()

    whole()
    return figures(time_runs(whole, at_most, rounds))


def mels(dims: ModelDims, n_audio: int, n_frames: int = N_FRAMES, seed: int = 0) -> F32:
    """A random log-mel, float32 [n_audio, n_mels, n_frames]."""
    drawn = np.random.default_rng(seed).standard_normal(
        (n_audio, dims.n_mels, n_frames), np.float32
    )
    scaled: F32 = drawn * np.float32(0.5)
    return scaled


def plain_mask(dims: ModelDims, n_seq: int) -> TokenMask:
    """All tokens are allowed, without timestamp rules."""
    return TokenMask(
        ban=np.zeros((n_seq, dims.n_vocab), np.bool_),
        timestamp_begin=np.full(n_seq, dims.n_vocab, np.int64),
    )


def latency(backend: Backend, case: Case, at_most: float, rounds: int = 50) -> dict[str, Any]:
    """Results of one case; each is measured for about ``at_most`` seconds.

    A step takes tokens and returns the best tokens to the host; with several hypotheses the rows of
    every window are reordered. ``run`` is a step of multi-step decoding, if the session has it.
    """
    dims = backend.dims
    mel = mels(dims, case.batch)
    wait = getattr(backend, "synchronize", lambda: None)
    found = {"encode": _timed(lambda: backend.encode(mel), wait, at_most, min(rounds, 20))}
    encoded = backend.encode(mel)
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, dims.n_vocab, (case.batch, PAST), np.int64)

    def prefill() -> None:
        session = backend.open(encoded)
        try:
            session.extend(prompt[:, :PROMPT]).top(1, plain_mask(dims, case.batch))
        finally:
            session.close()

    found["prefill"] = _timed(prefill, wait, at_most, min(rounds, 20))
    session = backend.open(encoded)
    try:
        session.extend(prompt)
        if case.beam > 1:
            session.gather(np.repeat(np.arange(case.batch), case.beam))
        found["step"] = _steps(session, dims, case, at_most, rounds)
    finally:
        session.close()
    session = backend.open(encoded)
    try:
        session.extend(prompt)
        if case.beam == 1 and isinstance(session, MultiStepSession) and session.supports_multistep:
            found["run"] = _runs(session, dims, case.batch, at_most)
    finally:
        session.close()
    return found


RUN = 16
"""Steps per call of multi-step decoding."""


def _runs(session: MultiStepSession, dims: ModelDims, n_seq: int, at_most: float) -> dict[str, Any]:
    """Seconds per step of multi-step calls of ``RUN`` steps without an end."""
    every = np.full(n_seq, dims.n_vocab, np.int64)
    ban = np.zeros((n_seq, dims.n_vocab), np.bool_)
    rows = GreedyRows(ban, every, np.full(n_seq, -1, np.int64), every, every - 1)
    tokens = np.zeros((n_seq, 1), np.int64)
    seconds: list[float] = []
    end = time.perf_counter() + at_most
    for run in range((dims.n_text_ctx - PAST) // RUN):
        begin = time.perf_counter()
        tokens = session.decode_steps(tokens, rows, RUN).tokens[-1:].T
        now = time.perf_counter()
        if run:  # the first one captures graphs
            seconds.append((now - begin) / RUN)
        if now > end and len(seconds) >= 3:
            break
    return figures(seconds)


def _steps(
    session: Session, dims: ModelDims, case: Case, at_most: float, rounds: int
) -> dict[str, Any]:
    rows, best = case.batch * case.beam, 1 if case.beam == 1 else case.beam + 1
    mask, orders = plain_mask(dims, rows), _orders(case, 8)
    tokens = np.zeros((rows, 1), np.int64)
    seconds: list[float] = []
    end = time.perf_counter() + at_most
    warm_up = 3  # the first steps grow buffers and capture graphs
    for step in range(min(rounds, dims.n_text_ctx - PAST - warm_up) + warm_up):
        begin = time.perf_counter()
        top = session.extend(tokens).top(best, mask)
        if case.beam > 1:
            session.gather(orders[step % len(orders)])
        now = time.perf_counter()
        tokens = top.tokens[:, :1]
        if step >= warm_up:
            seconds.append(now - begin)
        if now > end and len(seconds) >= 3:
            break
    return figures(seconds)


def _orders(case: Case, n: int) -> list[Int]:
    """Row orders of a beam search: rows move within their window."""
    rng = np.random.default_rng(2)
    first = np.arange(case.batch)[:, None] * case.beam
    shape = (case.batch, case.beam)
    return [(first + rng.integers(0, case.beam, shape)).ravel() for _ in range(n)]
