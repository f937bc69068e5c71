"""Sessions on a device: the host tracks the rows and their tokens, the device computes.

A step uploads one token per row and the banned tokens, and downloads the few best tokens. The code
does not depend on the device (:mod:`whisper_opt.runtime.device.executor`) or on how slots move
(:mod:`whisper_opt.runtime.device.cache`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any, Callable, TypeVar, cast

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import (
    Attention,
    GreedyRows,
    Logits,
    MultiStepResult,
    Session,
    TokenMask,
    Top,
)
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import HostLogits
from whisper_opt.runtime.device.cache import CrossKV, DeviceCache, DeviceModel
from whisper_opt.runtime.device.executor import Buffer
from whisper_opt.runtime.device.workspace import Workspace
from whisper_opt.runtime.inputs import check_row_lengths, closed_session
from whisper_opt.runtime.rows import RowLayout

__all__ = ["DeviceLogits", "DeviceSession"]

_NONE: Int = np.zeros(0, np.int64)
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _locked(method: _Method) -> _Method:
    """Decorate a method to hold the lock of the device while it runs."""

    @functools.wraps(method)
    def call(self: DeviceSession, *args: Any, **named: Any) -> Any:
        with self._model.lock:
            return method(self, *args, **named)

    return cast(_Method, call)


def _distinct(wanted: Int) -> tuple[Int, Int]:
    """The distinct columns of ``wanted``, the last one last, and the index of each column in them.

    A prompt of one token requests the same position twice.
    """
    if wanted.shape[1] == 1:
        return wanted, np.zeros(1, np.int64)
    keys = [column.tobytes() for column in wanted.T]
    kept = list(dict.fromkeys(reversed(keys)))[::-1]
    return wanted[:, [keys.index(key) for key in kept]], np.array([kept.index(key) for key in keys])


class DeviceSession:
    """Implements :class:`whisper_opt.core.backend.MultiStepSession` over an executor."""

    def __init__(
        self, model: DeviceModel, workspace: Workspace, cross: CrossKV, audios: tuple[int, ...]
    ) -> None:
        """Open one empty row per window of ``cross``; the windows are copied.

        Raises:
            EngineError: there is not enough memory.
        """
        self._model = model
        self._dims = model.dims
        self._layout = RowLayout(len(audios))
        self._tokens: Int = np.zeros((len(audios), self._dims.n_text_ctx), np.int64)
        self._cache: DeviceCache | None = DeviceCache(model, workspace, cross, audios)
        self._n_calls = 0

    @property
    def _open(self) -> DeviceCache:
        if self._cache is None:
            raise closed_session()
        return self._cache

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[DeviceCache]:
        """Context for changing rows; a failure restores them."""
        cache, layout, tokens = self._open, copy.copy(self._layout), self._tokens
        self._n_calls += 1
        try:
            yield cache
        except BaseException:
            self._layout, self._tokens = layout, tokens
            raise

    # --- feeding ----------------------------------------------------------------------------------

    @_locked
    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> Logits:
        if lengths is None:
            lengths = np.full(len(tokens), tokens.shape[1], np.int64)
        self._check_length(lengths)
        self._compact()
        wanted = (lengths - 1)[:, None]
        if at is not None:
            wanted = np.concatenate([at, wanted], axis=1)
        n_new = int(lengths.max())
        with self._transaction():
            before = self._layout.length
            self._write(tokens, lengths)
            distinct, columns = _distinct(wanted)
            width = self._tokens_per_call(n_new, distinct.shape[1], aligned=False)
            logits: Logits
            if width == n_new:
                logits = self._feed(before, 0, n_new, distinct, columns)
            else:
                scores = self._feed_in_parts(before, n_new, distinct, width)
                logits = HostLogits(scores[:, columns])
            self._layout.length = before + lengths
        return logits

    extends_at_once = True

    @_locked
    def truncate(self, dropped: Int) -> None:
        if self._cache is None:
            raise closed_session()
        self._layout.length = self._layout.length - dropped

    def _check_length(self, lengths: Int) -> None:
        if self._cache is None:
            raise closed_session()
        check_row_lengths(self._dims, self._layout.length + lengths)

    def _tokens_per_call(self, n_new: int, n_at: int, *, aligned: bool) -> int:
        n_slots = len(self._layout.slots.row_of_slot)
        return self._model.tokens_per_call(
            self._layout.n_audio, n_slots, n_new, n_at, aligned=aligned
        )

    def _write(self, tokens: Int, lengths: Int) -> None:
        """Record the tokens fed to every row, without the padding."""
        rows, columns = np.nonzero(np.arange(tokens.shape[1]) < lengths[:, None])
        self._tokens = self._tokens.copy()
        self._tokens[rows, self._layout.length[rows] + columns] = tokens[rows, columns]

    def _feed(self, before: Int, begin: int, width: int, wanted: Int, columns: Int) -> DeviceLogits:
        """Feed ``width`` tokens from the ``begin``-th new one on.

        A row near the end of the context has no space for the padding. It starts further left, and
        writes some of its tokens again.
        """
        start = np.minimum(before + begin, self._dims.n_text_ctx - width)
        tokens = np.take_along_axis(self._tokens, start[:, None] + np.arange(width), axis=1)
        at = np.minimum(before[:, None] + wanted - start[:, None], width - 1)
        rows = self._layout.slots.row_of_slot
        outputs = self._open.run(tokens[rows], start[rows], at[rows], _NONE)
        return DeviceLogits(self, self._n_calls, outputs["logits"], columns)

    def _feed_in_parts(self, before: Int, n_new: int, wanted: Int, width: int) -> F32:
        """Feed more tokens than one call takes; the scores are collected on the host."""
        scores = np.zeros((*wanted.shape, self._dims.n_vocab), np.float32)
        for begin in range(0, n_new, width):
            end = min(begin + width, n_new)
            here = (wanted >= begin) & (wanted < end)
            columns = np.flatnonzero(here.any(axis=0))
            # a part is fed again if it has more columns than its width; the results are the same
            for group in np.split(columns, range(width, len(columns), width)):
                chosen = np.full((len(wanted), max(len(group), 1)), begin)
                chosen[:, : len(group)][here[:, group]] = wanted[:, group][here[:, group]]
                order = np.arange(chosen.shape[1])
                found = self._feed(before, begin, end - begin, chosen, order).numpy()
                for i, column in enumerate(group):
                    rows = np.flatnonzero(here[:, column])
                    scores[rows, column] = found[rows, i]
        return scores

    @property
    def supports_multistep(self) -> bool:
        return self._cache is not None and self._cache.supports_multistep

    @_locked
    def decode_steps(self, tokens: Int, rows: GreedyRows, steps: int) -> MultiStepResult:
        n_seq = len(tokens)
        self._check_length(np.ones(n_seq, np.int64))
        self._compact()
        self._tokens_per_call(1, 1, aligned=False)
        before, slots = self._layout.length, self._layout.slots
        steps = min(steps, self._dims.n_text_ctx - int(before.max()))
        with self._transaction() as cache:
            found = cache.decode_steps(tokens[:, 0], before, rows, steps, slots)
            fed = np.concatenate([tokens, found.tokens[:-1].T], axis=1)
            lengths = (fed != rows.eot[:, None]).sum(axis=1)  # the end of text repeats at the end
            self._write(fed, lengths)
            self._layout.length = before + lengths
        return found

    @_locked
    def attention(self, tokens: Int, lengths: Int) -> Attention:
        """All scores of the first tokens of a new session, and their cross-attention."""
        self._check_length(lengths)
        cache, n_audio, n_fed = self._open, len(tokens), int(lengths.max())
        self._n_calls += 1
        width = self._tokens_per_call(n_fed, n_fed, aligned=True)
        logits = np.zeros((*tokens.shape, self._dims.n_vocab), np.float32)
        parts = []
        for begin in range(0, n_fed, width):
            part = tokens[:, begin : min(begin + width, n_fed)]
            order = np.arange(part.shape[1])
            start = np.full(n_audio, begin, np.int64)
            outputs = cache.run(part, start, np.tile(order, (n_audio, 1)), order)
            logits[:, begin : begin + len(order)] = cache.read(outputs["logits"])
            parts.append(cache.attention(outputs))
        shape = parts[0].shape
        parts.append(np.zeros((*shape[:2], tokens.shape[1] - n_fed, shape[3]), np.float32))
        return Attention(np.concatenate(parts, axis=2), logits)

    # --- scores -----------------------------------------------------------------------------------

    @_locked
    def scores(self, logits: Buffer, call: int) -> F32:
        """All scores of a call, float32 [n_seq, n_at, n_vocab].

        Raises:
            EngineError: the session was used again.
        """
        self._check_current(call)
        scores: F32 = self._open.read(logits)[self._layout.slots.slot_of_row]
        return scores

    def _check_current(self, call: int) -> None:
        if call != self._n_calls:
            raise EngineError("the session was used again, and these scores were overwritten")

    def can_choose(self, k: int, mask: TokenMask) -> bool:
        """Whether the device can choose: not for large k, penalties or text after timestamps."""
        return k <= self._open.n_choices and mask.seen is None and not mask.splits_text

    @_locked
    def choose(self, logits: Buffer, call: int, k: int, mask: TokenMask) -> Top:
        """The k best tokens after the last position of a call; raises as :meth:`scores`."""
        self._check_current(call)
        slots = self._layout.slots
        found = self._open.choose(logits, mask.ban, mask.timestamp_begin, slots.row_of_slot)
        tokens, logprobs = (values[slots.slot_of_row, :k] for values in found)
        return Top(tokens, logprobs)

    # --- rows -------------------------------------------------------------------------------------

    @_locked
    def gather(self, rows: Int) -> None:
        with self._transaction() as cache:
            if len(rows) == len(self._tokens) and (rows == np.arange(len(rows))).all():
                return
            self._tokens = self._tokens[rows]
            cache.rearrange(self._layout.gather(rows))

    def _compact(self) -> None:
        with self._transaction() as cache:
            plan = self._layout.compact()
            if plan is not None:
                cache.rearrange(plan.slots)
                cache.keep_audios(plan.audios)

    @_locked
    def append(self, other: Session) -> None:
        if not isinstance(other, DeviceSession) or other._model is not self._model:
            raise EngineError("only a session of the same backend can be appended")
        theirs = other._open
        with self._transaction() as cache:
            if theirs.cross_tensors != cache.cross_tensors:
                raise EngineError("only windows of the same length can be decoded together")
            plan = self._layout.append(other._layout)
            self._tokens = np.concatenate([self._tokens, other._tokens])
            cache.append(theirs, self._layout.n_audio, plan)
        other.close()

    @_locked
    def close(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()


class DeviceLogits:
    """Scores on the device; implements :class:`whisper_opt.core.backend.Logits`."""

    def __init__(self, session: DeviceSession, call: int, logits: Buffer, columns: Int) -> None:
        """Refer to scores [n_slots, n, n_vocab].

        Args:
            session: session of the scores.
            call: index of the call that computed them; the next call overwrites them.
            logits: buffer of the scores.
            columns: index in the axis n of each requested position; the last one is n - 1.
        """
        self._session, self._call, self._logits = session, call, logits
        self._columns = columns

    def top(self, k: int, mask: TokenMask) -> Top:
        if self._session.can_choose(k, mask):
            return self._session.choose(self._logits, self._call, k, mask)
        return HostLogits(self.numpy()).top(k, mask)

    def requested(self) -> F32:
        return self.numpy()[:, :-1]

    def numpy(self) -> F32:
        return self._session.scores(self._logits, self._call)[:, self._columns]
