"""The decode loop: one session, many rows, each with a prompt, rules and a search of its own.

Nothing here assumes that rows are alike. Prompts are right-padded; a window whose search has
finished leaves the batch and another may take its place (continuous batching: Yu et al. 2022,
"Orca"); the others never notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Container, Iterator, Sequence
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import (
    Backend,
    BannedTokens,
    Encoded,
    Logits,
    MultiStepSession,
    Session,
    TokenMask,
    Top,
)
from whisper_opt.core.errors import WhisperOptError
from whisper_opt.core.logits import log_softmax, penalized, sample, top_k
from whisper_opt.decoding.constraints import TokenConstraint
from whisper_opt.decoding.multistep import GreedyRow, greedy_row, greedy_rows
from whisper_opt.decoding.search import GreedyDecoder, Hypothesis, TokenDecoder

__all__ = ["Batch", "DecodeRequest", "Decoded", "next_token_logprobs"]


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """What to decode from one audio.

    Attributes:
        prompt: ids fed before the first sampled token.
        no_speech_position: index in ``prompt`` whose next-token probabilities are wanted (the start of the
            transcript, where the no-speech probability is read).
        no_speech_token: id whose probability is wanted there.
        rules: bans, applied in order.
        timestamp_begin: id of ``<|0.00|>`` under the timestamp rules, else None.
        max_new_tokens: sampled tokens at most, the end of text included.
        search: makes a fresh search.
        repetition_penalty: divides positive scores of text tokens already in the answer, and
            multiplies negative ones (Keskar et al. 2019, CTRL, arXiv:1909.05858); 1 does nothing.
        text: ids that are text.
        timestamp_end: the id after the last timestamp; None: the timestamps are the last ids.
    """

    prompt: tuple[int, ...]
    no_speech_position: int
    no_speech_token: int
    rules: tuple[TokenConstraint, ...]
    timestamp_begin: int | None
    max_new_tokens: int
    search: Callable[[], TokenDecoder]
    repetition_penalty: float = 1.0
    text: Container[int] = ()
    timestamp_end: int | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What one audio gave: its candidates and the probability of ``no_speech_token`` (0 to 1)."""

    hypotheses: list[Hypothesis]
    no_speech_prob: float


_NOWHERE: Int = np.zeros(0, np.int64)


class _Row:
    """One audio while it is being decoded."""

    def __init__(self, number: int, task: DecodeRequest, n_vocab: int) -> None:
        self.number = number
        self.task = task
        self.no_speech_prob = 0.0
        self.search = task.search()
        self.live = 1  # hypotheses in the session
        self.left = task.max_new_tokens
        self.begin = n_vocab if task.timestamp_begin is None else task.timestamp_begin
        self._n_vocab = n_vocab

    @functools.cached_property
    def greedy(self) -> GreedyRow | None:
        """How a session may go on by itself; None where it needs the host."""
        task, search = self.task, self.search
        if not isinstance(search, GreedyDecoder) or task.repetition_penalty != 1:
            return None
        return greedy_row(task.rules, task.timestamp_begin, search.eot, self._n_vocab)

    def step(self, top: Top) -> list[int]:
        parents = self.search.step(top)
        self.left -= 1
        if self.left <= 0:
            parents = []
        self.live = len(parents)
        return parents

    def decoded(self) -> Decoded:
        return Decoded(self.search.results(), self.no_speech_prob)


def _pad(sequences: Sequence[Sequence[int]]) -> tuple[Int, Int]:
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.zeros((len(sequences), int(lengths.max())), np.int64)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    return tokens, lengths


def _mask(rows: Sequence[_Row], n_vocab: int) -> TokenMask:
    live = [(row, sampled) for row in rows for sampled in row.search.rows]
    bans = [BannedTokens() for _ in live]
    for ban, (row, sampled) in zip(bans, live):
        for rule in row.task.rules:
            rule(sampled, ban)
    begins = np.array([row.begin for row, _ in live], np.int64)
    end = rows[0].task.timestamp_end if rows else None  # of the model: all rows have the same
    penalties = np.array([row.task.repetition_penalty for row, _ in live], np.float32)
    if (penalties == 1).all():
        return TokenMask(bans, begins, n_vocab=n_vocab, timestamp_end=end)
    seen = np.zeros((len(live), n_vocab), np.bool_)
    for repeated, (row, sampled) in zip(seen, live):
        repeated[[token for token in sampled if token in row.task.text]] = True
    return TokenMask(bans, begins, seen, penalties, n_vocab=n_vocab, timestamp_end=end)


