"""Events of a live session. All times are in seconds from the start of the session.

Of each utterance come, in this order: :class:`SpeechStarted`; :class:`Partial` and
:class:`Committed` in turns; :class:`SpeechStopped` when its end is found; the last
:class:`Committed`; then exactly one :class:`Utterance` or :class:`Failed`. Events of the next
utterance may come before the last ones of an utterance. With ``diarize`` :class:`Speakers` is the
last event of a session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from whisper_opt.core.errors import WhisperOptError
from whisper_opt.text.results import Segment, Word

__all__ = [
    "Committed",
    "Failed",
    "Lag",
    "LiveEvent",
    "Partial",
    "Speakers",
    "SpeechStarted",
    "SpeechStopped",
    "Utterance",
]


@dataclasses.dataclass(frozen=True)
class LiveEvent:
    """Base class of the events of a live session."""


@dataclasses.dataclass(frozen=True)
class SpeechStarted(LiveEvent):
    """An utterance has begun.

    Attributes:
        start: its beginning, some time before the speech.
        utterance: its number, from 0.
    """

    start: float
    utterance: int


@dataclasses.dataclass(frozen=True)
class SpeechStopped(LiveEvent):
    """The end of an utterance was found.

    Attributes:
        end: its end, some time after the speech.
        utterance: its number.
    """

    end: float
    utterance: int


@dataclasses.dataclass(frozen=True)
class Partial(LiveEvent):
    """What follows the committed text of an utterance for now; the next one replaces it.

    Attributes:
        text: the text, with its leading space.
        words: its words with their times.
        utterance: the number of the utterance.
    """

    text: str
    words: tuple[Word, ...]
    utterance: int


@dataclasses.dataclass(frozen=True)
class Committed(LiveEvent):
    """More text of an utterance that will not change.

    The texts of all such events of an utterance, joined, are its committed text.

    Attributes:
        text: the text, with its leading space. It may be punctuation that follows an earlier word.
        words: its words with their times.
        utterance: the number of the utterance.
    """

    text: str
    words: tuple[Word, ...]
    utterance: int


@dataclasses.dataclass(frozen=True)
class Utterance(LiveEvent):
    """The result of a whole utterance.

    With ``final="full"`` it is the transcript of the audio from ``start`` to ``end`` as a recording
    of its own; its text may differ from the committed text. With ``final="none"`` it is the
    committed text.

    Attributes:
        segments: with words; none if nothing was said, or with ``final="none"``.
        text: the text of the segments.
        start: beginning of the utterance.
        end: its end.
        utterance: its number.
        language: code of its language.
        words: its words with their times.
        speaker: with ``diarize``: who speaks most in it; None if nobody is known yet.
    """

    segments: tuple[Segment, ...]
    text: str
    start: float
    end: float
    utterance: int
    language: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None


@dataclasses.dataclass(frozen=True)
class Speakers(LiveEvent):
    """Who spoke, by all that was heard; with ``diarize`` the last event of a session.

    It may differ from what the utterances said, which was known when they ended.

    Attributes:
        names: the speaker of each utterance by its number; None if nobody is known.
    """

    names: Mapping[int, str | None]


@dataclasses.dataclass(frozen=True)
class Failed(LiveEvent):
    """An utterance has no result; comes in place of :class:`Utterance`.

    Attributes:
        error: why.
        utterance: the number of the utterance.
    """

    error: WhisperOptError
    utterance: int


@dataclasses.dataclass(frozen=True)
class Lag(LiveEvent):
    """How far the text is behind the audio.

    Attributes:
        seconds: from the arrival of the newest audio of an update to its result.
    """

    seconds: float
