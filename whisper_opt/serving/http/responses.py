"""Bodies of responses: a transcript in the formats of the API."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from whisper_opt.serving.http.call import Call
from whisper_opt.serving.http.speakers import diarized, diarized_segment
from whisper_opt.text.languages import LANGUAGES
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.text.writers import to_srt, to_vtt

__all__ = ["Deltas", "logprobs_of", "rendered", "segment_event", "text_of", "usage"]

_JSON = "application/json"
_PLAIN = "text/plain; charset=utf-8"
_IMPOSSIBLE = -9999.0
"""Stands for minus infinity, which JSON does not have; the number is that of OpenAI's API."""
_HOURLESS = re.compile(r"(?<![\d:])(\d\d:\d\d\.\d{3})")


def text_of(transcript: Transcript) -> str:
    """The text without the space before its first word."""
    return transcript.text.strip()


def usage(transcript: Transcript) -> dict[str, Any]:
    """What is counted: whole seconds of audio, rounded up."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def rendered(transcript: Transcript, call: Call, vocab: Vocab | None) -> tuple[bytes, str]:
    """The body of a response and its Content-Type.

    ``vocab`` is that of the model; needed for log-probabilities alone.

    Raises:
        WhisperOptError: a time is negative.
    """
    form = call.response_format
    if form == "json":
        return _encoded(_short(transcript, call, vocab)), _JSON
    if form == "verbose_json":
        return _encoded(_verbose(transcript, call, vocab)), _JSON
    if form == "diarized_json":
        found = diarized(transcript, text_of(transcript), usage(transcript))
        return _encoded(found), _JSON
    if form == "srt":
        return to_srt(transcript, call.subtitles).encode(), _PLAIN
    if form == "vtt":
        return _with_hours(to_vtt(transcript, call.subtitles)).encode(), _PLAIN
    return f"{text_of(transcript)}\n".encode(), _PLAIN


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _short(transcript: Transcript, call: Call, vocab: Vocab | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"text": text_of(transcript)}
    if call.languages:
        entry["languages"] = [{"code": transcript.language}]
    if call.options.token_logprobs and vocab is not None:
        entry["logprobs"] = logprobs_of(transcript, vocab)
    if call.options.task == "transcribe":
        entry["usage"] = usage(transcript)
    return entry


def logprobs_of(segments: Iterable[Segment], vocab: Vocab) -> list[dict[str, Any]]:
    """Log-probabilities of the tokens of the text; timestamps are left out.

    The ``bytes`` of all tokens, joined, are the text before it is stripped. A token may be part of
    a character: its ``token`` then has U+FFFD, and its ``bytes`` are exact.
    """
    return [
        _logprob(vocab.spelling([token]), logprob)
        for segment in segments
        for token, logprob in zip(segment.tokens, segment.token_logprobs or ())
        if token in vocab.text
    ]


def _logprob(spelling: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": spelling.decode("utf-8", "replace"),
        "logprob": max(logprob, _IMPOSSIBLE),
        "bytes": list(spelling),
    }


def _verbose(transcript: Transcript, call: Call, vocab: Vocab | None) -> dict[str, Any]:
    task = call.options.task
    entry: dict[str, Any] = {
        "task": task,
        "language": "english" if task == "translate" else _name(transcript.language),
        "duration": transcript.duration,
        "text": text_of(transcript),
    }
    if "segment" in call.granularities:
        entry["segments"] = [_segment(segment) for segment in transcript]
    if "word" in call.granularities:
        entry["words"] = [
            {**word.to_dict(), "word": word.word.strip()}
            for segment in transcript
            for word in segment.words or ()
        ]
    if call.options.token_logprobs and vocab is not None:
        entry["logprobs"] = logprobs_of(transcript, vocab)
    if transcript.dropped:
        entry["dropped"] = [part.to_dict() for part in transcript.dropped]
    if task == "transcribe":
        entry["usage"] = usage(transcript)
    return entry


def _name(code: str) -> str:
    return LANGUAGES.get(code, code)


def _segment(segment: Segment) -> dict[str, Any]:
    entry = segment.to_dict()
    entry.pop("words", None)  # listed beside the segments
    if "token_logprobs" in entry:
        entry["token_logprobs"] = [max(each, _IMPOSSIBLE) for each in entry["token_logprobs"]]
    return entry


def segment_event(segment: Segment, call: Call) -> dict[str, Any]:
    """The event of a segment, in a stream of ``verbose_json`` or ``diarized_json``."""
    if call.response_format == "diarized_json":
        return diarized_segment(segment)
    entry = {"type": "transcript.text.segment", **_segment(segment)}
    if "word" in call.granularities:
        entry["words"] = [word.to_dict() for word in segment.words or ()]
    return entry


def _with_hours(vtt: str) -> str:
    """WebVTT whose times all have hours, as OpenAI sends it; cues cannot hold a time line."""

    def filled(match: re.Match[str]) -> str:
        return _HOURLESS.sub(r"00:\1", match.group())

    return re.sub(r"^[\d:.]+ --> [\d:.]+$", filled, vtt, flags=re.M)


class Deltas:
    """The text of a recording in pieces that are only ever appended.

    Joined, the pieces are :func:`text_of` of the whole transcript: spaces at the start are left
    out, and spaces and incomplete characters at the end are held back until more follows.
    """

    def __init__(self, vocab: Vocab, *, logprobs: bool = False) -> None:
        """``logprobs``: whether events have the log-probabilities of their tokens."""
        self._vocab = vocab
        self._with_logprobs = logprobs
        self._logprobs: list[dict[str, Any]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._begun = False

    def add(self, segment: Segment) -> str:
        """The text that can be sent after this segment; may be empty."""
        return self._sendable(self._decoder.decode(self._vocab.spelling(segment.tokens)))

    def end(self) -> str:
        """The rest of the text, after the last segment."""
        return self._sendable(self._decoder.decode(b"", final=True))

    def event(self, segment: Segment | None) -> dict[str, Any] | None:
        """The event after a segment, or after the last one (None); None if there is nothing new.

        Log-probabilities of tokens that cannot be sent yet come with the next event.
        """
        text = self.end() if segment is None else self.add(segment)
        if self._with_logprobs and segment is not None:
            self._logprobs += logprobs_of([segment], self._vocab)
        if not text and (segment is not None or not self._logprobs):
            return None
        event: dict[str, Any] = {"type": "transcript.text.delta", "delta": text}
        if self._with_logprobs:
            event["logprobs"], self._logprobs = self._logprobs, []
        return event

    def done(self, transcript: Transcript) -> dict[str, Any]:
        """The last event."""
        event: dict[str, Any] = {"type": "transcript.text.done", "text": text_of(transcript)}
        if self._with_logprobs:
            event["logprobs"] = logprobs_of(transcript, self._vocab)
        return {**event, "usage": usage(transcript)}

    def _sendable(self, more: str) -> str:
        text = self._held + more
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept
