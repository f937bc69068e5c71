"""The backend for models that Optimum exported, on the CPU with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Union

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.backend import Attention, Encoded
from whisper_opt.core.dims import N_FRAMES, ModelDims
from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.core.interruption import Interruption
from whisper_opt.core.options import LoadOptions
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.inputs import check_row_lengths, checked_mel
from whisper_opt.runtime.optimum.directory import OptimumEngine
from whisper_opt.runtime.optimum.graphs import load_graphs
from whisper_opt.runtime.optimum.session import OptimumSession

__all__ = ["OptimumBackend", "OptimumEncoded", "open_optimum"]

_log = logging.getLogger(__name__)

GAINS: Mapping[str, str] = {"fp32": "about 5 times as fast", "int8": "about 3 times as fast"}
"""Speed of an int8 engine relative to graphs of Optimum of a precision, as measured for the table
in docs/engines.md."""
_NO_ATTENTION = (
    "word times need the cross-attention of the decoder, which the graphs of {path} do not return;"
    " export the checkpoint with whisper-opt export, or again with Optimum and the outputs"
    " cross_attentions.N"
)


def open_optimum(engine: Engine, options: LoadOptions) -> OptimumBackend:
    """Load the graphs of a directory of Optimum as the options say, with a notice of their speed.

    Raises:
        BackendUnavailable: ONNX Runtime is missing.
        EngineError: a graph is damaged or not as Optimum exports it.
        OptionError: an option does not apply to such graphs, or there are none of this precision.
    """
    assert isinstance(engine, OptimumEngine), engine
    for name, plain in (("kernels", ("auto", "off")), ("encoder_precision", ("engine",))):
        given = getattr(options, name)
        if given not in plain:
            raise OptionError(
                f"{name} is {given!r}, but {engine.path} was exported by Optimum, whose graphs run"
                " as they are; leave the option out, or export the checkpoint with whisper-opt"
                " export"
            )
    backend = OptimumBackend(engine, options.precision, threads=options.threads)
    _log.warning(
        "%s: graphs of Optimum in %s; an int8 engine of the same checkpoint is %s:"
        " whisper-opt export CHECKPOINT DIR --precision int8",
        engine.path,
        backend.precision,
        GAINS.get(backend.precision, "faster"),
    )
    return backend


@dataclasses.dataclass(frozen=True)
class OptimumEncoded:
    """Hidden states of the encoder, [n_audio, n_audio_ctx, n_audio_state].

    The decoder computes its cross-attention keys and values from them when a session starts.
    """

    hidden: NDArray

    def __len__(self) -> int:
        return len(self.hidden)

    def take(self, audios: Sequence[int]) -> OptimumEncoded:
        if len(audios) == 1:  # a view
            return OptimumEncoded(self.hidden[audios[0] :][:1])
        return OptimumEncoded(self.hidden[list(audios)])


class OptimumBackend:
    """Runs the graphs of a directory of Optimum.

    May be used from several threads at once; so may its sessions, each from one thread at a time.

    Attributes:
        precision: precision of the graphs.
        no_word_times: why there is no cross-attention; empty if there is.
    """

    def __init__(
        self, engine: OptimumEngine, precision: str = "auto", *, threads: Union[int, None] = None
    ) -> None:
        """Load the graphs of one precision.

        Args:
            engine: an opened directory.
            precision: which graphs; ``auto``: those of the manifest.
            threads: threads within an operator; default: ONNX Runtime's choice.

        Raises:
            BackendUnavailable: ONNX Runtime is missing.
            EngineError: a graph is damaged or not as Optimum exports it.
            OptionError: there are no graphs of this precision.
        """
        files = engine.select(precision)
        self.dims: ModelDims = engine.manifest.dims
        self.precision = files.precision
        self._encoder, self._decoder = load_graphs(files, self.dims, threads)
        self.no_word_times = (
            "" if self._decoder.has_attention else _NO_ATTENTION.format(path=engine.path)
        )
        self._heads = sorted(engine.manifest.alignment_heads or self.dims.default_alignment_heads)

    def encode(self, mel: F32, interruption: Interruption | None = None) -> OptimumEncoded:
        """See :meth:`whisper_opt.core.backend.Backend.encode`; pads shorter windows with zeros.

        Raises:
            EngineError: the shape is wrong, or ONNX Runtime failed.
        """
        mel = checked_mel(self.dims, mel)
        missing = N_FRAMES - mel.shape[2]
        if missing:
            mel = np.pad(mel, ((0, 0), (0, 0), (0, missing)))
        return OptimumEncoded(self._encoder.run(mel))

    def open(self, audio: Encoded) -> OptimumSession:
        """See :meth:`whisper_opt.core.backend.Backend.open`."""
        return OptimumSession(self._decoder, self.dims, self._hidden(audio))

    def _hidden(self, audio: Encoded) -> NDArray:
        if not isinstance(audio, OptimumEncoded):
            raise EngineError(f"audio was encoded by another backend ({type(audio).__name__})")
        return audio.hidden

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """See :meth:`whisper_opt.core.backend.Backend.attention`.

        The graphs return attention after the softmax. The logarithm of it differs from the scores
        before by a constant per head and token, which the next softmax removes.

        Raises:
            EngineError: the graphs do not return cross-attention, or a row is too long.
        """
        if self.no_word_times:
            raise EngineError(self.no_word_times)
        hidden, dims = self._hidden(audio), self.dims
        check_row_lengths(dims, lengths)
        n_audio, n_tokens = tokens.shape
        scores = np.zeros((n_audio, len(self._heads), n_tokens, dims.n_audio_ctx), np.float32)
        logits = np.zeros((n_audio, n_tokens, dims.n_vocab), np.float32)
        layers = sorted({layer for layer, _ in self._heads})
        for i, n in enumerate(lengths.tolist()):  # one by one: a row has megabytes of attention
            row = slice(i, i + 1)
            logits[row, :n], found = self._decoder.attention(tokens[row, :n], hidden[row], layers)
            weights = dict(zip(layers, found))
            for j, (layer, head) in enumerate(self._heads):
                scores[i, j, :n] = weights[layer][0, head]
            least = np.finfo(np.float32).tiny
            scores[i, :, :n] = np.log(np.maximum(scores[i, :, :n], least))
        return Attention(scores, logits)
