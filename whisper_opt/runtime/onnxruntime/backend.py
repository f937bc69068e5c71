"""The ONNX Runtime backend for CPUs: loads the graphs of an engine, encodes, opens sessions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Callable, Protocol

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.backend import Attention, Encoded
from whisper_opt.core.background import Background
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError, OptionError, WhisperOptError
from whisper_opt.core.interruption import Interrupted, Interruption
from whisper_opt.runtime.cross_kv import CrossLayout
from whisper_opt.runtime.engine import OWN_ATTENTION_VERSION, PACKED, PLAIN, Engine
from whisper_opt.runtime.head_bounds import HeadBounds
from whisper_opt.runtime.inputs import checked_mel
from whisper_opt.runtime.native import kernel_library
from whisper_opt.runtime.onnxruntime.graph import failed_run, import_onnxruntime, load_graph
from whisper_opt.runtime.onnxruntime.session import Decoder, OrtSession
from whisper_opt.runtime.padding import EncoderInput, PaddingCompression, expand_scores

__all__ = ["Graph", "OrtBackend", "OrtEncoded"]


class Graph(Protocol):
    """A graph that can be run, with the interface of ONNX Runtime's ``InferenceSession``."""

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray]) -> Sequence[NDArray]:
        """The outputs with these names."""


@dataclasses.dataclass(frozen=True)
class OrtEncoded:
    """Cross-attention keys [A, H, 64, T] and values [A, H, T, 64]: per layer k then v.

    They are float32, float16 in fp16 engines, or packed for kernels
    (:class:`whisper_opt.runtime.cross_kv.CrossLayout`). If the engine compresses padding,
    ``counts`` has the number of original positions per encoded position for each audio
    (:class:`whisper_opt.runtime.padding.EncoderInput`), and unpacked keys have 65 rows.
    """

    cross: tuple[NDArray, ...]
    counts: tuple[Int, ...] = ()

    def __len__(self) -> int:
        return len(self.cross[0])

    def take(self, audios: Sequence[int]) -> OrtEncoded:
        counts = tuple(self.counts[i] for i in audios) if self.counts else ()
        if len(audios) == 1:  # a view
            return OrtEncoded(tuple(array[audios[0] :][:1] for array in self.cross), counts)
        return OrtEncoded(tuple(array[list(audios)] for array in self.cross), counts)


class OrtBackend:
    """Runs the encoder and decoder graphs of an engine on the CPU with ONNX Runtime.

    May be used from several threads at once; so may its sessions, each from one thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        threads: int | None = None,
        encoder: Graph | None = None,
        whole_padding: bool = False,
        kernels: bool = True,
    ) -> None:
        """Load both graphs.

        Args:
            engine: an opened engine directory.
            threads: threads within an operator; default: ONNX Runtime's choice, one per physical
                core.
            encoder: runs the encoder instead of ONNX Runtime.
            whole_padding: encode all padding, even if the engine compresses it.
            kernels: use compiled kernels, if they can be used here and the engine has operators
                for them.

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
        load = functools.partial(load_graph, engine, threads=threads, kernels=kernels)
        packed = kernels and PACKED[0] in engine.manifest.files and kernel_library() is not None
        names = PACKED if packed else PLAIN
        self._stops = encoder is None
        with Background(lambda: load(names[1])) as decoder:
            self.encoder: Graph = encoder or load(names[0])
            graph = decoder.result()
        head = (
            HeadBounds.from_tensors(engine.tensor, engine.manifest.tensors)
            if engine.manifest.tensors
            else None
        )
        self._cross = CrossLayout(self.dims.n_text_layer, packed)
        own = packed and engine.manifest.format_version >= OWN_ATTENTION_VERSION
        self.decoder = Decoder(graph, self.dims, self.dialect, head, self._cross, own)
        parts = engine.manifest.padding
        self._padding: PaddingCompression | None = None
        if parts is not None:
            self._padding = PaddingCompression(
                parts, self.dims.frames_per_position, disabled=whole_padding
            )

    def encode(self, mel: F32, interruption: Interruption | None = None) -> OrtEncoded:
        """See :meth:`whisper_opt.core.backend.Backend.encode`.

        Args:
            mel: see there.
            interruption: stops the run within a few operators; not that of another ``encoder``.

        Raises:
            EngineError: the shape is wrong, or ONNX Runtime failed.
            Interrupted: it was stopped.
        """
        mel = checked_mel(self.dims, mel)
        run = functools.partial(self._run_encoder, interruption if self._stops else None)
        if self._padding is None:
            return OrtEncoded(tuple(run({"mel": mel})))
        windows = [self._padding.compress(window[None]) for window in mel]
        arrays = self._encode_windows(windows, run)
        return OrtEncoded(arrays, tuple(each.counts for each in windows))

    def _encode_windows(
        self,
        windows: Sequence[EncoderInput],
        run: Callable[[dict[str, NDArray]], Sequence[NDArray]],
    ) -> tuple[NDArray, ...]:
        """Keys and values of windows; each gets the same result as alone."""
        if len({each.mel.shape[2] for each in windows}) == 1:
            batch = windows[0]._replace(mel=np.concatenate([each.mel for each in windows]))
            return tuple(run(batch.feeds()))
        each = [run(one.feeds()) for one in windows]
        n_keys = max(map(self._cross.n_keys, each))
        rows = zip(*(self._cross.pad_positions(arrays, n_keys) for arrays in each))
        return tuple(np.concatenate(arrays) for arrays in rows)

    def _run_encoder(
        self, interruption: Interruption | None, feeds: Mapping[str, NDArray]
    ) -> Sequence[NDArray]:
        try:
            if interruption is None:
                return self.encoder.run(self._cross.names, feeds)
            options = import_onnxruntime().RunOptions()
            with interruption.stops(functools.partial(setattr, options, "terminate", True)):
                return self.encoder.run(self._cross.names, feeds, options)  # type: ignore[call-arg] # a session's
        except (WhisperOptError, Interrupted):
            raise
        except Exception as error:  # the runtime's errors share no base class
            if interruption is not None and interruption.requested:
                raise Interrupted from error
            raise failed_run(error) from error

    def open(self, audio: Encoded) -> OrtSession:
        """See :meth:`whisper_opt.core.backend.Backend.open`."""
        if not isinstance(audio, OrtEncoded):
            raise EngineError(f"audio was encoded by another backend ({type(audio).__name__})")
        return OrtSession(self.decoder, audio.cross)

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """See :meth:`whisper_opt.core.backend.Backend.attention`."""
        session = self.open(audio)
        try:
            found = session.attention(tokens, lengths)
        finally:
            session.close()
        if isinstance(audio, OrtEncoded) and audio.counts:
            rows = zip(found.scores, audio.counts)
            scores = [expand_scores(row[..., : len(counts)], counts) for row, counts in rows]
            return dataclasses.replace(found, scores=np.stack(scores))
        return found
