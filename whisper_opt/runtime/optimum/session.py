"""Decoding sessions over graphs of Optimum.

These graphs take no positions and no mask for the decoder: the position of a token is the length
of the past, and all rows of a call share it. Rows of different lengths therefore run in groups of
equal length. Rows of the same window share nothing in the graph, so cross-attention keys and values
are repeated for every row of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.backend import Logits, Session
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import HostLogits
from whisper_opt.runtime.inputs import check_row_lengths, closed_session
from whisper_opt.runtime.onnxruntime.buffers import Buffers
from whisper_opt.runtime.optimum.graphs import Decoder

__all__ = ["OptimumSession"]

MAX_LOGITS = 1 << 28
"""Bytes of scores that one call may return: the first call returns those of all tokens."""


class _Group:
    """Rows of equal length in one batch of the graph.

    Attributes:
        rows: [n] row of the session in each slot of the batch.
        windows: [n] identity of the window of each slot.
        length: tokens fed to each row.
        hidden: [n, n_audio_ctx, n_audio_state] hidden states; used until tokens were fed.
        past: keys and values of self-attention; empty until tokens were fed.
        cross: keys and values of cross-attention; likewise.
    """

    def __init__(self, rows: Int, windows: Int, hidden: NDArray) -> None:
        self.rows = rows
        self.windows = windows
        self.length = 0
        self.hidden = hidden
        self.past = Buffers((), len(rows))
        self.cross = Buffers((), len(rows))

    def feed_first(self, decoder: Decoder, tokens: Int) -> F32:
        """Scores [n, n_new, n_vocab] of the first tokens [n, n_new]."""
        found = decoder.first(tokens, self.hidden)
        self.past, self.cross = Buffers(found.past, len(tokens)), Buffers(found.cross, len(tokens))
        self.length = tokens.shape[1]
        self.hidden = self.hidden[:0]
        return found.logits

    def feed_next(self, decoder: Decoder, tokens: Int) -> F32:
        """Scores [n, n_vocab] of one more token per row, [n, 1]."""
        logits, past = decoder.next(tokens, self.past.views(), self.cross.views())
        self.past = Buffers(past, len(tokens))
        self.length += 1
        return logits

    def forget(self, n: int) -> None:
        """Drop the last n tokens of every slot."""
        if n:
            self.length -= n
            past = [array[:, :, : self.length] for array in self.past.views()]
            self.past = Buffers([np.ascontiguousarray(each) for each in past], self.past.n)

    def take(self, slots: Int) -> _Group:
        """A new group with copies of some slots."""
        found = _Group(self.rows[slots], self.windows[slots], self.hidden)
        found.length = self.length
        if self.length:
            found.past = Buffers([array[slots] for array in self.past.views()], len(slots))
            found.cross = Buffers([array[slots] for array in self.cross.views()], len(slots))
        else:
            found.hidden = self.hidden[slots]
        return found

    def rearrange(self, rows: Int, source: Int) -> None:
        """The group gets these rows, copies of the old slots ``source``, in a cheap order."""
        order = _cheap_order(source)
        rows, source = rows[order], source[order]
        before, self.windows = self.windows, self.windows[source]
        self.rows = rows
        if not self.length:
            self.hidden = self.hidden[source]
            return
        self.past.arrange(source)
        slots = np.arange(len(source))
        stays = slots < len(before)
        stays[stays] = before[slots[stays]] == self.windows[stays]
        self.cross.arrange(np.where(stays, slots, source))

    def extend(self, other: _Group) -> None:
        """Add the slots of a group of the same length."""
        self.rows = np.concatenate([self.rows, other.rows])
        self.windows = np.concatenate([self.windows, other.windows])
        if not self.length:
            self.hidden = np.concatenate([self.hidden, other.hidden])
            return
        for mine, added in ((self.past, other.past), (self.cross, other.cross)):
            n = mine.n
            mine.resize(n + added.n)
            for array, new in zip(mine.arrays, added.views()):
                array[n : mine.n] = new


def _cheap_order(source: Int) -> Int:
    """An order of new slots in which as many as possible stay where they are.

    ``source``: the old slot of each new row. Returns the row for each new slot.
    """
    n = len(source)
    row_of_slot = np.full(n, -1, np.int64)
    rest = []
    for row, slot in enumerate(source.tolist()):
        if slot < n and row_of_slot[slot] < 0:
            row_of_slot[slot] = row
        else:
            rest.append(row)
    row_of_slot[row_of_slot < 0] = rest
    return row_of_slot


class OptimumSession:
    """Hypotheses of some windows; see :class:`whisper_opt.core.backend.Session`."""

    def __init__(self, decoder: Decoder, dims: ModelDims, hidden: NDArray) -> None:
        """Open with one empty row per window of ``hidden`` [n_audio, n_audio_ctx, n_state]."""
        self._decoder = decoder
        self._dims = dims
        rows = np.arange(len(hidden))
        self._n_windows = len(hidden)
        self._groups: list[_Group] = [_Group(rows, rows, hidden)]
        self._length = np.zeros(len(hidden), np.int64)

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> Logits:
        n_seq, n_new = tokens.shape
        lengths = np.full(n_seq, n_new, np.int64) if lengths is None else lengths
        self._check_room(lengths)
        wanted = (lengths - 1)[:, None]
        if at is not None:
            wanted = np.concatenate([at, wanted], axis=1)
        scores = np.zeros((*wanted.shape, self._dims.n_vocab), np.float32)
        self._groups = [part for group in self._groups for part in self._parts(group, lengths)]
        for group in self._groups:
            n = int(lengths[group.rows[0]])
            self._feed(group, tokens[group.rows, :n], wanted[group.rows], scores)
        self._length = self._length + lengths
        self._merge()
        return HostLogits(scores)

    extends_at_once = False

    def truncate(self, dropped: Int) -> None:
        self._check_open()
        if not dropped.any():
            return
        self._length = self._length - dropped
        parts: list[_Group] = []
        for group in self._groups:
            for n in np.unique(dropped[group.rows]):
                part = group.take(np.flatnonzero(dropped[group.rows] == n))
                part.forget(int(n))
                parts.append(part)
        self._groups = parts
        self._merge()

    def _parts(self, group: _Group, lengths: Int) -> Iterator[_Group]:
        """The group in parts whose rows get equally many tokens, small enough for one call."""
        new = lengths[group.rows]
        for n in np.unique(new):
            slots = np.flatnonzero(new == n)
            most = len(slots)
            if not group.length:
                most = max(1, MAX_LOGITS // (4 * int(n) * self._dims.n_vocab))
            for begin in range(0, len(slots), most):
                part = slots[begin : begin + most]
                yield group if len(part) == len(group.rows) else group.take(part)

    def _feed(self, group: _Group, tokens: Int, wanted: Int, scores: F32) -> None:
        """Feed tokens [n, n_new] to a group and store the scores of the requested positions."""
        if not group.length:
            logits = group.feed_first(self._decoder, tokens)
            scores[group.rows] = logits[np.arange(len(tokens))[:, None], wanted]
            return
        for step in range(tokens.shape[1]):  # graphs for a past take one token at a time
            logits = group.feed_next(self._decoder, tokens[:, step : step + 1])
            for slot, column in zip(*np.nonzero(wanted == step)):
                scores[group.rows[slot], column] = logits[slot]

    def _merge(self) -> None:
        """Join groups of equal length."""
        found: dict[int, _Group] = {}
        for group in self._groups:
            if group.length in found:
                found[group.length].extend(group)
            elif len(group.rows):
                found[group.length] = group
        self._groups = list(found.values())

    def _check_open(self) -> None:
        if not self._groups:
            raise closed_session()

    def _check_room(self, lengths: Int) -> None:
        self._check_open()
        check_row_lengths(self._dims, self._length + lengths)

    def gather(self, rows: Int) -> None:
        self._check_open()
        if len(rows) == len(self._length) and (rows == np.arange(len(rows))).all():
            return
        self._length = self._length[rows]
        kept = []
        for group in self._groups:
            slot_of_row = {row: slot for slot, row in enumerate(group.rows.tolist())}
            new = [i for i, row in enumerate(rows.tolist()) if row in slot_of_row]
            if new:
                source = np.array([slot_of_row[int(rows[i])] for i in new], np.int64)
                group.rearrange(np.array(new, np.int64), source)
                kept.append(group)
        self._groups = kept

    def append(self, other: Session) -> None:
        if not isinstance(other, OptimumSession) or other._decoder is not self._decoder:
            raise EngineError("only a session of the same backend can be appended")
        self._check_open()
        other._check_open()
        for group in other._groups:
            group.rows = group.rows + len(self._length)
            group.windows = group.windows + self._n_windows
        self._groups = [*self._groups, *other._groups]
        self._length = np.concatenate([self._length, other._length])
        self._n_windows += other._n_windows
        self._merge()
        other._groups = []

    def close(self) -> None:
        self._groups = []
