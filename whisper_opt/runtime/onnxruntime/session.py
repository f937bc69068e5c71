"""Decoding sessions in ONNX Runtime: IO binding, a cache updated in place, capacity in buckets."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.backend import Attention, Logits, Session
from whisper_opt.core.dims import HEAD_DIM, ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import HostLogits
from whisper_opt.runtime.cross_kv import CrossLayout
from whisper_opt.runtime.head_bounds import HeadBounds
from whisper_opt.runtime.head_names import APPROXIMATE, APPROXIMATE_SCORES, EXACT, HIDDEN
from whisper_opt.runtime.head_select import TwoStageLogits
from whisper_opt.runtime.inputs import check_row_lengths, closed_session
from whisper_opt.runtime.onnxruntime.buffers import Buffers
from whisper_opt.runtime.onnxruntime.graph import failed_run, graph_tensors, import_onnxruntime
from whisper_opt.runtime.rows import CacheHistory, RowLayout

__all__ = ["CAPACITIES", "Decoder", "OrtSession"]

CAPACITIES = {"contrib": (192, 448), "standard": (64, 128, 256, 448)}
"""Cache sizes in positions, by dialect; growing copies the cache. A step of ``standard`` is faster
with a small cache; a step of ``contrib`` takes the same time with any, and few windows have more
than 192 tokens."""
_MOST_PADDED = 1.5
"""Tokens with padding, as a multiple of those without, up to which rows are fed in one call."""
_NONE: Int = np.zeros(0, np.int64)


@functools.lru_cache(maxsize=1)
def _computes_on_past() -> bool:
    """Whether ``GroupQueryAttention`` computes several tokens on a past.

    In one row it does, from ONNX Runtime 1.20 on. Calls with several rows are refused.
    """
    version = import_onnxruntime().__version__
    return tuple(int(part) for part in version.split(".")[:2]) >= (1, 20)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The decoder of one engine.

    Attributes:
        session: the graph in ONNX Runtime.
        dims: model dimensions.
        dialect: operator family of the graph.
        head: bounds of the two-stage output head; None if the graph's scores are exact.
        cross: layout of cross-attention keys and values.
        own_attention: whether self-attention is a kernel (``SelfAttention``), which computes
            several tokens on any past, the same bits as one by one.
    """

    session: Any
    dims: ModelDims
    dialect: str
    head: HeadBounds | None
    cross: CrossLayout
    own_attention: bool = False

    @functools.cached_property
    def kv(self) -> np.dtype[Any]:
        """The type of the cache."""
        return graph_tensors(self.session)["self_k_0"].dtype


class _Call(NamedTuple):
    """Sizes of one call of the decoder."""

    n_new: int
    n_at: int
    n_exact: int
    n_aligned: int


