"""Segments, words and what is known about a transcription, as faster-whisper returns them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Union

import whisper_opt
from whisper_opt.compat.faster_whisper.vad import VadOptions

__all__ = ["Segment", "TranscriptionInfo", "TranscriptionOptions", "Word", "converted"]


def _as_dict(result: Any) -> dict[str, Any]:
    name = type(result).__name__
    warnings.warn(
        f"{name}._asdict() is deprecated; use dataclasses.asdict", DeprecationWarning, stacklevel=3
    )
    return dataclasses.asdict(result)


@dataclasses.dataclass
class Word:
    """One word, with its times in seconds and the mean probability of its tokens."""

    start: float
    end: float
    word: str
    probability: float

    def _asdict(self) -> dict[str, Any]:
        return _as_dict(self)


@dataclasses.dataclass
class Segment:
    """A part of the transcript.

    Attributes:
        id: number, from 1.
        seek: first frame of its window, 10 ms each.
        start: beginning in seconds.
        end: end in seconds.
        text: the text.
        tokens: ids of text and timestamps.
        avg_logprob: mean log-probability of the tokens of the window.
        compression_ratio: bytes of the text of the window over their compressed size.
        no_speech_prob: probability of no speech in the window.
        words: words with times, or None without ``word_timestamps``.
        temperature: the sampling temperature.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: Union[list[Word], None]
    temperature: Union[float, None]

    def _asdict(self) -> dict[str, Any]:
        return _as_dict(self)


@dataclasses.dataclass
class TranscriptionOptions:
    """The arguments of a transcription, as faster-whisper reports them."""

    beam_size: int
    best_of: int
    patience: float
    length_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    log_prob_threshold: Union[float, None]
    no_speech_threshold: Union[float, None]
    compression_ratio_threshold: Union[float, None]
    condition_on_previous_text: bool
    prompt_reset_on_temperature: float
    temperatures: list[float]
    initial_prompt: Union[str, Iterable[int], None]
    prefix: Union[str, None]
    suppress_blank: bool
    suppress_tokens: Union[list[int], None]
    without_timestamps: bool
    max_initial_timestamp: float
    word_timestamps: bool
    prepend_punctuations: str
    append_punctuations: str
    multilingual: bool
    max_new_tokens: Union[int, None]
    clip_timestamps: Any
    hallucination_silence_threshold: Union[float, None]
    hotwords: Union[str, None]


@dataclasses.dataclass
class TranscriptionInfo:
    """What is known about a transcription before its first segment.

    Attributes:
        language: code of the language, given or detected.
        language_probability: its probability; 1 if it was given.
        duration: seconds of the recording.
        duration_after_vad: seconds of it that are transcribed.
        all_language_probs: languages and their probabilities, most probable first; None if the
            language was not detected.
        transcription_options: the arguments.
        vad_options: the options of voice activity detection, or None.
    """

    language: str
    language_probability: float
    duration: float
    duration_after_vad: float
    all_language_probs: Union[list[tuple[str, float]], None]
    transcription_options: TranscriptionOptions
    vad_options: Union[VadOptions, None]


def converted(segments: Iterable[whisper_opt.Segment]) -> Iterator[Segment]:
    """The segments that have text, numbered from 1."""
    spoken = (segment for segment in segments if segment.text.strip())
    for i, segment in enumerate(spoken, 1):
        words = segment.words
        yield Segment(
            id=i,
            seek=segment.seek,
            start=segment.start,
            end=segment.end,
            text=segment.text,
            tokens=list(segment.tokens),
            avg_logprob=segment.avg_logprob,
            compression_ratio=segment.compression_ratio,
            no_speech_prob=segment.no_speech_prob,
            words=None if words is None else [_word(word) for word in words],
            temperature=segment.temperature,
        )


def _word(word: whisper_opt.Word) -> Word:
    return Word(word.start, word.end, word.word, word.probability)
