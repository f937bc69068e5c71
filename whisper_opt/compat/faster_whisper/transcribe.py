"""``faster_whisper.transcribe``: models and the batched pipeline."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import whisper_opt
from whisper_opt.compat.faster_whisper import arguments
from whisper_opt.compat.faster_whisper.audio import SAMPLING_RATE, Samples, pad_or_trim
from whisper_opt.compat.faster_whisper.calls import Call, Languages, Result, joined
from whisper_opt.compat.faster_whisper.feature_extractor import FeatureExtractor
from whisper_opt.compat.faster_whisper.results import (
    Segment,
    TranscriptionInfo,
    TranscriptionOptions,
    Word,
)
from whisper_opt.compat.faster_whisper.tokenizer import HfTokenizer, get_suppressed_tokens
from whisper_opt.compat.faster_whisper.utils import get_logger, load_model
from whisper_opt.compat.faster_whisper.vad import VadOptions, get_speech_timestamps

__all__ = [
    "BatchedInferencePipeline",
    "Segment",
    "TranscriptionInfo",
    "TranscriptionOptions",
    "WhisperModel",
    "Word",
    "get_compression_ratio",
    "get_suppressed_tokens",
]

_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_PREPENDED = "\"'“¿([{-"
_APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - full-width marks are meant


class WhisperModel:
    """A loaded model. What each argument does: docs/compat.md."""

    def __init__(
        self,
        model_size_or_path: str,
        device: str = "auto",
        device_index: int | list[int] = 0,
        compute_type: str = "default",
        cpu_threads: int = 0,
        num_workers: int = 1,
        download_root: str | None = None,
        local_files_only: bool = False,
        files: dict[str, Any] | None = None,
        revision: str | None = None,
        use_auth_token: str | bool | None = None,
        **model_kwargs: Any,
    ) -> None:
        """Load a model.

        Args:
            model_size_or_path: short name, hub id, checkpoint in any supported form (CTranslate2's
                too), or engine directory.
            device: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.
            device_index: index of the GPU.
            compute_type: precision of the engine.
            cpu_threads: CPU threads; 0: one per physical core.
            num_workers: no effect: calls from several threads always run in parallel.
            download_root: directory of the engine cache.
            local_files_only: use no network.
            files: refused.
            revision: of a hub id; no effect for a directory.
            use_auth_token: None, or True for the stored token, which is used in any case.
            **model_kwargs: fields of :class:`whisper_opt.LoadOptions`.

        Raises:
            WhisperOptError: there is no such model (with ``local_files_only`` a
                ``FileNotFoundError`` too), or it cannot run on the device.
            OptionError: an argument is not supported.
        """
        self.logger = get_logger()
        options = arguments.load_options(
            device,
            device_index,
            compute_type,
            cpu_threads,
            download_root,
            local_files_only,
            files,
            None if os.path.isdir(model_size_or_path) else revision,
            use_auth_token,
            model_kwargs,
        )
        self.model = load_model(model_size_or_path, options)
        self.hf_tokenizer = HfTokenizer(self.model.vocab)
        self.feature_extractor = FeatureExtractor(self.model.dims.n_mels)
        self.input_stride = 2
        self.num_samples_per_token = 2 * self.feature_extractor.hop_length
        self.frames_per_second = SAMPLING_RATE // self.feature_extractor.hop_length
        self.tokens_per_second = SAMPLING_RATE // self.num_samples_per_token
        self.time_precision = 0.02
        self.max_length = self.model.dims.n_text_ctx

    @property
    def supported_languages(self) -> list[str]:
        """Codes of the languages of the model."""
        return list(self.model.languages)

    def transcribe(
        self,
        audio: str | BinaryIO | Samples,
        language: str | None = None,
        task: str = "transcribe",
        log_progress: bool = False,
        beam_size: int = 5,
        best_of: int = 5,
        patience: float = 1,
        length_penalty: float = 1,
        repetition_penalty: float = 1,
        no_repeat_ngram_size: int = 0,
        temperature: float | Sequence[float] = _TEMPERATURES,
        compression_ratio_threshold: float | None = 2.4,
        log_prob_threshold: float | None = -1.0,
        no_speech_threshold: float | None = 0.6,
        condition_on_previous_text: bool = True,
        prompt_reset_on_temperature: float = 0.5,
        initial_prompt: str | Iterable[int] | None = None,
        prefix: str | None = None,
        suppress_blank: bool = True,
        suppress_tokens: Sequence[int] | None = (-1,),
        without_timestamps: bool = False,
        max_initial_timestamp: float = 1.0,
        word_timestamps: bool = False,
        prepend_punctuations: str = _PREPENDED,
        append_punctuations: str = _APPENDED,
        multilingual: bool = False,
        vad_filter: bool = False,
        vad_parameters: dict[str, Any] | VadOptions | None = None,
        max_new_tokens: int | None = None,
        chunk_length: int | None = None,
        clip_timestamps: str | Sequence[float] = "0",
        hallucination_silence_threshold: float | None = None,
        hotwords: str | None = None,
        language_detection_threshold: float | None = 0.5,
        language_detection_segments: int = 1,
    ) -> Result:
        """Transcribe a recording.

        Returns:
            A generator of segments, which are decoded as they are taken, and what is known before.

        Raises:
            AudioError: the recording cannot be read or used.
            OptionError: an argument is not supported.
        """
        return Call(self, audio, dict(locals())).sequential()

    def detect_language(
        self,
        audio: Samples | None = None,
        features: Any = None,
        vad_filter: bool = False,
        vad_parameters: dict[str, Any] | VadOptions | None = None,
        language_detection_segments: int = 1,
        language_detection_threshold: float | None = 0.5,
    ) -> tuple[str, float, Languages]:
        """The language of a recording.

        Args:
            audio: float32 [n] at 16 kHz.
            features: log-mel frames [n_mels, n_frames], used if there is no ``audio``.
            vad_filter: detect the language in the speech only.
            vad_parameters: how to detect speech.
            language_detection_segments: windows of 30 s to use at most.
            language_detection_threshold: stop at a window whose language is more probable.

        Returns:
            The language: that of the window at which detection stopped, else that of most windows;
            its probability; the probabilities of all languages in the last window.

        Raises:
            OptionError: there is neither ``audio`` nor ``features``, an argument is not supported,
                or the model knows English only.
        """
        if language_detection_segments < 1:
            raise whisper_opt.OptionError(
                f"language_detection_segments is {language_detection_segments}; expected 1 or more"
            )
        if audio is not None:
            filtering = {"vad_filter": vad_filter, "vad_parameters": vad_parameters}
            vad = arguments.vad_of({**filtering, "clip_timestamps": "0"}, batched=False)
            if vad is not None:
                audio = joined(audio, get_speech_timestamps(audio, vad))
            features = self._frames(audio[: language_detection_segments * 30 * SAMPLING_RATE])
        if features is None:
            raise whisper_opt.OptionError("audio is None, and so is features; give one of them")
        size = self.feature_extractor.nb_max_frames
        starts = range(0, max(features.shape[-1], 1), size)[:language_detection_segments]
        found: list[Languages] = []
        for start in starts:
            window = pad_or_trim(features[..., start : start + size])
            (probs,) = whisper_opt.window_languages(self.model, window[None])
            found.append(list(probs.items()))
            language, probability = found[-1][0]
            threshold = language_detection_threshold
            if threshold is not None and probability > threshold:
                return language, probability, found[-1]
        return (*_most_frequent([window[0] for window in found]), found[-1])

    def _frames(self, samples: Samples) -> Any:
        """Log-mel frames of whole windows of 30 s, at least one; the last ends with silence."""
        n_samples = self.feature_extractor.n_samples
        padding = -len(samples) % n_samples if len(samples) else n_samples
        return self.feature_extractor(samples, padding=padding)

    def __getattr__(self, name: str) -> Any:
        """Refuse what belongs to CTranslate2."""
        raise AttributeError(
            f"this model has no {name!r}: it runs ONNX engines, not CTranslate2; use transcribe or"
            " detect_language, or model, the model of whisper_opt"
        )


class BatchedInferencePipeline:
    """Transcribes the chunks of a recording together. What each argument does: docs/compat.md."""

    def __init__(self, model: WhisperModel) -> None:
        self.model = model

    def transcribe(
        self,
        audio: str | BinaryIO | Samples,
        language: str | None = None,
        task: str = "transcribe",
        log_progress: bool = False,
        beam_size: int = 5,
        best_of: int = 5,
        patience: float = 1,
        length_penalty: float = 1,
        repetition_penalty: float = 1,
        no_repeat_ngram_size: int = 0,
        temperature: float | Sequence[float] = _TEMPERATURES,
        compression_ratio_threshold: float | None = 2.4,
        log_prob_threshold: float | None = -1.0,
        no_speech_threshold: float | None = 0.6,
        condition_on_previous_text: bool = True,
        prompt_reset_on_temperature: float = 0.5,
        initial_prompt: str | Iterable[int] | None = None,
        prefix: str | None = None,
        suppress_blank: bool = True,
        suppress_tokens: Sequence[int] | None = (-1,),
        without_timestamps: bool = True,
        max_initial_timestamp: float = 1.0,
        word_timestamps: bool = False,
        prepend_punctuations: str = _PREPENDED,
        append_punctuations: str = _APPENDED,
        multilingual: bool = False,
        vad_filter: bool = True,
        vad_parameters: dict[str, Any] | VadOptions | None = None,
        max_new_tokens: int | None = None,
        chunk_length: int | None = None,
        clip_timestamps: Sequence[dict[str, float]] | None = None,
        hallucination_silence_threshold: float | None = None,
        batch_size: int = 8,
        hotwords: str | None = None,
        language_detection_threshold: float | None = 0.5,
        language_detection_segments: int = 1,
    ) -> Result:
        """Transcribe the speech of a recording, or the parts given as ``clip_timestamps``.

        Returns:
            A generator of segments, which are decoded as they are taken, and what is known before.

        Raises:
            AudioError: the recording cannot be read or used.
            OptionError: an argument is not supported, or a recording of 30 s or more has neither
                ``vad_filter`` nor ``clip_timestamps``.
        """
        return Call(self.model, audio, dict(locals())).batched()


def _most_frequent(found: list[tuple[str, float]]) -> tuple[str, float]:
    """The language of most windows, the first of several, and its highest probability."""
    codes = [code for code, _ in found]
    language = max(codes, key=codes.count)
    return language, max(probability for code, probability in found if code == language)


def get_compression_ratio(text: str) -> float:
    """UTF-8 bytes of ``text`` over their size after zlib; high for repeated text."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))