class OrtSession:
    """Hypotheses of some audios; see :class:`whisper_opt.core.backend.Session`."""

    def __init__(self, model: Decoder, cross: Sequence[NDArray]) -> None:
        """Open with one empty row per audio of ``cross``: keys then values of every layer."""
        self._model = model
        self._dims = model.dims
        n_audio = len(cross[0])
        self._cross = Buffers(cross, n_audio)
        self._own_cross = False  # the caller owns the arrays until they change
        self._layout = RowLayout(n_audio)
        self._cache = Buffers((), n_audio)
        self._history = CacheHistory(n_audio, 0)
        self._pending: Int | None = None  # old slot of each slot, applied later
        self._capacity = 0
        self._bindings: dict[tuple[int, ...], _Binding] = {}

    @property
    def _length(self) -> Int:
        return self._layout.length

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> Logits:
        n_seq, n_new = tokens.shape
        if lengths is None:
            lengths = np.full(n_seq, n_new, np.int64)
        self._check_room(lengths)
        self._drop_audios()
        wanted = (lengths - 1)[:, None]
        if at is not None:
            wanted = np.concatenate([at, wanted], axis=1)
        logits: Logits
        if n_new > 1 and self._length.any() and not self._together(lengths):
            feed = self._row_by_row if self.extends_at_once else self._one_by_one
            logits = HostLogits(feed(tokens, lengths, wanted))
        else:
            self._reserve(int(self._length.max()) + n_new)
            logits = self._feed(tokens, wanted)
        self._layout.length = self._length + lengths
        return logits

    def _feed(self, tokens: Int, wanted: Int) -> Logits:
        """Scores at the requested positions; two-stage for the last one, if the graph supports it.

        Only for one position per row: with many positions, the head is compute-bound.
        """
        head = self._model.head
        if head is None:
            return HostLogits(self._own(self._run(tokens, self._length, wanted).logits))
        out = self._run(tokens, self._length, wanted, n_exact=wanted.shape[1] - 1)
        approximate, hidden = self._own(out.approximate)[:, 0], self._own(out.hidden)[:, -1]
        return TwoStageLogits(head, approximate, hidden, self._own(out.logits))

    def attention(self, tokens: Int, lengths: Int) -> Attention:
        """All scores of a fresh session's first tokens, and its cross-attention with them."""
        self._check_room(lengths)
        n_new = tokens.shape[1]
        self._reserve(n_new)
        order = np.arange(n_new)
        wanted = np.minimum(order[None], lengths[:, None] - 1)
        out = self._run(tokens, self._length, wanted, aligned=order)
        return Attention(out.attention, self._own(out.logits))

    def _check_open(self) -> None:
        if not self._cross.arrays:
            raise closed_session()

    def _check_room(self, lengths: Int) -> None:
        self._check_open()
        check_row_lengths(self._dims, self._length + lengths)

    @property
    def extends_at_once(self) -> bool:
        model = self._model
        return model.dialect != "contrib" or model.own_attention or _computes_on_past()

    def _together(self, lengths: Int) -> bool:
        """Whether to feed rows with a past in one call, if a row has several tokens.

        The results of the kernels are the same. A call takes about the time of its tokens, and
        shorter rows are padded.
        """
        if not self._model.own_attention:
            return self._model.dialect != "contrib"
        return len(lengths) * int(lengths.max()) <= _MOST_PADDED * int(lengths.sum())

    def truncate(self, dropped: Int) -> None:
        self._check_open()
        self._layout.length = self._length - dropped

    def _row_by_row(self, tokens: Int, lengths: Int, wanted: Int) -> F32:
        """Feed several tokens on a past in one call per row; rows with one token share a call."""
        self._reserve(int((self._length + lengths).max()))
        scores = np.zeros((*wanted.shape, self._dims.n_vocab), np.float32)
        single = lengths == 1
        if single.any():
            zero = np.zeros((len(tokens), 1), np.int64)
            # the other rows write their first token, and write it again below
            last = self._own(self._run(tokens[:, :1], self._length, zero).logits)
            scores[single] = last[single]
        for row in np.flatnonzero(~single):
            at, columns = np.unique(wanted[row], return_inverse=True)
            new = tokens[row, : lengths[row]]
            scores[row] = self._run_row(int(row), new, at)[columns.reshape(-1)]
        return scores

    def _run_row(self, row: int, tokens: Int, at: Int) -> F32:
        """Scores [len(at), n_vocab] of tokens that are fed to one row only."""
        slot = int(self._layout.slots.slot_of_row[row])
        audio = slot // self._layout.slots.group
        binding = _Binding(
            self._model,
            _Call(len(tokens), len(at), len(at), 0),
            [array[audio : audio + 1] for array in self._cross.views()],
            [array[slot : slot + 1] for array in self._cache.views()],
        )
        binding.tokens[...], binding.start[...], binding.at[...] = tokens, self._length[row], at
        self._history.write(binding.start, len(tokens), slot)
        binding.run(self._model.session)
        found: F32 = binding.logits[0]
        return found

    def _one_by_one(self, tokens: Int, lengths: Int, wanted: Int) -> F32:
        """Feed several tokens on a past one by one; ONNX Runtime 1.19 cannot do it in one call."""
        n_seq, n_new = tokens.shape
        self._reserve(int(self._length.max()) + n_new)
        scores = np.zeros((*wanted.shape, self._dims.n_vocab), np.float32)
        zero = np.zeros((n_seq, 1), np.int64)
        for step in range(n_new):
            # a row without further tokens writes to its next free position, which is overwritten
            start = self._length + np.minimum(step, lengths)
            last = self._own(self._run(tokens[:, step : step + 1], start, zero).logits)
            for row, column in zip(*np.nonzero(wanted == step)):
                scores[row, column] = last[row, 0]
        return scores

    def _run(
        self,
        tokens: Int,
        start: Int,
        wanted: Int,
        *,
        n_exact: int | None = None,
        aligned: Int = _NONE,
    ) -> _Binding:
        """One call of the decoder; its outputs have a row per slot, valid until the next call.

        ``n_exact``: number of requested positions with exact scores (default: all); the scores of
        the following ones are approximate.
        """
        owner = self._layout.slots.row_of_slot
        n_at = wanted.shape[1]
        n_exact = n_at if n_exact is None else n_exact
        binding = self._binding(_Call(tokens.shape[1], n_at, n_exact, len(aligned)))
        binding.tokens[...] = tokens[owner]
        binding.start[...] = start[owner]
        binding.at[...] = wanted[owner]
        binding.aligned[...] = aligned
        self._history.write(binding.start, tokens.shape[1])
        binding.run(self._model.session)
        return binding

    def _own(self, values: F32) -> F32:
        """The values of the rows, in order of rows instead of slots."""
        return values if self._layout.slots.is_identity else values[self._layout.slots.slot_of_row]

    def _binding(self, call: _Call) -> _Binding:
        key = (self._cache.n, self._cross.n, *call)
        if key not in self._bindings:
            self._bindings[key] = _Binding(
                self._model, call, self._cross.views(), self._cache.views()
            )
        return self._bindings[key]

    def _reserve(self, n: int) -> None:
        """Grow the cache to n positions per row and to all rows."""
        if n <= self._capacity and self._pending is None:
            return
        if n > self._capacity:
            sizes = CAPACITIES[self._model.dialect]
            self._capacity = next((size for size in sizes if size >= n), -(-n // 64) * 64)
        n_slots, n_old = len(self._layout.slots.row_of_slot), self._cache.n
        # double the capacity, so that a batch that grows row by row is not copied each time
        room = n_slots if self._pending is None else max(n_slots, 2 * n_old)
        shape = (room, self._dims.n_text_head, self._capacity, HEAD_DIM)
        source = np.arange(n_old) if self._pending is None else self._pending
        used = int(self._length.max(initial=0))
        old = self._cache.views()
        new = [np.zeros(shape, self._model.kv) for _ in range(2 * self._dims.n_text_layer)]
        for array, past in zip(new, old):
            array[:n_slots, :, :used] = past[source, :, :used]
        before, self._history = self._history, CacheHistory(n_slots, self._capacity)
        if old:
            self._history.copy_from(np.arange(n_slots), before, source, used)
        self._cache = Buffers(new, n_slots)
        self._pending = None
        self._bindings.clear()

    def gather(self, rows: Int) -> None:
        self._check_open()
        if len(rows) == len(self._length) and (rows == np.arange(len(rows))).all():
            return
        self._rearrange(self._layout.gather(rows))

    def _rearrange(self, source: Int) -> None:
        """Slot i takes the past of old slot ``source[i]``.

        If the cache has too few slots, this is postponed until the next call: windows that join
        the batch are then copied at the same time.
        """
        if not self._cache.arrays:  # nothing was fed yet
            self._cache.n = len(source)
        elif self._pending is not None:
            self._pending = self._pending[source]
        elif len(source) > len(self._cache.arrays[0]):
            self._pending = source
        else:
            self._cache.arrange(
                source, self._history.rearrange(source, int(self._length.max(initial=0)))
            )

    def _drop_audios(self) -> None:
        plan = self._layout.compact()
        if plan is None:
            return
        source = plan.audios
        if self._own_cross:
            self._cross.arrange(source)
        else:
            self._cross = Buffers([array[source] for array in self._cross.arrays], len(source))
            self._own_cross = True
            self._bindings.clear()
        self._rearrange(plan.slots)

    def append(self, other: Session) -> None:
        if not isinstance(other, OrtSession) or other._model is not self._model:
            raise EngineError("only a session of the same backend can be appended")
        self._check_open()
        other._check_open()
        used = int(other._length.max(initial=0))
        self._reserve(used)
        self._widen(other._n_encoded)
        plan = self._layout.append(other._layout)
        if self._cross.resize(self._layout.n_audio, copy=not self._own_cross):
            self._bindings.clear()
        self._own_cross = True
        self._model.cross.put(self._cross.arrays, plan.audios, other._cross.views())
        self._rearrange(plan.slots)
        if used:
            self._reserve(used)
            source = (
                plan.source_slots if other._pending is None else other._pending[plan.source_slots]
            )
            for array, past in zip(self._cache.arrays, other._cache.arrays):
                array[plan.new_slots, :, :used] = past[source, :, :used]
            self._history.copy_from(plan.new_slots, other._history, source, used)
        other.close()

    @property
    def _n_encoded(self) -> int:
        """Encoded positions per audio that the arrays can hold."""
        return self._model.cross.n_keys(self._cross.arrays)

    def _widen(self, n_encoded: int) -> None:
        """Grow the arrays to ``n_encoded`` positions per audio."""
        if n_encoded > self._n_encoded:
            wide = self._model.cross.pad_positions(self._cross.arrays, n_encoded)
            self._cross = Buffers(wide, self._cross.n)
            self._own_cross = True
            self._bindings.clear()

    def close(self) -> None:
        self._bindings.clear()
        self._cache = Buffers((), 0)
        self._cross = Buffers((), 0)


class _Binding:
    """Buffers bound to the decoder once per call shape; only their contents change."""

    def __init__(
        self,
        model: Decoder,
        call: _Call,
        cross: Sequence[NDArray],
        cache: Sequence[NDArray],
    ) -> None:
        decoder, dims = model.session, model.dims
        n_seq, (n_new, n_at, n_exact, n_aligned) = len(cache[0]), call
        self.tokens = np.zeros((n_seq, n_new), np.int64)
        self.start = np.zeros(n_seq, np.int64)
        self.at = np.zeros((n_seq, n_at), np.int64)
        self.aligned = np.zeros(n_aligned, np.int64)
        self.logits = np.zeros((n_seq, n_exact, dims.n_vocab), np.float32)
        n_audio, n_ctx = len(cross[0]), model.cross.n_keys(cross)
        self._watched = {
            output.name: np.zeros((n_audio, output.shape[1], n_aligned, n_ctx), np.float32)
            for output in decoder.get_outputs()
            if output.name.startswith("attention_")
        }
        self._io = decoder.io_binding()
        self._keep = (tuple(cross), tuple(cache))  # bound by address: must outlive the binding
        for name in ("tokens", "start", "at", "aligned"):
            self._input(name, getattr(self, name))
        names = [(i, kind) for i in range(dims.n_text_layer) for kind in ("k", "v")]
        for (i, kind), held in zip(names, cache):
            self._input(f"self_{kind}_{i}", held)
            self._output(f"self_{kind}_{i}_out", held)
        for name, audio in zip(model.cross.names, cross):
            self._input(name, audio)
        self._output("logits", self.logits)
        if model.head is not None:
            self._bind_two_stage_head(dims, n_at, n_exact)
        for name, scores in self._watched.items():
            self._output(name, scores)

    def _bind_two_stage_head(self, dims: ModelDims, n_at: int, n_exact: int) -> None:
        n_seq = len(self.tokens)
        self._columns = np.split(np.arange(n_at), [n_exact])
        for name, columns in zip((EXACT, APPROXIMATE), self._columns):
            self._input(name, columns)
        self.approximate = np.zeros((n_seq, n_at - n_exact, dims.n_vocab), np.float32)
        self.hidden = np.zeros((n_seq, n_at, dims.n_text_state), np.float32)
        self._output(APPROXIMATE_SCORES, self.approximate)
        self._output(HIDDEN, self.hidden)

    def _input(self, name: str, array: NDArray) -> None:
        self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _output(self, name: str, array: NDArray) -> None:
        self._io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    @property
    def attention(self) -> F32:
        """Scores [A, n_heads, n_aligned, T] of all alignment heads, in the order of layers."""
        return np.concatenate(list(self._watched.values()), axis=1)

    def run(self, decoder: Any) -> None:
        try:
            decoder.run_with_iobinding(self._io)
        except Exception as error:  # the runtime's errors share no base class
            raise failed_run(error) from error
