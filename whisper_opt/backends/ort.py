"""The ONNX Runtime backend (CPU): IO binding, a cache updated in place, capacity in buckets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from whisper_opt.arrays import F32, Int, NDArray
from whisper_opt.dims import HEAD_DIM, ModelDims
from whisper_opt.engine import Engine
from whisper_opt.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.protocol import Encoded
from whisper_opt.topk import HostLogits

__all__ = ["CAPACITIES", "OrtBackend", "OrtEncoded", "OrtSession"]

CAPACITIES = (64, 128, 256, 448)
"""Cache sizes in positions: a step costs less in a small cache, and growing copies it once."""


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            "ONNX Runtime is not installed, and it is what runs the engine;"
            " pip install 'whisper-opt[cpu]'"
        ) from error
    return onnxruntime


@dataclasses.dataclass(frozen=True)
class OrtEncoded:
    """Cross-attention keys and values: per decoder layer k then v, float32 [A, H, T, 64]."""

    cross: tuple[F32, ...]

    def __len__(self) -> int:
        return len(self.cross[0])

    def take(self, audios: Sequence[int]) -> OrtEncoded:
        return OrtEncoded(tuple(array[list(audios)] for array in self.cross))


class OrtBackend:
    """Runs the encoder and decoder graphs of an engine on the CPU with ONNX Runtime."""

    def __init__(self, engine: Engine, *, threads: int | None = None) -> None:
        """Load both graphs.

        Args:
            engine: an opened engine directory.
            threads: threads within an operator; None leaves the choice (one a physical core) to
                ONNX Runtime.

        Raises:
            BackendUnavailable: ONNX Runtime is missing, or too old for the engine's dialect.
            EngineError: a graph cannot be loaded.
            OptionError: ``threads`` is not a positive integer.
        """
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
        ):
            raise OptionError(f"threads is {threads!r}; expected a positive integer or None")
        self.dims: ModelDims = engine.manifest.dims
        self.dialect = engine.manifest.dialect
        self._runtime = _import_onnxruntime()
        self.encoder = self._load(engine, "encoder.onnx", threads)
        self.decoder = self._load(engine, "decoder.onnx", threads)
        self._cross_names = [
            f"cross_{kind}_{i}" for i in range(self.dims.n_text_layer) for kind in ("k", "v")
        ]

    def _load(self, engine: Engine, name: str, threads: int | None) -> Any:
        runtime = self._runtime
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        # the two graphs take turns: a pool that spins after its run would slow the other one
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            return runtime.InferenceSession(
                str(engine.file(name)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's errors share no base class
            reason = str(error).splitlines()[0][:300]
            too_new = any(word in str(error).lower() for word in ("opset", "ir version"))
            if engine.manifest.dialect == "standard" and too_new:
                raise BackendUnavailable(
                    f"ONNX Runtime {runtime.__version__} cannot run the standard dialect of"
                    f" {engine.path} (opset 24); it needs 1.24 or later, or an engine exported"
                    " with --dialect contrib"
                ) from error
            raise EngineError(
                f"ONNX Runtime {runtime.__version__} cannot load {engine.file(name)}: {reason}"
            ) from error

    def encode(self, mel: F32) -> OrtEncoded:
        """See :meth:`whisper_opt.protocol.Backend.encode`; raises EngineError on a wrong shape."""
        if mel.ndim != 3 or mel.shape[1] != self.dims.n_mels:
            raise EngineError(
                f"mel has shape {list(mel.shape)}; this engine expects [n_audio,"
                f" {self.dims.n_mels}, n_frames]"
            )
        longest = self.dims.n_audio_ctx * self.dims.frames_per_position
        if not 1 <= mel.shape[2] <= longest:
            raise EngineError(
                f"mel has {mel.shape[2]} frames; this engine encodes 1 to {longest} at a time"
            )
        mel = np.ascontiguousarray(mel, np.float32)
        return OrtEncoded(tuple(self.encoder.run(self._cross_names, {"mel": mel})))

    def open(self, audio: Encoded) -> OrtSession:
        """See :meth:`whisper_opt.protocol.Backend.open`."""
        if not isinstance(audio, OrtEncoded):
            raise EngineError(f"audio was encoded by another backend ({type(audio).__name__})")
        return OrtSession(self, audio)


class _Slots:
    """Where logical rows sit: the decoder wants [A, G] rows, an equal number G for every audio.

    Row r sits in slot ``of_row[r]``. Slots that no row owns repeat a row of their audio; what they
    compute is thrown away.
    """

    def __init__(self, audio_of_row: Int, audios: Sequence[int]) -> None:
        """``audios``: the audios held in the cross buffers, in their order there."""
        members: dict[int, list[int]] = {audio: [] for audio in audios}
        for row, audio in enumerate(audio_of_row.tolist()):
            members[audio].append(row)
        self.group = max(len(rows) for rows in members.values())
        self.of_row = np.zeros(len(audio_of_row), np.int64)
        owner = np.zeros(len(audios) * self.group, np.int64)
        for index, rows in enumerate(members.values()):
            for place in range(self.group):
                slot = index * self.group + place
                owner[slot] = rows[min(place, len(rows) - 1)] if rows else 0
                if place < len(rows):
                    self.of_row[rows[place]] = slot
        self.owner = owner
        """The row whose tokens and cache each slot carries."""
        self.plain = np.array_equal(self.of_row, np.arange(len(owner)))
        """Whether every slot is a row and they stand in order."""


class OrtSession:
    """Live hypotheses of a few audios; see :class:`whisper_opt.protocol.Session`."""

    def __init__(self, backend: OrtBackend, audio: OrtEncoded) -> None:
        """One empty row an audio."""
        self._backend = backend
        self._cross = audio.cross
        self._audios = list(range(len(audio)))
        self._audio_of_row = np.arange(len(audio), dtype=np.int64)
        self._length = np.zeros(len(audio), np.int64)
        self._slots = _Slots(self._audio_of_row, self._audios)
        self._capacity = 0
        self._cache: list[F32] = []
        self._bindings: dict[tuple[int, int], _Binding] = {}

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> HostLogits:
        n_seq, n_new = tokens.shape
        if lengths is None:
            lengths = np.full(n_seq, n_new, np.int64)
        limit = self._backend.dims.n_text_ctx
        longest = int((self._length + lengths).max())
        if longest > limit:
            raise EngineError(f"a row would grow to {longest} tokens; the model holds {limit}")
        wanted = (lengths - 1)[:, None]
        if at is not None:
            wanted = np.concatenate([at, wanted], axis=1)
        if n_new > 1 and self._backend.dialect == "contrib" and self._length.any():
            scores = self._one_by_one(tokens, lengths, wanted)
        else:
            self._reserve(int(self._length.max()) + n_new)
            scores = self._run(tokens, self._length, wanted)
        self._length = self._length + lengths
        return HostLogits(scores)

    def _one_by_one(self, tokens: Int, lengths: Int, wanted: Int) -> F32:
        """Feed several tokens on top of a past as single steps, which every version does right."""
        n_seq, n_new = tokens.shape
        self._reserve(int(self._length.max()) + n_new)
        scores = np.zeros((*wanted.shape, self._backend.dims.n_vocab), np.float32)
        zero = np.zeros((n_seq, 1), np.int64)
        for step in range(n_new):
            # a row that has no more tokens writes to its next free position, to be overwritten
            start = self._length + np.minimum(step, lengths)
            last = self._run(tokens[:, step : step + 1], start, zero)
            for row, column in zip(*np.nonzero(wanted == step)):
                scores[row, column] = last[row, 0]
        return scores

    def _run(self, tokens: Int, start: Int, wanted: Int) -> F32:
        owner = self._slots.owner
        binding = self._binding(tokens.shape[1], wanted.shape[1])
        binding.tokens[...] = tokens[owner]
        binding.start[...] = start[owner]
        binding.at[...] = wanted[owner]
        binding.run(self._backend.decoder)
        if self._slots.plain:
            return binding.logits
        return binding.logits[self._slots.of_row]

    def _binding(self, n_new: int, n_at: int) -> _Binding:
        key = (n_new, n_at)
        if key not in self._bindings:
            self._bindings[key] = _Binding(
                self._backend, len(self._slots.owner), n_new, n_at, self._cross, self._cache
            )
        return self._bindings[key]

    def _reserve(self, n: int) -> None:
        """Make room for n positions in every row."""
        if n <= self._capacity:
            return
        capacity = next((size for size in CAPACITIES if size >= n), -(-n // 64) * 64)
        dims = self._backend.dims
        shape = (len(self._slots.owner), dims.n_text_head, capacity, HEAD_DIM)
        old, held = self._cache, self._capacity
        self._cache = [np.zeros(shape, np.float32) for _ in range(2 * dims.n_text_layer)]
        for new, past in zip(self._cache, old):
            new[:, :, :held] = past
        self._capacity = capacity
        self._bindings.clear()

    def gather(self, rows: Int) -> None:
        if len(rows) == len(self._length) and (rows == np.arange(len(rows))).all():
            return
        before = self._slots
        self._audio_of_row = self._audio_of_row[rows]
        self._length = self._length[rows]
        self._drop_audios()
        self._slots = _Slots(self._audio_of_row, self._audios)
        source = before.of_row[rows[self._slots.owner]]
        if len(source) == len(before.owner) and (source == np.arange(len(source))).all():
            return
        if not self._cache:  # nothing was fed yet
            return
        used = int(self._length.max())
        shape = (len(source), *self._cache[0].shape[1:])
        for i, past in enumerate(self._cache):
            new = np.zeros(shape, np.float32)
            new[:, :, :used] = past[source, :, :used]
            self._cache[i] = new
        self._bindings.clear()

    def _drop_audios(self) -> None:
        """Forget audios without rows once they are half of what every step reads."""
        live = set(self._audio_of_row.tolist())
        if 2 * len(live) > len(self._audios):
            return
        keep = [i for i, audio in enumerate(self._audios) if audio in live]
        self._audios = [self._audios[i] for i in keep]
        self._cross = tuple(array[keep] for array in self._cross)
        self._bindings.clear()

    def close(self) -> None:
        self._bindings.clear()
        self._cache = []
        self._cross = ()


class _Binding:
    """Buffers bound to the decoder once, for one shape of call; only their contents change."""

    def __init__(
        self,
        backend: OrtBackend,
        n_seq: int,
        n_new: int,
        n_at: int,
        cross: Sequence[F32],
        cache: Sequence[F32],
    ) -> None:
        self.tokens = np.zeros((n_seq, n_new), np.int64)
        self.start = np.zeros(n_seq, np.int64)
        self.at = np.zeros((n_seq, n_at), np.int64)
        self.logits = np.zeros((n_seq, n_at, backend.dims.n_vocab), np.float32)
        self._io = backend.decoder.io_binding()
        self._keep = (tuple(cross), tuple(cache))  # bound by address: must outlive the binding
        for name, array in (("tokens", self.tokens), ("start", self.start), ("at", self.at)):
            self._input(name, array)
        names = [(i, kind) for i in range(backend.dims.n_text_layer) for kind in ("k", "v")]
        for (i, kind), held, heard in zip(names, cache, cross):
            self._input(f"self_{kind}_{i}", held)
            self._output(f"self_{kind}_{i}_out", held)
            self._input(f"cross_{kind}_{i}", heard)
        self._output("logits", self.logits)

    def _input(self, name: str, array: NDArray) -> None:
        self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _output(self, name: str, array: NDArray) -> None:
        self._io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self, decoder: Any) -> None:
        decoder.run_with_iobinding(self._io)
