"""The speakers of the utterances of a live session."""

from __future__ import annotations

import dataclasses

from whisper_opt.audio.speakers import SpeakerNetworks
from whisper_opt.audio.speakers.diarizer import main_voice
from whisper_opt.audio.speakers.online import OnlineSpeakers
from whisper_opt.core.arrays import F32
from whisper_opt.core.background import Background
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.live_events import Speakers, Utterance
from whisper_opt.text.results import Segment
from whisper_opt.transcription.diarization import known_voices

__all__ = ["LiveSpeakers", "spoken_by"]


def spoken_by(segment: Segment, name: str | None) -> Segment:
    """The segment and its words with a speaker."""
    words = segment.words and tuple(
        dataclasses.replace(word, speaker=name) for word in segment.words
    )
    return dataclasses.replace(segment, words=words, speaker=name)


class LiveSpeakers:
    """Names utterances as they end, and again at the end of the session.

    An utterance has one speaker: who speaks most in it. Its voice is made in a thread of its own
    while the utterance is transcribed.
    """

    def __init__(self, networks: SpeakerNetworks, options: TranscribeOptions) -> None:
        """No utterances yet.

        Args:
            networks: the networks.
            options: number of speakers, and clips of known ones.

        Raises:
            AudioError: a clip cannot be read, or nobody speaks in it.
        """
        low, high = options.speaker_options.bounds
        known = known_voices(networks, options)
        self._networks = networks
        self._online = OnlineSpeakers(low=low, high=high, known=known)
        self._voice: Background[tuple[F32 | None, float]] | None = None
        self._numbers: list[int] = []

    def begin(self, samples: F32) -> None:
        """Listen to the next utterance, F32 [n] at 16 kHz."""
        self._voice = Background(lambda: main_voice(self._networks, samples))

    def named(self, utterance: Utterance) -> Utterance:
        """The utterance that was begun, with its speaker."""
        voice, seconds = (None, 0.0) if self._voice is None else self._voice.result()
        self._voice = None
        self._numbers.append(utterance.utterance)
        name = self._online.feed(voice, seconds)
        segments = tuple(spoken_by(segment, name) for segment in utterance.segments)
        words = tuple(dataclasses.replace(word, speaker=name) for word in utterance.words)
        return dataclasses.replace(utterance, segments=segments, words=words, speaker=name)

    def finish(self) -> Speakers:
        """The speakers of all utterances, by all voices."""
        return Speakers(dict(zip(self._numbers, self._online.finish())))