def _needs_scores(rows: Sequence[_Row]) -> bool:
    """Whether some row draws, or weighs scores anew: then the best tokens alone will not do."""
    return any(row.search.generator is not None or row.task.repetition_penalty != 1 for row in rows)


def _choose(scores: F32, rows: Sequence[_Row], mask: TokenMask) -> Top:
    """The tokens that the searches asked for: the best ones, or draws for rows that sample.

    ``scores``: float32 [n_seq, n_vocab].
    """
    width = max((row.search.width for row in rows if row.search.generator is None), default=1)
    best = top_k(scores, width, mask)
    shape = (len(scores), max(row.search.width for row in rows))
    top = Top(np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32))
    found = best.tokens.shape[1]  # fewer than asked for where fewer tokens exist
    top.tokens[:, :found], top.logprobs[:, :found] = best.tokens, best.logprobs
    scores = penalized(scores, mask)
    offset = 0
    for row in rows:
        search, end = row.search, offset + row.live
        if search.generator is not None:
            for i in range(offset, end):
                top.tokens[i, : search.width], top.logprobs[i, : search.width] = sample(
                    scores[i],
                    mask.ban[i],
                    row.begin,
                    search.width,
                    search.temperature,
                    search.generator,
                    mask.times(i)[1],
                )
        offset = end
    return top


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


def _run(
    session: MultiStepSession, tokens: Int, rows: Sequence[_Row], greedy: Sequence[GreedyRow]
) -> Int:
    """Let the session sample by itself until a row is done; returns the new tokens [n_seq, 1]."""
    state = greedy_rows(greedy, [row.search.rows[0] for row in rows])
    found = session.decode_steps(tokens, state, min(row.left for row in rows))
    for tokens_now, logprobs in zip(found.tokens, found.logprobs):
        for i, row in enumerate(rows):
            if row.live:
                row.step(Top(tokens_now[i : i + 1, None], logprobs[i : i + 1, None]))
    keep = [i for i, row in enumerate(rows) if row.live]
    if keep:
        session.gather(np.array(keep, np.int64))
    return np.array([[rows[i].search.rows[0][-1]] for i in keep], np.int64).reshape(-1, 1)


