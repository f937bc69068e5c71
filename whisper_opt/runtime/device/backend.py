"""A Whisper model on a device: encoding, sessions and memory limits."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Attention, Encoded
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.core.interruption import Interruption
from whisper_opt.runtime.device.cache import CrossKV
from whisper_opt.runtime.device.executor import OPTIONAL, Executor, Tensor
from whisper_opt.runtime.device.session import DeviceSession
from whisper_opt.runtime.device.workspace import Arena, Workspace
from whisper_opt.runtime.inputs import checked_mel

__all__ = ["DeviceBackend", "DeviceEncoded"]

_log = logging.getLogger(__name__)

DECODING = ("decoder", "choose", "reorder", *OPTIONAL)
N_IDLE = 2
"""Workspaces kept for later sessions: one for a batch, one for windows that join it."""
_MIB = 1 << 20


class DeviceEncoded:
    """Windows that were encoded together; their memory is freed with the last reference."""

    def __init__(self, backend: DeviceBackend, cross: CrossKV, audios: tuple[int, ...]) -> None:
        """``audios``: indices of the windows in ``cross``."""
        self.backend, self.cross, self.audios = backend, cross, audios

    def __len__(self) -> int:
        return len(self.audios)

    def take(self, audios: Sequence[int]) -> DeviceEncoded:
        chosen = tuple(self.audios[audio] for audio in audios)
        return DeviceEncoded(self.backend, self.cross, chosen)


class DeviceBackend:
    """Implements :class:`whisper_opt.core.backend.Backend` over an executor.

    It may be used from several threads, and so may its sessions, each by one thread at a time.
    Calls run one at a time: a lock is held during each of them, and none between them.
    """

    session_type: type[DeviceSession] = DeviceSession

    def __init__(self, executor: Executor, dims: ModelDims) -> None:
        """Use an executor; :meth:`close` closes it."""
        self.executor, self.dims = executor, dims
        self._encoder = Workspace(executor, ("encoder",))
        self._decoding = tuple(graph for graph in DECODING if graph in executor.graphs)
        for graph in set(OPTIONAL) - set(executor.graphs):
            _log.info("the engine has no %s.onnx: decoding uses single steps", graph)
        # reentrant: the garbage collector may end a session during any call
        self.lock = threading.RLock()
        self._idle: list[Workspace] = []
        self._call_limits: dict[tuple[int, ...], int] = {}

    def encode(self, mel: F32, interruption: Interruption | None = None) -> DeviceEncoded:
        """See :meth:`whisper_opt.core.backend.Backend.encode`.

        Raises:
            EngineError: the shape is wrong, or there is not enough memory.
        """
        mel = checked_mel(self.dims, mel)
        n_audio, n_frames = len(mel), mel.shape[2]
        n_ctx = -(-n_frames // self.dims.frames_per_position)
        tensors = {
            name: Tensor(tensor.dtype, tuple(n_ctx if n < 0 else n for n in (0, *tensor.shape[1:])))
            for name, tensor in self.executor.tensors("encoder").items()
            if name != "mel"
        }
        step = self._encoded_at_once(mel.shape)
        with self.lock:
            self.require_memory(n_audio, lambda n: Arena.size(tensors, n) + mel[:step].nbytes)
            block = self.executor.allocate(Arena.size(tensors, n_audio))
            cross = CrossKV(Arena(block, tensors, n_audio), tensors)
            weakref.finalize(cross, block.free)
            for begin in range(0, n_audio, step):
                part = mel[begin : begin + step]
                inputs = self._encoder.staging("mel", {"mel": (np.float32, part.shape)})
                inputs.host["mel"][...] = part
                self._encoder.upload(inputs)
                outputs = cross.arena.entries(begin, len(part))
                self._encoder.run("encoder", {**inputs.device, **outputs})
            self._encoder.synchronize()
        return DeviceEncoded(self, cross, tuple(range(n_audio)))

    def _encoded_at_once(self, shape: tuple[int, ...]) -> int:
        for n in range(shape[0], 0, -1):
            if self.executor.fits("encoder", {"mel": (n, *shape[1:])}):
                return n
        raise EngineError(
            f"the encoder was not built for {shape[2]} frames; it takes whole windows of"
            f" {self.dims.n_audio_ctx * self.dims.frames_per_position}"
        )

    def open(self, audio: Encoded) -> DeviceSession:
        """See :meth:`whisper_opt.core.backend.Backend.open`.

        Raises:
            EngineError: another backend encoded the audio, or there is not enough memory.
        """
        if not isinstance(audio, DeviceEncoded) or audio.backend is not self:
            raise EngineError(f"audio was encoded by another backend ({type(audio).__name__})")
        with self.lock:
            workspace = self._acquire()
            try:
                return self.session_type(self, workspace, audio.cross, audio.audios)
            except BaseException:
                self.release(workspace)
                raise

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """See :meth:`whisper_opt.core.backend.Backend.attention`."""
        session = self.open(audio)
        try:
            return session.attention(tokens, lengths)
        finally:
            session.close()

    # --- what sessions share ----------------------------------------------------------------------

    def _acquire(self) -> Workspace:
        if self._idle:
            return self._idle.pop()
        n_bytes = self.executor.stream_memory(self._decoding)
        if n_bytes > self.executor.available():
            raise EngineError(
                f"a session needs {_mib(n_bytes)} of working memory on the device;"
                f" {_mib(self.executor.available())} are free: lower batch_size or beam_size"
            )
        return Workspace(self.executor, self._decoding)

    def release(self, workspace: Workspace) -> None:
        """Keep a workspace for the next session, or close it if enough are kept."""
        kept = False
        with self.lock:
            try:
                workspace.synchronize()
                kept = len(self._idle) < N_IDLE
                if kept:
                    self._idle.append(workspace)
            finally:
                if not kept:
                    workspace.close()

    def _trim(self) -> None:
        idle, self._idle = self._idle, []
        for workspace in idle:
            workspace.close()

    def require_memory(self, n_audio: int, growth: Callable[[int], int]) -> None:
        """See :class:`whisper_opt.runtime.device.cache.DeviceModel`."""
        needed = growth(n_audio)
        if needed <= 0 or needed <= self.executor.available():
            return
        self._trim()
        free = self.executor.available()
        if needed <= free:
            return
        fitting = max((n for n in range(1, n_audio) if growth(n) <= free), default=0)
        advice = f"{fitting} would fit: lower batch_size" if fitting else "not even one fits"
        raise EngineError(
            f"{n_audio} window(s) need {_mib(needed)} more device memory, of which"
            f" {_mib(free)} are free; {advice}, or lower beam_size or best_of"
        )

    def tokens_per_call(
        self, n_audio: int, n_slots: int, n_new: int, n_at: int, *, aligned: bool
    ) -> int:
        """See :class:`whisper_opt.runtime.device.cache.DeviceModel`."""
        key = (n_audio, n_slots, n_new, n_at, aligned)
        if key not in self._call_limits:
            self._call_limits[key] = self._tokens_per_call(
                n_audio, n_slots, n_new, n_at, aligned=aligned
            )
        return self._call_limits[key]

    def _tokens_per_call(
        self, n_audio: int, n_slots: int, n_new: int, n_at: int, *, aligned: bool
    ) -> int:
        def fits(n: int, width: int) -> bool:
            slots = n * (n_slots // n_audio)
            shapes = {
                "tokens": (slots, width),
                "start": (slots,),
                "at": (slots, n_at if width == n_new else min(n_at, width)),
                "aligned": (width if aligned else 0,),
                "cross_k_0": (n,),
                "self_k_0": (slots,),
            }
            return self.executor.fits("decoder", shapes)

        for width in (n_new, *(1 << power for power in range(n_new.bit_length() - 1, -1, -1))):
            if fits(n_audio, width):
                return width
        largest = max((n for n in range(1, n_audio) if fits(n, 1)), default=0)
        raise EngineError(
            f"the plans were built for fewer than {n_audio} window(s) of {n_slots // n_audio}"
            f" hypotheses: at most {largest} of them; lower batch_size or beam_size, or build with"
            " a larger --max-batch or --max-beam"
        )

    def close(self) -> None:
        """Release everything; all sessions must be closed."""
        with self.lock:
            self._trim()
            self._encoder.close()
            self.executor.close()


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / _MIB:.1f} MiB"
