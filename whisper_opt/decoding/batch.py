"""The decode loop: one session, many rows, each with its own prompt, constraints and decoder.

Prompts are right-padded. A finished window leaves the batch and another may take its place
(continuous batching: Yu et al. 2022, "Orca"); the results of the other windows do not change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import (
    Backend,
    Encoded,
    Logits,
    MultiStepSession,
    Session,
    TokenMask,
    Top,
)
from whisper_opt.core.errors import WhisperOptError
from whisper_opt.core.logits import log_softmax, penalized, sample, top_k
from whisper_opt.decoding import speculative
from whisper_opt.decoding.multistep import GreedyRow, greedy_rows
from whisper_opt.decoding.rows import Decoded, DecodeRequest, Row, pad, token_mask
from whisper_opt.decoding.speculative import Fed

__all__ = ["Batch", "next_token_logprobs"]

_NOWHERE: Int = np.zeros(0, np.int64)
_STEPS_BETWEEN_DRAFTS = 4
"""Tokens that a row samples at most before its next proposal is asked for, on devices that sample
several tokens by themselves."""


def _needs_scores(rows: Sequence[Row]) -> bool:
    return any(row.needs_scores for row in rows)


def _choose(scores: F32, rows: Sequence[Row], mask: TokenMask) -> Top:
    """Tokens for the decoders: the best ones, or random draws for rows that sample.

    ``scores``: float32 [n_seq, n_vocab].
    """
    width = max((row.decoder.width for row in rows if row.decoder.generator is None), default=1)
    best = top_k(scores, width, mask)
    shape = (len(scores), max(row.decoder.width for row in rows))
    top = Top(np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32))
    found = best.tokens.shape[1]  # less than the width if the vocabulary is smaller
    top.tokens[:, :found], top.logprobs[:, :found] = best.tokens, best.logprobs
    scores = penalized(scores, mask)
    offset = 0
    for row in rows:
        decoder, end = row.decoder, offset + row.live
        if decoder.generator is not None:
            for i in range(offset, end):
                top.tokens[i, : decoder.width], top.logprobs[i, : decoder.width] = sample(
                    scores[i],
                    mask.ban[i],
                    row.begin,
                    decoder.width,
                    decoder.temperature,
                    decoder.generator,
                    mask.times(i)[1],
                )
        offset = end
    return top


def _advance(session: Session, rows: list[Row], top: Top) -> Int:
    """Step every decoder, keep the active hypotheses; returns their new tokens [n_seq, 1]."""
    keep: list[int] = []
    tokens: list[int] = []
    offset = 0
    for row in rows:
        end, width = offset + row.live, row.decoder.width
        parents = row.step(Top(top.tokens[offset:end, :width], top.logprobs[offset:end, :width]))
        keep.extend(offset + parent for parent in parents)
        tokens.extend(sampled[-1] for sampled in row.decoder.rows[: len(parents)])
        offset = end
    if keep:
        session.gather(np.array(keep, np.int64))
    return np.array(tokens, np.int64)[:, None]


def _decode_steps(
    session: MultiStepSession,
    tokens: Int,
    rows: Sequence[Row],
    greedy: Sequence[GreedyRow],
    most: int | None,
) -> Int:
    """Multi-step decoding until a row ends, at most so many steps; returns tokens [n_seq, 1]."""
    state = greedy_rows(greedy, [row.decoder.rows[0] for row in rows])
    left = [row.left for row in rows]
    found = session.decode_steps(tokens, state, min(left if most is None else [*left, most]))
    for tokens_now, logprobs in zip(found.tokens, found.logprobs):
        for i, row in enumerate(rows):
            if row.live:
                row.step(Top(tokens_now[i : i + 1, None], logprobs[i : i + 1, None]))
    keep = [i for i, row in enumerate(rows) if row.live]
    if keep:
        session.gather(np.array(keep, np.int64))
    return np.array([[rows[i].decoder.rows[0][-1]] for i in keep], np.int64).reshape(-1, 1)


class Batch:
    """Windows that are decoded together; they join and leave between steps.

    The result of a window does not depend on other windows in the batch. If the model fails, all
    unfinished windows are lost (:meth:`take_lost`), and the batch can be used again.

    Attributes:
        n_proposed: tokens that drafters have proposed.
        n_accepted: how many of them the model has accepted.
    """

    def __init__(self, backend: Backend, most_steps: int | None = None) -> None:
        """An empty batch.

        Args:
            backend: the model.
            most_steps: tokens per window that :meth:`step` samples at most; default: no limit.
        """
        self._backend = backend
        self._most_steps = most_steps
        self._session: Session | None = None
        self._rows: list[Row] = []
        self._tokens: Int = np.zeros((0, 1), np.int64)
        self._done: list[Row] = []
        self._lost: list[int] = []
        self._n_added = 0
        self._reopened = False
        self.n_proposed = 0
        self.n_accepted = 0

    def __len__(self) -> int:
        """Windows added and not yet handed out by :meth:`step`."""
        return len(self._rows) + len(self._done)

    def add(self, audio: Encoded, requests: Sequence[DecodeRequest]) -> list[int]:
        """Add windows; their prompts are prefilled now, in a session of their own.

        Args:
            audio: what ``backend.encode`` returned for ``len(requests)`` windows.
            requests: one per window, all fields may differ.

        Returns:
            A number per window, the key of its result in :meth:`step`.

        Raises:
            EngineError: a prompt leaves no room in the model's context, or the model failed; no
                window was added.
        """
        numbers = list(range(self._n_added, self._n_added + len(requests)))
        session = self._backend.open(audio)
        try:
            rows, logits = self._prefill(session, numbers, requests)
            tokens, live = self._choose_next(session, rows, logits)
            if not session.extends_at_once:
                for i, row in enumerate(rows):
                    row.audio = audio.take([i]) if row.has_drafter else None
            tokens, live = self._speculate(session, tokens, live)
            if live and self._session is not None:
                with self._losing():
                    self._session.append(session)
                tokens = np.concatenate([self._tokens, tokens])
        except BaseException:
            self._done = [row for row in self._done if row.number not in numbers]
            session.close()
            raise
        self._n_added += len(requests)
        if not live:
            session.close()
            return numbers
        self._tokens = tokens
        if self._session is None:
            self._session = session
        self._rows.extend(live)
        return numbers

    def _prefill(
        self, session: Session, numbers: list[int], requests: Sequence[DecodeRequest]
    ) -> tuple[list[Row], Logits]:
        n_vocab = self._backend.dims.n_vocab
        rows = [Row(number, request, n_vocab) for number, request in zip(numbers, requests)]
        tokens, lengths = pad([request.prompt for request in requests])
        at = np.array([[request.no_speech_position] for request in requests], np.int64)
        if _needs_scores(rows):
            at = np.concatenate([at, lengths[:, None] - 1], axis=1)
        logits = session.extend(tokens, lengths, at)
        for row, scores in zip(rows, log_softmax(logits.requested()[:, 0])):
            row.no_speech_prob = float(np.exp(scores[row.request.no_speech_token]))
        return rows, logits

    def _choose_next(
        self, session: Session, rows: list[Row], logits: Logits
    ) -> tuple[Int, list[Row]]:
        """The next tokens, and the unfinished windows."""
        live = [(row, sampled) for row in rows for sampled in row.decoder.rows]
        mask = token_mask(live, self._backend.dims.n_vocab)
        if _needs_scores(rows):
            top = _choose(logits.requested()[:, -1], rows, mask)
        else:
            top = logits.top(max(row.decoder.width for row in rows), mask)
        tokens = _advance(session, rows, top)
        self._done.extend(row for row in rows if not row.live)
        return tokens, [row for row in rows if row.live]

    def _speculate(self, session: Session, tokens: Int, rows: list[Row]) -> tuple[Int, list[Row]]:
        """Verify proposed tokens, if there are any; returns as :meth:`_choose_next`."""
        drafts = speculative.proposals(rows, self._backend.dims.n_text_ctx)
        if not session.extends_at_once:
            return self._reopen(session, tokens, rows, drafts)
        if not any(drafts):
            return tokens, rows
        logits, fed = speculative.feed(session, tokens, rows, drafts)
        tokens = self._verify(session, rows, logits, fed)
        return tokens, [row for row in rows if row.live]

    def _verify(self, session: Session, rows: list[Row], logits: Logits, fed: Fed) -> Int:
        tokens, n_accepted = speculative.advance(session, rows, logits, fed, _choose)
        self.n_proposed += sum(map(len, fed.drafts))
        self.n_accepted += n_accepted
        self._done.extend(row for row in rows if not row.live)
        return tokens

    def _reopen(
        self, session: Session, tokens: Int, rows: list[Row], drafts: Sequence[Sequence[int]]
    ) -> tuple[Int, list[Row]]:
        """As :meth:`_speculate`; rows with proposals are fed again in sessions of their own."""
        firsts = np.cumsum([0, *(row.live for row in rows)]).tolist()
        kept, stay, last = list(rows), list(range(firsts[-1])), [tokens]
        for row, draft, first in zip(rows, drafts, firsts):
            if row.audio is None or not draft or not speculative.is_worth_it(row, draft):
                continue
            opened = self._backend.open(row.audio)
            try:
                found = self._verify(opened, [row], *speculative.feed_again(opened, row, draft))
                if row.live:
                    session.append(opened)
            except BaseException:
                opened.close()
                raise
            kept.remove(row)
            stay.remove(first)
            if row.live:
                kept.append(row)
                stay.append(sum(map(len, last)))
                last.append(found)
            else:
                opened.close()
        if len(last) == 1 and kept == rows:
            return tokens, rows
        if stay:
            session.gather(np.array(stay, np.int64))
        return np.concatenate(last)[stay], kept

    def _sample(self, session: Session) -> tuple[Int, list[Row]]:
        """One token in every window, or several if the session supports it for all rows."""
        most = self._most_steps
        if any(row.has_drafter for row in self._rows):
            before = self._tokens
            # rows without proposals do not wait for the others twice
            if session.extends_at_once or not self._reopened:
                tokens, rows = self._speculate(session, before, self._rows)
                self._reopened = tokens is not before
                if self._reopened:
                    return tokens, rows
            self._reopened = False
            most = min(most or _STEPS_BETWEEN_DRAFTS, _STEPS_BETWEEN_DRAFTS)
        if getattr(session, "supports_multistep", False) and isinstance(session, MultiStepSession):
            greedy = [row.greedy for row in self._rows if row.greedy is not None]
            if len(greedy) == len(self._rows):
                tokens = _decode_steps(session, self._tokens, self._rows, greedy, most)
                self._done.extend(row for row in self._rows if not row.live)
                return tokens, [row for row in self._rows if row.live]
        at = np.zeros_like(self._tokens) if _needs_scores(self._rows) else None
        return self._choose_next(session, self._rows, session.extend(self._tokens, at=at))

    def step(self) -> dict[int, Decoded]:
        """Sample one or more tokens in every window; returns the results of finished windows.

        If all windows are greedy and have only the usual constraints, a session that supports
        multi-step decoding runs until one of them is finished, or for ``most_steps``.

        Raises:
            EngineError: the model failed. Windows that finished before are returned by the next
                call.
        """
        if self._session is not None:
            with self._losing():
                self._tokens, self._rows = self._sample(self._session)
            self._close_if_empty()
        done, self._done = self._done, []
        return {row.number: row.decoded() for row in done}

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove windows without a result; the others continue.

        Raises:
            EngineError: the model failed, and the other windows are lost too.
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
        """Numbers of the windows lost since the last call, in the order in which they joined."""
        lost, self._lost = self._lost, []
        return lost

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """Guards a session call: after a failure the session is closed and its windows are lost."""
        try:
            yield
        except Exception:
            self._lost.extend(row.number for row in self._rows)
            session, self._session, self._rows = self._session, None, []
            if session is not None:
                with contextlib.suppress(WhisperOptError):  # the first error is raised
                    session.close()
            raise

    def _close_if_empty(self) -> None:
        session = self._session
        if session is not None and not self._rows:
            self._session = None
            session.close()

    def close(self) -> None:
        """Remove all windows; the batch is empty afterwards."""
        session, self._session, self._rows, self._done = self._session, None, [], []
        if session is not None:
            session.close()


def next_token_logprobs(backend: Backend, audio: Encoded, prompt: Sequence[int]) -> F32:
    """Log-probabilities after one prompt, float32 [n_audio, n_vocab], without constraints."""
    session = backend.open(audio)
    try:
        tokens = np.tile(np.array(prompt, np.int64), (len(audio), 1))
        logits = session.extend(tokens, at=np.full((len(audio), 1), len(prompt) - 1, np.int64))
        return log_softmax(logits.requested()[:, 0])
    finally:
        session.close()
