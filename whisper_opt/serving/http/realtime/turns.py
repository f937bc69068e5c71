"""Items of a conversation: what happens to each utterance, as events of the API.

Every item that is committed gets exactly one ``completed`` or ``failed``, and its deltas are only
ever appended.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, Callable, Union

from whisper_opt.core.errors import WhisperOptError
from whisper_opt.serving.http.errors import api_error
from whisper_opt.serving.http.responses import logprobs_of
from whisper_opt.text.live_events import (
    Committed,
    Failed,
    LiveEvent,
    Partial,
    SpeechStarted,
    SpeechStopped,
    Utterance,
)
from whisper_opt.text.results import Word
from whisper_opt.text.vocabulary import Vocab

__all__ = ["Item", "Items", "Turns"]

_SLACK = 0.05
"""Seconds that resampling may hold back at the end of a turn."""
_PREFIX = "conversation.item.input_audio_transcription"


@dataclasses.dataclass
class Item:
    """One utterance as clients see it.

    Attributes:
        id: its name.
        shown: whether an event has named it.
        committed: whether its audio is complete.
        ended: whether its transcript, or its failure, was sent.
        begun: whether it has text.
    """

    id: str
    shown: bool = False
    committed: bool = False
    ended: bool = False
    begun: bool = False


class Items:
    """Makes items, and sends what is the same for all; shared by the sessions of a connection."""

    def __init__(self, send: Callable[..., None], new_id: Callable[[str], str]) -> None:
        self.send = send
        self._new_id = new_id
        self._last: Union[str, None] = None
        self.flat = False
        """Whether the old dialect is spoken."""
        self.partials = False
        """Whether the client asked for text that may change."""
        self.words = False
        """Whether the client asked for words with their times."""
        self.vocab: Union[Vocab, None] = None
        """The model's vocabulary, if the client asked for log-probabilities."""

    def new(self) -> Item:
        """A new item."""
        return Item(self._new_id("item"))

    def commit(self, item: Item) -> None:
        """The audio of an item is complete."""
        if item.committed:
            return
        item.committed = item.shown = True
        previous, self._last = self._last, item.id
        self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        name = "created" if self.flat else "added"
        self.send(
            f"conversation.item.{name}", previous_item_id=previous, item=self._shown(item, None)
        )

    def _shown(self, item: Item, transcript: Union[str, None]) -> dict[str, Any]:
        return {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": transcript}],
        }

    def delta(self, item: Item, text: str, words: tuple[Word, ...]) -> None:
        """Text that is appended."""
        if not item.begun:
            text = text.lstrip()
        if not text or item.ended:
            return
        item.begun = item.shown = True
        more = {"words": [word.to_dict() for word in words]} if self.words else {}
        self.send(f"{_PREFIX}.delta", item_id=item.id, content_index=0, delta=text, **more)

    def partial(self, item: Item, text: str) -> None:
        """Text that may change."""
        if self.partials and not item.ended:
            item.shown = True
            self.send("whisper_opt.partial", item_id=item.id, content_index=0, text=text)

    def completed(self, item: Item, found: Utterance) -> None:
        """The transcript."""
        if item.ended:
            return
        self.commit(item)
        item.ended = True
        more: dict[str, Any] = {}
        if self.vocab is not None:
            more["logprobs"] = logprobs_of(found.segments, self.vocab)
        if self.words:
            more["segments"] = [
                {
                    "start": segment.start,
                    "end": segment.end,
                    "text": segment.text,
                    "words": [word.to_dict() for word in segment.words or ()],
                }
                for segment in found.segments
            ]
        text = found.text.strip()
        self.send(
            f"{_PREFIX}.completed",
            item_id=item.id,
            content_index=0,
            transcript=text,
            usage={"type": "duration", "seconds": round(max(0.0, found.end - found.start), 3)},
            **more,
        )
        if not self.flat:
            self.send("conversation.item.done", item=self._shown(item, text))

    def failed(self, item: Item, error: BaseException) -> None:
        """There is no transcript."""
        if item.ended:
            return
        self.commit(item)
        item.ended = True
        described = api_error(error, {}).body["error"]
        self.send(f"{_PREFIX}.failed", item_id=item.id, content_index=0, error=described)


