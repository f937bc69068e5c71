"""The decode loop: one session, many rows, each with a prompt, rules and a search of its own.

Nothing here assumes that rows are alike. Prompts are right-padded; a row whose search has finished
leaves the session; the others never notice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable

import numpy as np

from whisper_opt.arrays import F32, Int
from whisper_opt.decode.rules import Rule
from whisper_opt.decode.search import Hypothesis, Search
from whisper_opt.protocol import Backend, Encoded, Logits, Session, TokenMask, Top
from whisper_opt.topk import log_softmax, sample

__all__ = ["Decoded", "Task", "decode", "next_token_logprobs"]


@dataclasses.dataclass(frozen=True)
class Task:
    """What to decode from one audio.

    Attributes:
        prompt: ids fed before the first sampled token.
        probe: index in ``prompt`` whose next-token probabilities are wanted (the start of the
            transcript, where the no-speech probability is read).
        probe_token: id whose probability is wanted there.
        rules: bans, applied in order.
        timestamp_begin: id of ``<|0.00|>`` under the timestamp rules, else None.
        max_new_tokens: sampled tokens at most, the end of text included.
        search: makes a fresh search.
    """

    prompt: tuple[int, ...]
    probe: int
    probe_token: int
    rules: tuple[Rule, ...]
    timestamp_begin: int | None
    max_new_tokens: int
    search: Callable[[], Search]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What one audio gave: its candidates and the probability of ``probe_token`` (0 to 1)."""

    hypotheses: list[Hypothesis]
    probe_prob: float


class _Row:
    """One audio while it is being decoded."""

    def __init__(self, task: Task, n_vocab: int) -> None:
        self.task = task
        self.search = task.search()
        self.live = 1  # hypotheses in the session
        self.left = task.max_new_tokens
        self.begin = n_vocab if task.timestamp_begin is None else task.timestamp_begin

    def step(self, top: Top) -> list[int]:
        parents = self.search.step(top)
        self.left -= 1
        if self.left <= 0:
            parents = []
        self.live = len(parents)
        return parents


def _pad(sequences: Sequence[Sequence[int]]) -> tuple[Int, Int]:
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.zeros((len(sequences), int(lengths.max())), np.int64)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    return tokens, lengths


def _mask(rows: Sequence[_Row], n_vocab: int) -> TokenMask:
    live = [(row, sampled) for row in rows for sampled in row.search.rows]
    ban = np.zeros((len(live), n_vocab), np.bool_)
    for banned, (row, sampled) in zip(ban, live):
        for rule in row.task.rules:
            rule(sampled, banned)
    return TokenMask(ban, np.array([row.begin for row, _ in live], np.int64))


def _choose(logits: Logits, rows: Sequence[_Row], mask: TokenMask) -> Top:
    """The tokens that the searches asked for: the best ones, or draws for rows that sample."""
    drawing = [row for row in rows if row.search.generator is not None]
    width = max((row.search.width for row in rows if row not in drawing), default=1)
    top = logits.top(width, mask)
    if not drawing:
        return top
    shape = (len(top.tokens), max(width, *(row.search.width for row in drawing)))
    tokens, logprobs = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)
    found = top.tokens.shape[1]  # fewer than asked for where fewer tokens exist
    tokens[:, :found], logprobs[:, :found] = top.tokens, top.logprobs
    scores = logits.numpy()[:, -1]
    offset = 0
    for row in rows:
        search, end = row.search, offset + row.live
        if search.generator is not None:
            for i in range(offset, end):
                tokens[i, : search.width], logprobs[i, : search.width] = sample(
                    scores[i],
                    mask.ban[i],
                    row.begin,
                    search.width,
                    search.temperature,
                    search.generator,
                )
        offset = end
    return Top(tokens, logprobs)


def _advance(session: Session, rows: list[_Row], top: Top) -> Int:
    """Let every search choose, keep what lives; returns the new tokens [n_seq, 1]."""
    keep: list[int] = []
    tokens: list[int] = []
    offset = 0
    for row in rows:
        end, width = offset + row.live, row.search.width
        parents = row.step(Top(top.tokens[offset:end, :width], top.logprobs[offset:end, :width]))
        keep.extend(offset + parent for parent in parents)
        tokens.extend(sampled[-1] for sampled in row.search.rows[: len(parents)])
        offset = end
    if keep:
        session.gather(np.array(keep, np.int64))
    return np.array(tokens, np.int64)[:, None]


def decode(backend: Backend, audio: Encoded, tasks: Sequence[Task]) -> list[Decoded]:
    """Decode one window an audio.

    Args:
        backend: the model.
        audio: what ``backend.encode`` returned for ``len(tasks)`` windows.
        tasks: one a window; they may differ in everything.

    Returns:
        The candidates of each window, in the order of ``tasks``.

    Raises:
        EngineError: a prompt leaves no room in the model's context.
    """
    n_vocab = backend.dims.n_vocab
    rows = [_Row(task, n_vocab) for task in tasks]
    session = backend.open(audio)
    try:
        tokens, lengths = _pad([task.prompt for task in tasks])
        probes = np.array([[task.probe] for task in tasks], np.int64)
        logits = session.extend(tokens, lengths, probes)
        start = log_softmax(logits.numpy()[:, 0])
        probed = [float(np.exp(scores[task.probe_token])) for scores, task in zip(start, tasks)]
        live = rows
        while True:
            step = _advance(session, live, _choose(logits, live, _mask(live, n_vocab)))
            live = [row for row in live if row.live]
            if not live:
                break
            logits = session.extend(step)
    finally:
        session.close()
    return [Decoded(row.search.results(), prob) for row, prob in zip(rows, probed)]


def next_token_logprobs(backend: Backend, audio: Encoded, prompt: Sequence[int]) -> F32:
    """Log-probabilities after one prompt, float32 [n_audio, n_vocab], without any rule."""
    session = backend.open(audio)
    try:
        logits = session.extend(np.tile(np.array(prompt, np.int64), (len(audio), 1)))
        return log_softmax(logits.numpy()[:, -1])
    finally:
        session.close()
