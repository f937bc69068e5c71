"""Graphs of Optimum in ONNX Runtime, behind one interface for split and merged decoders.

Inputs and outputs have the names that Optimum gives them. Every graph is checked when it is loaded:
an input that is not known here, or a size that differs from the configuration, is an error then
and not a wrong transcript later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.background import Background
from whisper_opt.core.dims import HEAD_DIM, N_FRAMES, ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.onnxruntime.fork import keep_after_fork
from whisper_opt.runtime.onnxruntime.graph import failed_run, import_onnxruntime, session_options
from whisper_opt.runtime.optimum.directory import GraphFiles

__all__ = ["Decoder", "Encoder", "First", "load_graphs"]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_MEL, _HIDDEN_OUT = "input_features", "last_hidden_state"
_TOKENS, _HIDDEN = "input_ids", "encoder_hidden_states"
_USE_CACHE, _POSITIONS = "use_cache_branch", "cache_position"
_SIDES = ("decoder", "encoder")
_REMEDY = "export it again with Optimum, or export its checkpoint with whisper-opt export"


def _names(kind: str, side: str, n_layer: int) -> list[str]:
    """Names of keys and values; ``kind``: present or past_key_values, ``side``: whose."""
    return [f"{kind}.{i}.{side}.{part}" for i in range(n_layer) for part in ("key", "value")]


class _Graph:
    """One graph, its input and output types, and the checks on them."""

    def __init__(self, path: Path, threads: Union[int, None]) -> None:
        runtime, options = import_onnxruntime(), session_options(threads)
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's errors share no base class
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise EngineError(
                f"ONNX Runtime {runtime.__version__} cannot load {path}: {reason}; copy or download"
                f" it again, or upgrade ONNX Runtime; else {_REMEDY}"
            ) from error
        keep_after_fork(self._session)
        self.path = path
        self.inputs = {value.name: value for value in self._session.get_inputs()}
        self.outputs = {value.name: value for value in self._session.get_outputs()}

    def expect(self, inputs: Mapping[str, Sequence[int]], optional: Sequence[str] = ()) -> None:
        """Check that the graph has these inputs and no others; sizes of -1 are not compared."""
        lacking = [name for name in inputs if name not in self.inputs]
        unknown = [name for name in self.inputs if name not in {*inputs, *optional}]
        if lacking or unknown:
            found = f"has the input {unknown[0]!r:.80}" if unknown else f"has no {lacking[0]!r}"
            raise EngineError(
                f"{self.path} {found}; expected {', '.join(list(inputs)[:4])} and so on, as Optimum"
                f" exports Whisper with a cache of keys and values; {_REMEDY}"
            )
        for name, shape in inputs.items():
            self._check_shape(self.inputs[name], shape)

    def expect_outputs(self, outputs: Mapping[str, Sequence[int]]) -> None:
        """Check that the graph has these outputs; sizes of -1 are not compared."""
        for name, shape in outputs.items():
            if name not in self.outputs:
                raise EngineError(f"{self.path} has no output {name!r}; {_REMEDY}")
            self._check_shape(self.outputs[name], shape)

    def _check_shape(self, value: Any, expected: Sequence[int]) -> None:
        found = value.shape
        fits = len(found) == len(expected) and all(
            not isinstance(size, int) or wanted in (-1, size)
            for size, wanted in zip(found, expected)
        )
        if not fits:
            shown = [size if isinstance(size, int) else "any" for size in found]
            raise EngineError(
                f"{value.name!r:.80} of {self.path} has shape {shown}; config.json says"
                f" {['any' if size < 0 else size for size in expected]}: they belong to different"
                f" models; {_REMEDY}"
            )
        if value.type not in (*_FLOATS, "tensor(int64)", "tensor(bool)"):
            raise EngineError(f"{value.name!r:.80} of {self.path} is a {value.type}; {_REMEDY}")

    def dtype(self, name: str) -> Any:
        """float32 or float16, the type of an input or output."""
        kind = (self.inputs.get(name) or self.outputs[name]).type
        if kind not in _FLOATS:
            raise EngineError(f"{name!r} of {self.path} is a {kind}; {_REMEDY}")
        return _FLOATS[kind]

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray]) -> list[NDArray]:
        """The outputs with these names."""
        try:
            found: list[NDArray] = self._session.run(list(names), dict(feeds))
        except Exception as error:  # the runtime's errors share no base class
            raise failed_run(error) from error
        return found


class Encoder:
    """The encoder: log-mel to hidden states."""

    def __init__(self, path: Path, dims: ModelDims, threads: Union[int, None]) -> None:
        """Load and check the graph; raises EngineError."""
        self._graph = _Graph(path, threads)
        self._graph.expect({_MEL: (-1, dims.n_mels, N_FRAMES)})
        self._graph.expect_outputs({_HIDDEN_OUT: (-1, dims.n_audio_ctx, dims.n_audio_state)})
        self._dtype = self._graph.dtype(_MEL)
        self._shape = (dims.n_audio_ctx, dims.n_audio_state)

    def run(self, mel: F32) -> NDArray:
        """Hidden states [n, n_audio_ctx, n_audio_state] of log-mel [n, n_mels, 3000]."""
        (hidden,) = self._graph.run([_HIDDEN_OUT], {_MEL: mel.astype(self._dtype, copy=False)})
        if hidden.shape != (len(mel), *self._shape):
            raise EngineError(f"{self._graph.path} returned shape {list(hidden.shape)}; {_REMEDY}")
        return hidden


@dataclasses.dataclass(frozen=True)
class First:
    """Results of a run without a past, for n rows of n_new tokens.

    Attributes:
        logits: float32 [n, n_new, n_vocab].
        past: keys and values of self-attention, [n, n_head, n_new, 64]; per layer key then value.
        cross: those of cross-attention, [n, n_head, n_audio_ctx, 64].
    """

    logits: F32
    past: list[NDArray]
    cross: list[NDArray]


class Decoder:
    """The decoder: tokens to scores, with keys and values of the past as inputs and outputs.

    The position of a token is the length of the past, which all rows of a call share.
    """

    def __init__(self, files: GraphFiles, dims: ModelDims, threads: Union[int, None]) -> None:
        """Load and check one merged graph or two; raises EngineError."""
        self._dims = dims
        self._past = _names("past_key_values", "decoder", dims.n_text_layer)
        self._past_cross = _names("past_key_values", "encoder", dims.n_text_layer)
        self._present = _names("present", "decoder", dims.n_text_layer)
        self._present_cross = _names("present", "encoder", dims.n_text_layer)
        if files.decoder_with_past is None:
            self._first = self._next = _Graph(files.decoder, threads)
        else:
            later = files.decoder_with_past
            with Background(lambda: _Graph(later, threads)) as graph:
                self._first = _Graph(files.decoder, threads)
                self._next = graph.result()
        self._is_merged = self._first is self._next
        self._check()
        self._kv = self._next.dtype(self._past[0])
        self._unused: Union[NDArray, None] = None
        heads = [f"cross_attentions.{i}" for i in range(dims.n_text_layer)]
        self.has_attention = all(name in self._first.outputs for name in heads)
        """Whether the graph returns its cross-attention."""

    def _check(self) -> None:
        dims = self._dims
        states = (-1, dims.n_text_head, -1, HEAD_DIM)
        past = dict.fromkeys([*self._past, *self._past_cross], states)
        tokens = {_TOKENS: (-1, -1)}
        hidden = {_HIDDEN: (-1, -1, dims.n_audio_state)}
        if self._is_merged:
            self._first.expect({**tokens, **hidden, **past, _USE_CACHE: (1,)}, [_POSITIONS])
        else:
            self._first.expect({**tokens, **hidden}, [_POSITIONS])
            self._next.expect({**tokens, **past}, [_HIDDEN, _POSITIONS])
        scores = {"logits": (-1, -1, dims.n_vocab)}
        present = dict.fromkeys(self._present, states)
        cross = dict.fromkeys(self._present_cross, states)
        self._first.expect_outputs({**scores, **present, **cross})
        self._next.expect_outputs({"logits": (-1, -1, dims.n_vocab), **present})

    def first(self, tokens: Int, hidden: NDArray) -> First:
        """The first tokens of n rows.

        Args:
            tokens: int64 [n, n_new].
            hidden: hidden states of each row's window, [n, n_audio_ctx, n_audio_state].
        """
        names = ["logits", *self._present, *self._present_cross]
        logits, *states = self._first.run(names, self._first_feeds(tokens, hidden))
        past, cross = states[: len(self._present)], states[len(self._present) :]
        n, n_new = tokens.shape
        self._check_run(logits, past, n, n_new, n_new)
        self._check_states(cross, n, self._dims.n_audio_ctx)
        return First(
            _float32(logits), [_as(s, self._kv) for s in past], [_as(s, self._kv) for s in cross]
        )

    def attention(
        self, tokens: Int, hidden: NDArray, layers: Sequence[int]
    ) -> tuple[F32, list[F32]]:
        """Scores [n, n_new, n_vocab] of the first tokens, and the cross-attention of some layers.

        The attention is what the graph returns, per layer [n, n_head, n_new, n_audio_ctx]: after
        the softmax.
        """
        names = ["logits", *(f"cross_attentions.{i}" for i in layers)]
        logits, *found = self._first.run(names, self._first_feeds(tokens, hidden))
        n, n_new = tokens.shape
        self._check_run(logits, [], n, n_new, n_new)
        for weights in found:
            if weights.shape != (n, self._dims.n_text_head, n_new, self._dims.n_audio_ctx):
                raise self._wrong("cross_attentions", weights)
        return _float32(logits), [_float32(weights) for weights in found]

    def next(
        self, tokens: Int, past: Sequence[NDArray], cross: Sequence[NDArray]
    ) -> tuple[F32, list[NDArray]]:
        """One more token of n rows with pasts of the same length.

        Args:
            tokens: int64 [n, 1].
            past: keys and values of self-attention, [n, n_head, n_past, 64].
            cross: those of cross-attention, [n, n_head, n_audio_ctx, 64].

        Returns:
            Scores float32 [n, n_vocab], and ``past`` with one position more.
        """
        n, n_past = len(tokens), past[0].shape[2]
        feeds = {
            _TOKENS: tokens,
            **dict(zip(self._past, past)),
            **dict(zip(self._past_cross, cross)),
        }
        if _HIDDEN in self._next.inputs:
            feeds[_HIDDEN] = self._unused_hidden(n)
        self._add_flags(self._next, feeds, np.arange(n_past, n_past + 1), use_cache=True)
        logits, *found = self._next.run(["logits", *self._present], feeds)
        self._check_run(logits, found, n, 1, n_past + 1)
        return _float32(logits[:, 0]), found

    def _unused_hidden(self, n: int) -> NDArray:
        """An input that a graph has for its other branch only; zeros take no memory until read."""
        zeros = self._unused  # another thread may replace it
        if zeros is None or len(zeros) < n:
            shape = (2 * n, self._dims.n_audio_ctx, self._dims.n_audio_state)
            self._unused = zeros = np.zeros(shape, self._next.dtype(_HIDDEN))
        return zeros[:n]

    def _first_feeds(self, tokens: Int, hidden: NDArray) -> dict[str, NDArray]:
        feeds = {_TOKENS: tokens, _HIDDEN: _as(hidden, self._first.dtype(_HIDDEN))}
        if self._is_merged:  # the branch without a past ignores them
            empty = np.zeros((len(tokens), self._dims.n_text_head, 1, HEAD_DIM), self._kv)
            feeds.update(dict.fromkeys([*self._past, *self._past_cross], empty))
        self._add_flags(self._first, feeds, np.arange(tokens.shape[1]), use_cache=False)
        return feeds

    def _add_flags(
        self, graph: _Graph, feeds: dict[str, NDArray], positions: Int, *, use_cache: bool
    ) -> None:
        if _USE_CACHE in graph.inputs:
            feeds[_USE_CACHE] = np.array([use_cache])
        if _POSITIONS in graph.inputs:
            feeds[_POSITIONS] = positions.astype(np.int64)

    def _check_run(
        self, logits: NDArray, past: Sequence[NDArray], n: int, n_new: int, n_past: int
    ) -> None:
        if logits.shape != (n, n_new, self._dims.n_vocab):
            raise self._wrong("logits", logits)
        self._check_states(past, n, n_past)

    def _check_states(self, states: Sequence[NDArray], n: int, length: int) -> None:
        for state in states:
            if state.shape != (n, self._dims.n_text_head, length, HEAD_DIM):
                raise self._wrong("keys or values", state)

    def _wrong(self, name: str, found: NDArray) -> EngineError:
        return EngineError(
            f"the decoder {self._first.path} returned {name} of shape {list(found.shape)}; it does"
            f" not compute Whisper of this config.json; {_REMEDY}"
        )


def _float32(values: NDArray) -> F32:
    return values.astype(np.float32, copy=False)


def _as(values: NDArray, dtype: Any) -> NDArray:
    return values.astype(dtype, copy=False)


def load_graphs(
    files: GraphFiles, dims: ModelDims, threads: Union[int, None] = None
) -> tuple[Encoder, Decoder]:
    """Encoder and decoder, loaded at the same time.

    Args:
        files: graphs of one precision.
        dims: model dimensions.
        threads: threads within an operator; default: ONNX Runtime's choice.

    Raises:
        BackendUnavailable: ONNX Runtime is missing.
        EngineError: a graph cannot be loaded, or does not have the inputs and outputs of Whisper.
    """
    with Background(lambda: Decoder(files, dims, threads)) as decoder:
        encoder = Encoder(files.encoder, dims, threads)
        return encoder, decoder.result()
