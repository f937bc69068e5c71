"""The ONNX Runtime backend (CPU): loads the two graphs of an engine, encodes and opens sessions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from whisper_opt.arrays import F32, Int, NDArray
from whisper_opt.backends.ort_session import Decoder, OrtSession
from whisper_opt.dims import ModelDims
from whisper_opt.engine import Engine
from whisper_opt.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.protocol import Attention, Encoded
from whisper_opt.screen import Screen

__all__ = ["OrtBackend", "OrtEncoded"]


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
    """Cross-attention keys [A, H, 64, T] and values [A, H, T, 64]: per layer k then v.

    Float32, or float16 where the engine computes in that; so is the cache of a session.
    """

    cross: tuple[NDArray, ...]

    def __len__(self) -> int:
        return len(self.cross[0])

    def take(self, audios: Sequence[int]) -> OrtEncoded:
        if len(audios) == 1:  # a view
            return OrtEncoded(tuple(array[audios[0] :][:1] for array in self.cross))
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
        graph = self._load(engine, "decoder.onnx", threads)
        screen = Screen.of(engine.tensor) if engine.manifest.tensors else None
        self.decoder = Decoder(graph, self.dims, self.dialect, screen)
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
        return OrtSession(self.decoder, audio.cross)

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """See :meth:`whisper_opt.protocol.Backend.attention`."""
        session = self.open(audio)
        try:
            return session.attention(tokens, lengths)
        finally:
            session.close()
