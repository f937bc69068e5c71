"""The ONNX Runtime backend (CPU): loads the two graphs of an engine, encodes and opens sessions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from whisper_opt.arrays import F32, Int, NDArray
from whisper_opt.backends.inputs import checked_mel
from whisper_opt.backends.ort_graph import load_graph
from whisper_opt.backends.ort_session import Decoder, OrtSession
from whisper_opt.background import Background
from whisper_opt.dims import ModelDims
from whisper_opt.engine import Engine
from whisper_opt.errors import EngineError, OptionError
from whisper_opt.padding import Heard, Padding
from whisper_opt.protocol import Attention, Encoded
from whisper_opt.screen import Screen

__all__ = ["Graph", "OrtBackend", "OrtEncoded"]


class Graph(Protocol):
    """What computes a graph, called as a session of ONNX Runtime is."""

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray]) -> Sequence[NDArray]:
        """The outputs called ``names``."""


@dataclasses.dataclass(frozen=True)
class OrtEncoded:
    """Cross-attention keys [A, H, 64, T] and values [A, H, T, 64]: per layer k then v.

    Float32, or float16 where the engine computes in that; so is the cache of a session. Of an
    engine that hears padding by parts, ``heard`` says what was heard, and keys have 65 rows.
    """

    cross: tuple[NDArray, ...]
    heard: Heard | None = None

    def __len__(self) -> int:
        return len(self.cross[0])

    def take(self, audios: Sequence[int]) -> OrtEncoded:
        if len(audios) == 1:  # a view
            return OrtEncoded(tuple(array[audios[0] :][:1] for array in self.cross), self.heard)
        return OrtEncoded(tuple(array[list(audios)] for array in self.cross), self.heard)


class OrtBackend:
    """Runs the encoder and decoder graphs of an engine on the CPU with ONNX Runtime."""

    def __init__(
        self,
        engine: Engine,
        *,
        threads: int | None = None,
        encoder: Graph | None = None,
        whole_padding: bool = False,
    ) -> None:
        """Load both graphs.

        Args:
            engine: an opened engine directory.
            threads: threads within an operator; None leaves the choice (one a physical core) to
                ONNX Runtime.
            encoder: computes the engine's encoder instead of ONNX Runtime.
            whole_padding: hear all padding, where the engine would hear it by parts.

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
        with Background(lambda: load_graph(engine, "decoder.onnx", threads)) as decoder:
            self.encoder: Graph = encoder or load_graph(engine, "encoder.onnx", threads)
            graph = decoder.result()
        screen = Screen.of(engine.tensor) if engine.manifest.tensors else None
        self.decoder = Decoder(graph, self.dims, self.dialect, screen)
        parts = engine.manifest.padding
        self._padding: Padding | None = None
        if parts is not None:
            self._padding = Padding(parts, self.dims.frames_per_position, whole=whole_padding)
        self._cross_names = [
            f"cross_{kind}_{i}" for i in range(self.dims.n_text_layer) for kind in ("k", "v")
        ]

    def encode(self, mel: F32) -> OrtEncoded:
        """See :meth:`whisper_opt.protocol.Backend.encode`; raises EngineError on a wrong shape."""
        mel = checked_mel(self.dims, mel)
        if self._padding is None:
            return OrtEncoded(tuple(self.encoder.run(self._cross_names, {"mel": mel})))
        heard = self._padding.heard(mel)
        cross = tuple(self.encoder.run(self._cross_names, heard.feeds()))
        return OrtEncoded(cross, heard._replace(mel=mel[:0]))

    def open(self, audio: Encoded) -> OrtSession:
        """See :meth:`whisper_opt.protocol.Backend.open`."""
        if not isinstance(audio, OrtEncoded):
            raise EngineError(f"audio was encoded by another backend ({type(audio).__name__})")
        return OrtSession(self.decoder, audio.cross)

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """See :meth:`whisper_opt.protocol.Backend.attention`."""
        session = self.open(audio)
        try:
            found = session.attention(tokens, lengths)
        finally:
            session.close()
        if isinstance(audio, OrtEncoded) and audio.heard is not None:
            return dataclasses.replace(found, scores=audio.heard.spread(found.scores))
        return found
