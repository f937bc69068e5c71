"""Comparison of a backend with ONNX Runtime on the CPU in fp32."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from gpu.measure import mels
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Backend, GreedyRows, MultiStepSession, TokenMask

__all__ = [
    "DisagreementError",
    "check_runs",
    "compare",
    "compare_speech",
    "program",
    "reference_logits",
]

EXPLAINED = 0.05
"""A different best token counts as rounding if the reference's logits of both tokens differ by less
than this, in standard deviations of the row's logits."""


class DisagreementError(Exception):
    """The results of the backend differ."""


@dataclasses.dataclass
class _Rows:
    """Inputs, the same for every backend: random with a seed, independent of results."""

    n_vocab: int
    seed: int

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def tokens(self, lengths: Int) -> Int:
        shape = (len(lengths), int(lengths.max()))
        return self._rng.integers(0, self.n_vocab, shape, np.int64)

    def lengths(self, n: int, most: int) -> Int:
        return self._rng.integers(1, most + 1, n).astype(np.int64)

    def rows(self, n_old: int, n_new: int) -> Int:
        return np.sort(self._rng.integers(0, n_old, n_new)).astype(np.int64)

    def order(self, n: int) -> Int:
        return self._rng.permutation(n).astype(np.int64)


def program(backend: Backend, seed: int = 0, n_audio: int = 2, steps: int = 40) -> Iterator[F32]:
    """Logits [n_seq, n_vocab] after every step of a session that uses all operations.

    Prompts of different lengths, steps, several rows per window, reordering, removed rows, added
    windows, growth of the cache past 64 and 128 positions.
    """
    draw, encoded = _Rows(backend.dims.n_vocab, seed), backend.encode(mels(backend.dims, n_audio))
    session = backend.open(encoded)
    lengths = draw.lengths(n_audio, 9)
    yield session.extend(draw.tokens(lengths), lengths).numpy()[:, -1].copy()
    n = n_audio * 3
    session.gather(np.repeat(np.arange(n_audio), 3))
    for step in range(steps):
        if step % 4 == 3:
            session.gather(draw.order(n))
        if step == steps // 2:  # remove some rows, and all but one of one window
            kept = np.sort(draw.order(n)[: max(n - 2, 1)])
            session.gather(kept)
            n = len(kept)
        if step == steps // 2 + 2:
            joining = backend.open(encoded.take([1]))
            joining.extend(draw.tokens(np.array([5])))
            session.append(joining)
            n += 1
        yield session.extend(draw.tokens(np.ones(n, np.int64))).numpy()[:, -1].copy()
    for size in (40, 60):
        tokens = draw.tokens(np.full(n, size))
        for column in range(size):
            scores = session.extend(tokens[:, column : column + 1])
        yield scores.numpy()[:, -1].copy()
    session.close()


def check_runs(backend: Backend, seed: int = 0, n_audio: int = 2, steps: int = 40) -> int | None:
    """Compare multi-step decoding with single steps.

    Half of the rows have timestamp rules, as far as single steps can apply them: they may sample
    only text.

    Returns:
        Number of tokens compared; None if sessions have no multi-step decoding.

    Raises:
        DisagreementError: a token or its likelihood differs.
    """
    n_vocab = backend.dims.n_vocab
    draw, encoded = _Rows(n_vocab, seed), backend.encode(mels(backend.dims, n_audio))
    sessions = [backend.open(encoded) for _ in range(2)]
    try:
        one, other = sessions
        if not (isinstance(one, MultiStepSession) and one.supports_multistep):
            return None
        prompt, tokens = draw.tokens(np.full(n_audio, 4)), draw.tokens(np.ones(n_audio, np.int64))
        for session in sessions:
            session.extend(prompt)
        begin = n_vocab - 1500
        tokens %= begin
        ban = np.tile(np.arange(n_vocab) >= begin, (n_audio, 1))
        begins = np.where(np.arange(n_audio) % 2, begin, n_vocab)
        rows = GreedyRows(ban, begins, np.full(n_audio, -1, np.int64), begins, begins - 1)
        found = one.decode_steps(tokens, rows, steps)
        for step, (chosen, logprobs) in enumerate(zip(found.tokens, found.logprobs)):
            top = other.extend(tokens).top(1, TokenMask(ban, begins))
            far = np.abs(logprobs - top.logprobs[:, 0]).max()
            if (chosen != top.tokens[:, 0]).any() or not far < EXPLAINED:
                raise DisagreementError(
                    f"multi-step {step}: {chosen.tolist()} instead of {top.tokens.tolist()},"
                    f" likelihoods off by {far:.2g}"
                )
            tokens = top.tokens
        return found.tokens.size
    finally:
        for session in sessions:
            session.close()


def reference_logits(file: Path, reference: Callable[[], Backend], seed: int = 0) -> list[F32]:
    """Logits of :func:`program` on the reference, read from ``file`` or computed and kept there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{os.getpid()}-{file.name}")  # ends in .npz, which savez demands
        try:
            np.savez(part, *program(reference(), seed))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    with np.load(file) as kept:
        return [kept[name] for name in kept.files]


def compare(backend: Backend, reference: Sequence[F32], seed: int = 0) -> dict[str, Any]:
    """Compare the logits of :func:`program` with those of the reference.

    Raises:
        DisagreementError: a best token differs by more than rounding, or a logit is not finite.
    """
    agree = total = 0
    worst = 0.0
    unexplained = []
    pairs = zip(program(backend, seed), reference)
    for step, (found, expected) in enumerate(pairs):
        if not np.isfinite(found).all():
            raise DisagreementError(f"step {step}: logits that are not finite")
        spread = expected.std(axis=1)
        worst = max(worst, float((np.abs(found - expected).max(axis=1) / spread).max()))
        rows = np.arange(len(found))
        ours, theirs = found.argmax(axis=1), expected.argmax(axis=1)
        gaps = (expected[rows, theirs] - expected[rows, ours]) / spread
        agree += int((ours == theirs).sum())
        total += len(rows)
        unexplained += [f"step {step} row {row}" for row in np.flatnonzero(gaps > EXPLAINED)]
    result = {
        "best_tokens_agree": agree,
        "of": total,
        "unexplained": len(unexplained),
        "largest_error_in_standard_deviations": round(worst, 5),
    }
    if unexplained:
        raise DisagreementError(f"other best tokens at {', '.join(unexplained[:5])}; {result}")
    return {**result, "tokens_of_runs": check_runs(backend, seed)}


def compare_speech(ours: Whisper, reference: Whisper, clips: list[Path]) -> dict[str, Any]:
    """Compare greedy tokens of real recordings.

    Raises:
        DisagreementError: more than one clip in fifty differs.
    """
    differing = []
    for clip in clips:
        found, expected = (
            model.transcribe(str(clip), language="en", temperature=0.0)
            for model in (ours, reference)
        )
        if [s.tokens for s in found] != [s.tokens for s in expected]:
            differing.append(clip.name)
    result = {"clips": len(clips), "equal": len(clips) - len(differing), "differing": differing}
    if 50 * len(differing) > max(len(clips), 50):
        raise DisagreementError(
            f"tokens of {len(differing)} of {len(clips)} clips differ: {differing}"
        )
    return result
