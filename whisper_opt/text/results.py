"""Results of a transcription: words, segments and transcripts.

Field names and the layout of :meth:`Transcript.to_dict` are those of openai-whisper's result
dictionary (whisper/transcribe.py), so that tools for its JSON can read these files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, overload

from whisper_opt.core.dims import FRAMES_PER_SECOND

__all__ = ["Dropped", "Segment", "Transcript", "Turn", "Word", "moved"]


@dataclasses.dataclass(frozen=True)
class Word:
    """One word with its times.

    Attributes:
        start: beginning, in seconds from the start of the recording.
        end: end, in seconds.
        word: the text, with its leading space where the language has one.
        probability: mean probability of the word's tokens, 0 to 1.
        speaker: who says it, with ``diarize`` or ``channels="split"``, else None.
        overlap: whether someone else speaks during most of it.
    """

    start: float
    end: float
    word: str
    probability: float
    speaker: str | None = None
    overlap: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The word under openai-whisper's keys and in their order.

        ``speaker`` and ``overlap`` (not keys of the reference) are present if they are known and
        true.
        """
        entry: dict[str, Any] = {
            "word": self.word,
            "start": self.start,
            "end": self.end,
            "probability": self.probability,
        }
        if self.speaker is not None:
            entry["speaker"] = self.speaker
        if self.overlap:
            entry["overlap"] = True
        return entry


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a transcript between two timestamps.

    Attributes:
        id: position in the transcript, from 0.
        start: beginning, in seconds from the start of the recording.
        end: end, in seconds.
        text: the text, usually with a leading space.
        tokens: text and timestamp token ids.
        avg_logprob: mean log-probability of the tokens of the window.
        no_speech_prob: probability the model gave to "no speech" in that window, 0 to 1.
        compression_ratio: bytes of that window's text over its zlib-compressed size.
        temperature: sampling temperature that produced it (0 is deterministic).
        seek: first mel frame of that window (10 ms each).
        words: words with their times, or None without ``word_timestamps``.
        language: language code of that window with ``multilingual``, else None.
        truncated: whether decoding stopped at the token limit; the rest of the text of that window
            is missing.
        speaker: who says it, with ``diarize`` or ``channels="split"``, else None.
        channel: the channel of the recording, from 0, with ``channels="split"``, else None.
        token_logprobs: natural log-probability of each of ``tokens``, or None without that option.
    """

    id: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    seek: int
    words: tuple[Word, ...] | None = None
    language: str | None = None
    truncated: bool = False
    speaker: str | None = None
    channel: int | None = None
    token_logprobs: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The segment under openai-whisper's keys and in their order.

        ``words``, ``language``, ``speaker``, ``channel`` and ``token_logprobs`` are present if they
        are not None, ``truncated`` if it is true; of these the reference has only ``words``.
        """
        entry: dict[str, Any] = {
            "id": self.id,
            "seek": self.seek,
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "tokens": list(self.tokens),
            "temperature": self.temperature,
            "avg_logprob": self.avg_logprob,
            "compression_ratio": self.compression_ratio,
            "no_speech_prob": self.no_speech_prob,
        }
        if self.words is not None:
            entry["words"] = [word.to_dict() for word in self.words]
        if self.language is not None:
            entry["language"] = self.language
        if self.truncated:
            entry["truncated"] = True
        if self.speaker is not None:
            entry["speaker"] = self.speaker
        if self.channel is not None:
            entry["channel"] = self.channel
        if self.token_logprobs is not None:
            entry["token_logprobs"] = list(self.token_logprobs)
        return entry

    def _repr_html_(self) -> str:
        """The segment in a notebook."""
        from whisper_opt.text.html import segment_html

        return segment_html(self)


def moved(segment: Segment, seconds: float) -> Segment:
    """A segment of a part of a recording, with times from the start of the recording.

    Args:
        segment: with times from the start of the part.
        seconds: where the part starts.
    """
    if not seconds:
        return segment
    words = segment.words and tuple(
        dataclasses.replace(
            word, start=round(word.start + seconds, 3), end=round(word.end + seconds, 3)
        )
        for word in segment.words
    )
    return dataclasses.replace(
        segment,
        start=round(segment.start + seconds, 3),
        end=round(segment.end + seconds, 3),
        seek=segment.seek + round(seconds * FRAMES_PER_SECOND),
        words=words,
    )


@dataclasses.dataclass(frozen=True)
class Turn:
    """A time in which one person speaks without a longer pause.

    Turns of different speakers overlap where several speak at once.

    Attributes:
        start: beginning, in seconds from the start of the recording.
        end: end, in seconds.
        speaker: name of a known speaker, else ``A``, ``B``, ... in order of appearance.
    """

    start: float
    end: float
    speaker: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Part of a recording that has no text in the transcript, and why.

    Attributes:
        start: beginning, in seconds from the start of the recording.
        end: end, in seconds.
        reason: ``no speech`` (voice activity detection found none), ``no-speech probability`` (of
            the model, above ``no_speech_threshold``), ``silence`` (the word times did not fit
            speech, see ``hallucination_silence_threshold``), ``cross-talk`` (the same words are on
            a louder channel) or ``loud sound`` (not transcribed, because voice activity detection
            found no speech, but too loud to be a pause).
        text: the text that was dropped; empty if nothing was transcribed.
    """

    start: float
    end: float
    reason: str
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Transcript(Sequence[Segment]):
    """The whole result for one recording: a sequence of its segments.

    A transcript without segments (silence) has length 0 and is therefore false in a condition.

    Attributes:
        segments: in order of time.
        language: code of the language spoken, such as ``en``.
        duration: length of the recording in seconds.
        text: the text of all segments.
        language_probability: probability of ``language``, 0 to 1, or None if it was given and not
            detected.
        dropped: text that was dropped, and long loud parts that were not transcribed.
        turns: who speaks when, with ``diarize``, in order of time; empty without it.
    """

    segments: tuple[Segment, ...]
    language: str
    duration: float
    text: str
    language_probability: float | None = None
    dropped: tuple[Dropped, ...] = ()
    turns: tuple[Turn, ...] = ()

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    @overload
    def __getitem__(self, index: int) -> Segment: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Segment, ...]: ...

    def __getitem__(self, index: int | slice) -> Segment | tuple[Segment, ...]:
        return self.segments[index]

    def to_dict(self) -> dict[str, Any]:
        """The result in openai-whisper's schema: ``text``, ``segments``, ``language``.

        ``dropped`` and ``turns`` (not keys of the reference) are present if they are not empty.
        ``duration`` and ``language_probability`` are not part of that schema and are left out.
        """
        entry: dict[str, Any] = {
            "text": self.text,
            "segments": [segment.to_dict() for segment in self.segments],
            "language": self.language,
        }
        if self.dropped:
            entry["dropped"] = [part.to_dict() for part in self.dropped]
        if self.turns:
            entry["turns"] = [turn.to_dict() for turn in self.turns]
        return entry

    def to_html(self, *, before: str = "") -> str:
        """The transcript as one HTML element, with a field to search it.

        Words have their times (``data-start`` and ``data-end``, in seconds) and
        a background that is the stronger the less probable they are.

        Args:
            before: HTML to put above the text.
        """
        from whisper_opt.text.html import transcript_html

        return transcript_html(self, before=before)

    def _repr_html_(self) -> str:
        """The transcript in a notebook."""
        return self.to_html()
