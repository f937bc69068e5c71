"""A live session without a model: results are made up from what is said, or given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.reference_windows import DIMS, VOCAB
from whisper_opt import (
    Committed,
    LiveEvent,
    LiveOptions,
    Partial,
    SpeechStarted,
    SpeechStopped,
    TranscribeOptions,
)
from whisper_opt.core.arrays import F32
from whisper_opt.transcription.live.transcriber import LiveTranscriber
from whisper_opt.transcription.live.window import Hypothesis, Update
from whisper_opt.transcription.live.words import LiveWord

__all__ = ["Script", "Silent", "result"]

RATE = 16_000


def result(words: Sequence[LiveWord], **changed: Any) -> Hypothesis:
    """A result that passes all thresholds."""
    given: dict[str, Any] = {
        **{"avg_logprob": -0.3, "no_speech_prob": 0.1, "compression_ratio": 1.3},
        **changed,
    }
    return Hypothesis(tuple(words), **given)


class Silent:
    """A network that finds no speech, in place of that of the gate."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def feed(self, samples: F32) -> F32:
        return np.zeros(0, np.float32)


@dataclasses.dataclass
class Script:
    """A session in which all audio is speech, unless options say otherwise.

    Attributes:
        live: its options.
        events: all events so far.
    """

    live: LiveOptions = dataclasses.field(default_factory=lambda: LiveOptions(vad=False))
    options: TranscribeOptions = dataclasses.field(default_factory=TranscribeOptions)
    events: list[LiveEvent] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        dims = dataclasses.replace(DIMS, n_text_ctx=448)
        self.session = LiveTranscriber(VOCAB, dims, self.options, self.live)

    def speak(self, seconds: float) -> None:
        """Feed so much audio."""
        self.session.feed(np.zeros(round(seconds * RATE), np.float32))
        self._take()

    def update(self) -> Update:
        """The update that is wanted."""
        found = self.session.next_update()
        assert found is not None, "no update is wanted"
        return found

    def hear(self, found: Hypothesis, seconds: float = 0.0) -> Update:
        """Feed audio, and answer the update that is wanted then."""
        self.speak(seconds)
        update = self.update()
        self.answer(update, found)
        return update

    def answer(self, update: Update, found: Hypothesis) -> None:
        self.session.accept(update, found)
        self._take()

    def do(self, name: str) -> None:
        """Call a method of the session."""
        getattr(self.session, name)()
        self._take()

    def _take(self) -> None:
        self.events += self.session.events
        self.session.events.clear()

    def committed(self, utterance: int | None = None) -> str:
        """The committed text, of one utterance or of all."""
        return "".join(
            event.text
            for event in self.events
            if isinstance(event, Committed) and utterance in (None, event.utterance)
        )

    @property
    def partial(self) -> str:
        """The partial text that was reported last."""
        return next((e.text for e in reversed(self.events) if isinstance(e, Partial)), "")

    @property
    def edges(self) -> list[tuple[str, float]]:
        """Beginnings and ends of utterances."""
        return [
            ("start", e.start) if isinstance(e, SpeechStarted) else ("stop", e.end)
            for e in self.events
            if isinstance(e, (SpeechStarted, SpeechStopped))
        ]