class Turns:
    """The items of one session of the engine."""

    def __init__(self, items: Items, *, manual: bool, offset: float) -> None:
        """Begin.

        Args:
            items: of the connection.
            manual: whether only the client ends turns.
            offset: seconds of the connection's audio before this session.
        """
        self._items = items
        self._manual = manual
        self.offset = offset
        self._latest = 0.0
        self._by_utterance: dict[int, Item] = {}
        self._waiting: collections.deque[tuple[float, Item]] = collections.deque()
        self._open = items.new()

    @property
    def speaking(self) -> bool:
        """Whether there is an utterance whose end is not known."""
        return any(item.shown and not item.committed for item in self._by_utterance.values())

    def committed_by_client(self, at: float) -> None:
        """The client has ended a turn, with audio in it, after so many seconds of the session."""
        if not self._manual:
            return  # the session says so: speech_stopped, or a transcript
        self._items.commit(self._open)
        self._next(at)

    def cleared(self, at: float) -> None:
        """The client has dropped its audio, after so many seconds of the session."""
        if self._manual:
            self._next(at)

    def _next(self, at: float) -> None:
        """The turn that began before this time is over; another one begins."""
        self._waiting.append((at, self._open))
        self._open = self._items.new()

    def heard(self, event: LiveEvent) -> None:
        """Handle an event of the session."""
        number: Union[int, None] = getattr(event, "utterance", None)
        if number is None:  # it is about no utterance
            return
        if number not in self._by_utterance:
            at = event.start if isinstance(event, SpeechStarted) else self._latest
            self._by_utterance[number] = self._item(at)
        item = self._by_utterance[number]
        if isinstance(event, SpeechStarted):
            self._started(item, event)
        elif isinstance(event, SpeechStopped):
            self._stopped(item, event)
        elif isinstance(event, Partial):
            self._items.partial(item, event.text)
        elif isinstance(event, Committed):
            self._items.delta(item, event.text, event.words)
        elif isinstance(event, Utterance):
            self._end(number, item, event)
        elif isinstance(event, Failed):
            self._end(number, item, event.error)

    def _item(self, begin: float) -> Item:
        """The item of an utterance that begins at this time; with manual turns, that of its turn.

        A turn that lasts too long is several utterances; the others get items of their own.
        """
        if not self._manual:
            return self._items.new()
        self._latest = begin
        while self._waiting and self._waiting[0][0] <= begin + _SLACK:
            self._lost(self._waiting.popleft()[1])
        item = self._waiting[0][1] if self._waiting else self._open
        if not item.ended and not self._has(item):
            return item
        more = self._items.new()
        if not self._waiting:
            self._open = more
        return more

    def _has(self, item: Item) -> bool:
        return any(item is each for each in self._by_utterance.values())

    def _lost(self, item: Item) -> None:
        """A turn whose utterances have all begun; if there were none, it has no transcript."""
        if item.shown and not item.ended and not self._has(item):
            self._items.failed(item, WhisperOptError("nothing was heard in the turn"))

    def _started(self, item: Item, event: SpeechStarted) -> None:
        if not self._manual and not item.committed:
            item.shown = True
            self._items.send(
                "input_audio_buffer.speech_started",
                audio_start_ms=self._ms(event.start),
                item_id=item.id,
            )

    def _stopped(self, item: Item, event: SpeechStopped) -> None:
        if not self._manual and not item.committed:
            self._items.send(
                "input_audio_buffer.speech_stopped",
                audio_end_ms=self._ms(event.end),
                item_id=item.id,
            )
            self._items.commit(item)

    def _ms(self, seconds: float) -> int:
        return max(0, round((self.offset + seconds) * 1000))

    def _end(self, number: int, item: Item, outcome: Union[Utterance, BaseException]) -> None:
        del self._by_utterance[number]
        if self._manual and not item.committed and not item.begun and not _says(outcome):
            return  # audio that was cleared
        if isinstance(outcome, Utterance):
            self._items.completed(item, outcome)
        else:
            self._items.failed(item, outcome)

    def over(self) -> None:
        """The session has ended: what has no transcript gets none."""
        for item in (*self._by_utterance.values(), *(item for _, item in self._waiting)):
            if item.shown:
                error = WhisperOptError("the session ended before the transcript")
                self._items.failed(item, error)
        self._by_utterance.clear()
        self._waiting.clear()


def _says(outcome: Union[Utterance, BaseException]) -> bool:
    return isinstance(outcome, Utterance) and bool(outcome.text.strip())