class Batch:
    """Windows that are decoded together; they join and leave between steps.

    What a window gives does not depend on what else is in the batch. When the model fails, all
    windows that are not finished are lost (:meth:`take_lost`), and the batch is usable again.
    """

    def __init__(self, backend: Backend) -> None:
        """An empty batch."""
        self._backend = backend
        self._session: Session | None = None
        self._rows: list[_Row] = []
        self._tokens: Int = np.zeros((0, 1), np.int64)
        self._done: list[_Row] = []
        self._lost: list[int] = []
        self._n_added = 0

    def __len__(self) -> int:
        """Windows added and not yet handed out by :meth:`step`."""
        return len(self._rows) + len(self._done)

    def add(self, audio: Encoded, tasks: Sequence[DecodeRequest]) -> list[int]:
        """Let windows join; their prompts are fed at once, in a session of their own.

        Args:
            audio: what ``backend.encode`` returned for ``len(tasks)`` windows.
            tasks: one a window; they may differ in everything.

        Returns:
            A number for each window, under which :meth:`step` will hand out its answer.

        Raises:
            EngineError: a prompt leaves no room in the model's context, or the model failed; none
                of the windows has joined then.
        """
        numbers = list(range(self._n_added, self._n_added + len(tasks)))
        session = self._backend.open(audio)
        try:
            rows, logits = self._prefill(session, numbers, tasks)
            tokens, live = self._choose_next(session, rows, logits)
            if live and self._session is not None:
                with self._losing():
                    self._session.append(session)
                tokens = np.concatenate([self._tokens, tokens])
        except BaseException:
            self._done = [row for row in self._done if row.number not in numbers]
            session.close()
            raise
        self._n_added += len(tasks)
        if not live:
            session.close()
            return numbers
        self._tokens = tokens
        if self._session is None:
            self._session = session
        self._rows.extend(live)
        return numbers

    def _prefill(
        self, session: Session, numbers: list[int], tasks: Sequence[DecodeRequest]
    ) -> tuple[list[_Row], Logits]:
        n_vocab = self._backend.dims.n_vocab
        rows = [_Row(number, task, n_vocab) for number, task in zip(numbers, tasks)]
        tokens, lengths = _pad([task.prompt for task in tasks])
        at = np.array([[task.no_speech_position] for task in tasks], np.int64)
        if _needs_scores(rows):
            at = np.concatenate([at, lengths[:, None] - 1], axis=1)
        logits = session.extend(tokens, lengths, at)
        for row, scores in zip(rows, log_softmax(logits.requested()[:, 0])):
            row.no_speech_prob = float(np.exp(scores[row.task.no_speech_token]))
        return rows, logits

    def _choose_next(
        self, session: Session, rows: list[_Row], logits: Logits
    ) -> tuple[Int, list[_Row]]:
        """The next tokens, and the windows that go on; the others are done."""
        mask = _mask(rows, self._backend.dims.n_vocab)
        if _needs_scores(rows):
            top = _choose(logits.requested()[:, -1], rows, mask)
        else:
            top = logits.top(max(row.search.width for row in rows), mask)
        tokens = _advance(session, rows, top)
        self._done.extend(row for row in rows if not row.live)
        return tokens, [row for row in rows if row.live]

    def _sample(self, session: Session) -> tuple[Int, list[_Row]]:
        """One token in every window, or several where the session needs nobody for that."""
        if getattr(session, "supports_multistep", False) and isinstance(session, MultiStepSession):
            greedy = [row.greedy for row in self._rows if row.greedy is not None]
            if len(greedy) == len(self._rows):
                tokens = _run(session, self._tokens, self._rows, greedy)
                self._done.extend(row for row in self._rows if not row.live)
                return tokens, [row for row in self._rows if row.live]
        at = np.zeros_like(self._tokens) if _needs_scores(self._rows) else None
        return self._choose_next(session, self._rows, session.extend(self._tokens, at=at))

    def step(self) -> dict[int, Decoded]:
        """Sample a token in every window, or more; returns the answers of those that are finished.

        Where all are greedy and have no rules but the usual ones, a session that can run by itself
        does so until one of them is finished.

        Raises:
            EngineError: the model failed. Windows that were finished before are not lost: the next
                call returns them.
        """
        if self._session is not None:
            with self._losing():
                self._tokens, self._rows = self._sample(self._session)
            self._close_if_empty()
        done, self._done = self._done, []
        return {row.number: row.decoded() for row in done}

    def remove(self, numbers: Sequence[int]) -> None:
        """Give up some windows; the others do not notice.

        Raises:
            EngineError: the model failed, and the others are lost too.
        """
        self._done = [row for row in self._done if row.number not in numbers]
        ends = np.cumsum([row.live for row in self._rows], dtype=np.int64)
        kept = [
            (row, np.arange(end - row.live, end))
            for row, end in zip(self._rows, ends)
            if row.number not in numbers
        ]
        if self._session is None or len(kept) == len(self._rows):
            return
        self._rows = [row for row, _ in kept]
        places: Int = np.concatenate([_NOWHERE, *(place for _, place in kept)])
        self._tokens = self._tokens[places]
        if kept:
            with self._losing():
                self._session.gather(places)
        self._close_if_empty()

    def take_lost(self) -> list[int]:
        """Numbers of the windows that were lost since the last call, in the order of joining."""
        lost, self._lost = self._lost, []
        return lost

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """A call of the session; if it fails, its windows are lost: nobody knows what it holds."""
        try:
            yield
        except Exception:
            self._lost.extend(row.number for row in self._rows)
            session, self._session, self._rows = self._session, None, []
            if session is not None:
                with contextlib.suppress(WhisperOptError):  # the first error says more
                    session.close()
            raise

    def _close_if_empty(self) -> None:
        session = self._session
        if session is not None and not self._rows:
            self._session = None
            session.close()

    def close(self) -> None:
        """Give up what is being decoded; the batch is empty afterwards."""
        session, self._session, self._rows, self._done = self._session, None, [], []
        if session is not None:
            session.close()


def next_token_logprobs(backend: Backend, audio: Encoded, prompt: Sequence[int]) -> F32:
    """Log-probabilities after one prompt, float32 [n_audio, n_vocab], without any rule."""
    session = backend.open(audio)
    try:
        tokens = np.tile(np.array(prompt, np.int64), (len(audio), 1))
        logits = session.extend(tokens, at=np.full((len(audio), 1), len(prompt) - 1, np.int64))
        return log_softmax(logits.requested()[:, 0])
    finally:
        session.close()
