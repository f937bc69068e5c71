"""Messages of one channel: results that may change, results that stay, ends of utterances."""

from __future__ import annotations

import collections
import difflib
import re
from collections.abc import Sequence
from typing import Any, Callable

from whisper_opt.serving.http.deepgram.query import Asked
from whisper_opt.text.live_events import (
    Committed,
    Failed,
    LiveEvent,
    Partial,
    SpeechStarted,
    Utterance,
)
from whisper_opt.text.results import Word

__all__ = ["Channel", "rest_of"]

_PUNCTUATION = re.compile(r"^\W+|\W+$")


def _plain(word: Word) -> str:
    return _PUNCTUATION.sub("", word.word).lower() or word.word.strip()


def rest_of(sent: Sequence[Word], final: Sequence[Word]) -> tuple[Word, ...]:
    """The words of a final transcript that follow those that were sent before.

    Both are transcripts of the same speech, and may differ in single words.
    """
    if not sent:
        return tuple(final)
    matcher = difflib.SequenceMatcher(
        None, [_plain(word) for word in sent], [_plain(word) for word in final], autojunk=False
    )
    at = max((block.b + block.size for block in matcher.get_matching_blocks()[:-1]), default=0)
    while at < len(final) and (final[at].start + final[at].end) / 2 <= sent[-1].end:
        at += 1
    return tuple(final[at:])


class Channel:
    """One channel of a connection.

    The last committed word is held back until more follows it: the result that ends an utterance
    should have text, because many clients skip results without.
    """

    def __init__(
        self,
        number: int,
        n_channels: int,
        asked: Asked,
        metadata: dict[str, Any],
        send: Callable[[dict[str, Any]], None],
    ) -> None:
        self._index = [number, n_channels]
        self._asked = asked
        self._metadata = metadata
        self._send = send
        self._sent: list[Word] = []  # of the present utterance
        self._held: list[Word] = []
        self._begin = 0.0  # of what was not sent as final
        self._speaking: set[int] = set()
        self._last_end: float | None = None  # of a word, until UtteranceEnd was sent
        self._finalizing = False
        self._events: dict[int, collections.deque[LiveEvent]] = {}  # by number of the utterance
        self._now = 0

    def heard(self, event: LiveEvent) -> None:
        """Handle an event of the channel's session; those of the next utterance wait for the end.

        A client takes the results of a channel for one text, in order.
        """
        if isinstance(event, SpeechStarted):
            self._started(event)
        number = getattr(event, "utterance", None)
        if number is not None:
            self._events.setdefault(number, collections.deque()).append(event)
        while self._events.get(self._now):
            self._say(self._events[self._now].popleft())

    def _say(self, event: LiveEvent) -> None:
        if isinstance(event, SpeechStarted):
            self._begin = max(self._begin, event.start)
        elif isinstance(event, Partial):
            self._partial(event)
        elif isinstance(event, Committed):
            self._committed(event)
        elif isinstance(event, Utterance):
            words = rest_of(self._sent, event.words) or tuple(self._held)
            self._ended(event.utterance, words, max(event.end, self._begin))
        elif isinstance(event, Failed):
            self._send(
                {
                    "type": "Error",
                    "variant": "TranscriptionError",
                    "description": "an utterance could not be transcribed",
                }
            )
            self._ended(event.utterance, tuple(self._held), self._begin)

    def finalize(self) -> None:
        """The client wants the text of all audio it has sent; its session was told."""
        if self._speaking:
            self._finalizing = True
        else:
            self._result((), self._begin, final=True, from_finalize=True)

    def received(self, seconds: float) -> None:
        """So much audio has come; an utterance may be over for the client."""
        limit = self._asked.utterance_end
        if limit is None or self._last_end is None or self._speaking:
            return
        if seconds - self._last_end >= limit:
            last, self._last_end = self._last_end, None
            self._send({"type": "UtteranceEnd", "channel": self._index, "last_word_end": last})

    def _started(self, event: SpeechStarted) -> None:
        self._speaking.add(event.utterance)
        if self._asked.vad_events:
            self._send({"type": "SpeechStarted", "channel": self._index, "timestamp": event.start})

    def _partial(self, event: Partial) -> None:
        words = (*self._held, *event.words)
        if self._asked.interim and words:
            self._result(words, words[-1].end, final=False)

    def _committed(self, event: Committed) -> None:
        words = (*self._held, *event.words)
        if not words:  # punctuation: it is in the final transcript
            return
        self._held = [words[-1]]
        if len(words) > 1:
            self._result(words[:-1], words[-2].end, final=True)
            self._sent += words[:-1]

    def _ended(self, number: int, words: tuple[Word, ...], end: float) -> None:
        self._speaking.discard(number)
        del self._events[number]
        self._now = number + 1
        self._sent, self._held = [], []
        from_finalize, self._finalizing = self._finalizing, False
        self._result(
            words, end, final=True, ends=self._asked.endpoints, from_finalize=from_finalize
        )

    def _result(
        self,
        words: tuple[Word, ...],
        end: float,
        *,
        final: bool,
        ends: bool = False,
        from_finalize: bool = False,
    ) -> None:
        begin, end = self._begin, max(end, self._begin)
        if final:
            self._begin = end
            if words:
                self._last_end = words[-1].end
        confidence = sum(word.probability for word in words) / max(1, len(words))
        alternative = {
            "transcript": "".join(word.word for word in words).strip(),
            "confidence": round(confidence, 4),
            "words": [_shown(word) for word in words],
        }
        self._send(
            {
                "type": "Results",
                "channel_index": self._index,
                "start": round(begin, 3),
                "duration": round(end - begin, 3),
                "is_final": final,
                "speech_final": ends,
                "from_finalize": from_finalize,
                "channel": {"alternatives": [alternative]},
                "metadata": self._metadata,
            }
        )


def _shown(word: Word) -> dict[str, Any]:
    return {
        "word": _plain(word),
        "start": word.start,
        "end": word.end,
        "confidence": round(word.probability, 4),
        "punctuated_word": word.word.strip(),
    }
