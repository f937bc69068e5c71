"""One call of ``transcribe``: the recording, its parts, its language and its options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import whisper_opt
from whisper_opt.compat.faster_whisper import arguments
from whisper_opt.compat.faster_whisper.audio import SAMPLING_RATE, Samples
from whisper_opt.compat.faster_whisper.results import (
    Segment,
    TranscriptionInfo,
    TranscriptionOptions,
    converted,
)
from whisper_opt.compat.faster_whisper.tokenizer import Tokenizer, get_suppressed_tokens
from whisper_opt.compat.faster_whisper.utils import format_timestamp
from whisper_opt.compat.faster_whisper.vad import (
    VadOptions,
    collect_chunks,
    get_speech_timestamps,
)

if TYPE_CHECKING:
    from whisper_opt.compat.faster_whisper.transcribe import WhisperModel

__all__ = ["Call", "Languages", "Result", "joined"]

Languages = list[tuple[str, float]]
"""Codes and probabilities, most probable first."""
Result = tuple[Iterable[Segment], TranscriptionInfo]


class Call:
    """One call of ``transcribe``."""

    def __init__(self, model: WhisperModel, audio: Any, given: dict[str, Any]) -> None:
        is_empty = isinstance(audio, np.ndarray) and not audio.size
        self._samples = np.zeros(0, np.float32) if is_empty else whisper_opt.load_audio(audio)
        self._duration = len(self._samples) / SAMPLING_RATE
        self._model = model
        self._log = model.logger
        self._given = given
        self._log.info("Processing audio with duration %s", format_timestamp(self._duration))
        if not model.model.is_multilingual:
            self._english_only()

    def _english_only(self) -> None:
        """Change what an English-only model cannot do, with faster-whisper's warnings."""
        for name, only in (("language", "en"), ("multilingual", False), ("task", "transcribe")):
            if self._given[name] not in (None, only):
                self._log.warning(
                    "The current model is English-only but %s is %r; using %r instead.",
                    name,
                    self._given[name],
                    only,
                )
                self._given[name] = only

    def sequential(self) -> Result:
        """Windows one after another."""
        given = self._given
        vad = arguments.vad_of(given, batched=False)
        parts = None if vad is None else get_speech_timestamps(self._samples, vad)
        seconds = arguments.clip_seconds(given["clip_timestamps"])
        first = round(seconds[0] * SAMPLING_RATE) if seconds else 0
        first = first if first < len(self._samples) else 0
        language = self._language(
            self._samples[first:] if parts is None else joined(self._samples, parts)
        )
        options = arguments.sequential_options(given, self._model.model, language[0], vad)
        reported = {"temperatures": arguments.temperatures(given["temperature"])}
        return self._result(options, language, parts, vad or given["vad_parameters"], reported)

    def batched(self) -> Result:
        """Chunks together."""
        given = self._given
        vad = arguments.vad_of(given, batched=True)
        clips = () if vad is not None else self._clips()
        if vad is not None:
            parts = get_speech_timestamps(self._samples, vad)
        else:
            points = [round(second * SAMPLING_RATE) for second in clips]
            parts = [{"start": a, "end": b} for a, b in zip(points[::2], points[1::2])]
        language = self._language(joined(self._samples, parts))
        options = arguments.batched_options(given, self._model.model, language[0], vad, clips)
        reported = {
            "temperatures": arguments.temperatures(given["temperature"])[:1],
            "condition_on_previous_text": False,
            "hallucination_silence_threshold": None,
            "clip_timestamps": parts,
        }
        return self._result(options, language, parts, vad or given["vad_parameters"], reported)

    def _clips(self) -> tuple[float, ...]:
        """Start, end, start, ... of the parts in seconds."""
        if self._given["clip_timestamps"]:
            return arguments.parts_of_clips(self._given["clip_timestamps"])
        if self._duration >= self._model.feature_extractor.chunk_length:
            raise whisper_opt.OptionError(
                f"vad_filter is off and clip_timestamps are not given, but the recording has"
                f" {self._duration:.0f} s; one of them must say where to cut it"
            )
        return (0.0, self._duration) if self._duration else ()

    def _language(self, samples: Samples) -> tuple[str, float, Languages | None]:
        """Language, its probability, and those of all languages if it was detected."""
        language = self._given["language"]
        if language is not None or not self._model.model.is_multilingual:
            return language or "en", 1, None
        language, probability, every = self._model.detect_language(
            samples,
            language_detection_segments=self._given["language_detection_segments"],
            language_detection_threshold=self._given["language_detection_threshold"],
        )
        self._log.info("Detected language '%s' with probability %.2f", language, probability)
        return language, probability, every

    def _result(
        self,
        options: whisper_opt.TranscribeOptions,
        language: tuple[str, float, Languages | None],
        parts: list[dict[str, int]] | None,
        vad: VadOptions | None,
        reported: dict[str, Any],
    ) -> Result:
        spoken = self._duration
        if parts is not None:
            spoken = sum(part["end"] - part["start"] for part in parts) / SAMPLING_RATE
            removed = format_timestamp(max(0.0, self._duration - spoken))
            self._log.info("VAD filter removed %s of audio", removed)
        info = TranscriptionInfo(
            language=language[0],
            language_probability=language[1],
            duration=self._duration,
            duration_after_vad=spoken,
            all_language_probs=language[2],
            transcription_options=self._reported(reported),
            vad_options=vad,
        )
        return self._segments(options), info

    def _reported(self, changed: dict[str, Any]) -> TranscriptionOptions:
        values = {**self._given, **changed}
        suppressed = values["suppress_tokens"]
        if suppressed:
            tokenizer = Tokenizer(self._model.hf_tokenizer, multilingual=False)
            values["suppress_tokens"] = get_suppressed_tokens(tokenizer, list(suppressed))
        names = TranscriptionOptions.__dataclass_fields__
        return TranscriptionOptions(**{name: values[name] for name in names})

    def _segments(self, options: whisper_opt.TranscribeOptions) -> Iterator[Segment]:
        if not len(self._samples):
            return iter(())
        bar = tqdm(unit="seconds", disable=not self._given["log_progress"])

        def show(done: float, total: float) -> None:
            bar.total = round(total, 2)
            bar.update(round(done - bar.n, 2))

        stream = self._model.model.stream(self._samples, options=options, on_progress=show)
        return _closing(bar, stream)


def _closing(bar: Any, stream: whisper_opt.Stream) -> Iterator[Segment]:
    with contextlib.closing(bar), stream:
        yield from converted(stream)


def joined(samples: Samples, parts: list[dict[str, int]]) -> Samples:
    """The parts without the audio between them."""
    ((joined,), _) = collect_chunks(samples, parts)
    return joined
