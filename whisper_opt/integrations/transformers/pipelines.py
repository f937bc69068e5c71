"""``pipeline`` and the speech recognition pipeline that it returns."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

import whisper_opt
from whisper_opt.integrations.transformers.generation import (
    SAMPLE_RATE,
    WINDOW,
    Settings,
    settings,
)
from whisper_opt.integrations.transformers.loading import TASK, check_parts, load_model
from whisper_opt.integrations.transformers.outputs import output
from whisper_opt.integrations.transformers.recordings import is_several, one_by_one, recording
from whisper_opt.integrations.transformers.tokenizer import Tokenizer

__all__ = ["AutomaticSpeechRecognitionPipeline", "pipeline"]

_LOADING = (
    *("torch_dtype", "dtype", "device_map", "model_kwargs", "token", "revision"),
    *("local_files_only", "trust_remote_code", "use_fast", "code_revision"),
)
_PARTS = (
    *("config", "processor", "image_processor", "video_processor", "framework"),
    *("assistant_model", "assistant_tokenizer"),
)
_IDLE = ("task", "modelcard", "binary_output")
_PADDED = ("fp32", "fp16", "fp16-storage")
"""Precisions of engines that process the padding of a window as transformers does."""


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    video_processor: Any = None,
    processor: Any = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: Any = None,
    device_map: Any = None,
    dtype: Any = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: Any = None,
    **kwargs: Any,
) -> AutomaticSpeechRecognitionPipeline:
    """A pipeline for speech recognition. What each argument does: docs/compat.md.

    Args:
        task: ``automatic-speech-recognition``.
        model: short name, hub id, checkpoint in any supported form, engine directory, a loaded
            :class:`whisper_opt.Whisper`, or a model of transformers in memory.
        config: refused if it is another than the model's.
        tokenizer: as ``config``; an object has no effect.
        feature_extractor: as ``tokenizer``.
        image_processor: refused.
        video_processor: refused.
        processor: as ``tokenizer``.
        revision: of a hub id.
        use_fast: no effect.
        token: None, or True for the stored token, which is used in any case.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``tensorrt``, -1, the number of a GPU, or
            ``torch.device``; default: a GPU if there is one.
        device_map: as ``device``.
        dtype: precision of the engine.
        trust_remote_code: no effect: no code of the hub runs.
        model_kwargs: fields of :class:`whisper_opt.LoadOptions`.
        pipeline_class: that of this module.
        **kwargs: arguments of every call; see :class:`AutomaticSpeechRecognitionPipeline`.

    Raises:
        WhisperOptError: there is no such model, or it cannot run on the device.
        OptionError: an argument is not supported.
    """
    given = {**locals(), **kwargs}
    for name in ("kwargs", "model", "pipeline_class", "task"):
        del given[name]
    if task not in (None, TASK):
        raise whisper_opt.OptionError(
            f"task is {task!r}; expected {TASK!r}, or transformers itself"
        )
    if pipeline_class not in (None, AutomaticSpeechRecognitionPipeline):
        raise whisper_opt.OptionError(
            f"pipeline_class is {pipeline_class!r}; expected None: other classes run torch"
        )
    return AutomaticSpeechRecognitionPipeline(model, **given)


class AutomaticSpeechRecognitionPipeline:
    """Transcribes recordings. What each argument does: docs/compat.md.

    Attributes:
        model: the model of this library.
        tokenizer: makes the ids of prompts.
        task: ``automatic-speech-recognition``.
        type: ``seq2seq_whisper``.
    """

    task = TASK
    type = "seq2seq_whisper"

    def __init__(
        self,
        model: Any,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        decoder: Any = None,
        device: Any = None,
        **kwargs: Any,
    ) -> None:
        """Load a model; arguments as for :func:`pipeline`, which most programs call.

        Args:
            model: as for :func:`pipeline`.
            feature_extractor: as for :func:`pipeline`.
            tokenizer: as for :func:`pipeline`.
            decoder: refused.
            device: as for :func:`pipeline`.
            **kwargs: other arguments of :func:`pipeline`, and defaults for calls.

        Raises:
            WhisperOptError: there is no such model, or it cannot run on the device.
            OptionError: an argument is not supported.
        """
        parts = {name: kwargs.pop(name, None) for name in _PARTS}
        parts.update(feature_extractor=feature_extractor, tokenizer=tokenizer, decoder=decoder)
        loading = {name: kwargs.pop(name, None) for name in _LOADING}
        for name in _IDLE:
            kwargs.pop(name, None)
        check_parts(model, parts)
        self.model = load_model(model, {**loading, "device": device})
        self.tokenizer = Tokenizer(self.model.vocab)
        self._given = kwargs
        settings(self.model, kwargs)  # refuses what a call would refuse

    @property
    def device(self) -> str:
        """``cpu``, ``cuda`` or ``tensorrt``."""
        return self.model.device

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Transcribe one recording or several.

        Args:
            inputs: a recording: path, bytes or file object; array or tensor [n] or [channels, n] at
                16 kHz; dictionary with ``raw`` or ``array`` and ``sampling_rate``, or with ``path``
                or ``bytes``. Or several: a list, or a generator, dataset or other iterable.
            **kwargs: ``return_timestamps``, ``return_language``, ``chunk_length_s``,
                ``batch_size``, ``generate_kwargs`` and the arguments of Whisper's ``generate``.

        Returns:
            A dictionary with ``text`` and, with timestamps or languages, ``chunks``; further
            entries of a dictionary are lists, as there. A list for a list; a generator, which reads
            and transcribes as results are taken, for other iterables.

        Raises:
            AudioError: a recording cannot be read or used.
            OptionError: an argument is not supported.
        """
        chosen = settings(self.model, self._given, kwargs)
        if not is_several(inputs):
            (found,) = self._outputs([inputs], chosen)
            return found
        results = self._outputs(inputs, chosen)
        return list(results) if isinstance(inputs, (list, tuple)) else results

    transform = predict = __call__

    def _outputs(self, inputs: Any, chosen: Settings) -> Iterator[dict[str, Any]]:
        """Results in the order of the recordings, which are read when there is room for them."""
        options: collections.deque[whisper_opt.TranscribeOptions] = collections.deque()
        known: dict[int, tuple[float, dict[str, Any]]] = {}

        def samples() -> Iterator[Any]:
            for i, item in enumerate(one_by_one(inputs)):
                found, extra = recording(item)
                known[i] = len(found) / SAMPLE_RATE, extra
                options.append(chosen.options(len(found)))
                yield self._padded(found)

        done: dict[int, Any] = {}
        n_yielded = 0
        results = self.model.transcribe_many(
            samples(), options=iter(options.popleft, None), batch_size=chosen.batch_size
        )
        for i, transcript in results:
            done[i] = transcript
            while n_yielded in done:
                duration, extra = known.pop(n_yielded)
                found = output(done.pop(n_yielded), chosen, self.model, duration)
                yield {**found, **{name: [value] for name, value in extra.items()}}
                n_yielded += 1

    def _padded(self, samples: Any) -> Any:
        """At least 30 s: transformers transcribes the silence after a short recording, too.

        8- and 4-bit engines are made for windows that end with the recording, and are up to twice
        as fast with them.
        """
        missing = WINDOW - len(samples)
        if missing <= 0 or self.model.engine.manifest.precision not in _PADDED:
            return samples
        return np.pad(samples, (0, missing))

    def __getattr__(self, name: str) -> Any:
        """Refuse what belongs to torch."""
        raise AttributeError(
            f"this pipeline has no {name!r}: it runs ONNX engines, not torch; call it, or use"
            " model, the model of whisper_opt"
        )
