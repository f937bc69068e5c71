"""The protocol of /v1/listen without a socket or a model."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest

from tests.support import fake_live
from tests.support.fake_live import FakeLive, loud, quiet
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.deepgram.listening import Listening
from whisper_opt.serving.http.deepgram.messages import rest_of
from whisper_opt.serving.http.deepgram.query import read_query
from whisper_opt.text.live_events import Utterance
from whisper_opt.text.results import Word

AUDIO = "encoding=linear16&sample_rate=24000"


class Talk(fake_live.Talk):
    def __init__(self, query: str = "") -> None:
        super().__init__()
        self.asked = read_query(parse_qsl(f"{AUDIO}&{query}"), ("tiny",), ServeOptions())
        self.it = Listening(self.asked, self._open, self.sent.append, "id")

    def _open(self, n_channels: int) -> tuple[int, FakeLive]:
        return self.open(self.asked.options, self.asked.live, self.asked.rate, n_channels)

    def say(self, samples: Any) -> None:
        self.it.receive(samples.tobytes())


def texts(messages: list[dict[str, Any]], *, final: bool = True) -> list[str]:
    return [
        message["channel"]["alternatives"][0]["transcript"]
        for message in messages
        if message["type"] == "Results" and message["is_final"] is final
    ]


def test_final_results_add_up() -> None:
    talk = Talk()
    talk.say(loud(0.7))
    talk.say(quiet(0.6))
    found = talk.take()
    assert texts(found) == ["w0.0", "w0.1", "w0.2"]
    assert texts(found, final=False) == []
    assert [message["speech_final"] for message in found] == [False, False, True]
    ends = [message["start"] + message["duration"] for message in found]
    assert [message["start"] for message in found] == pytest.approx([0.0, *ends[:-1]])
    words = found[-1]["channel"]["alternatives"][0]["words"]
    assert [(word["word"], word["punctuated_word"]) for word in words] == [("w0.2", "w0.2")]


def test_an_utterance_that_ends_late() -> None:
    """Its transcript may come after the beginning of the next one."""
    talk = Talk("vad_events=true")
    for _ in range(2):
        talk.say(loud(0.3))
        talk.say(quiet(0.6))
    pending = talk.sessions[0].pending
    (at,) = [i for i, e in enumerate(pending) if isinstance(e, Utterance) and e.utterance == 0]
    late = pending[at]
    del pending[at]
    pending.insert(len(pending) - 3, late)
    found = talk.take()
    assert texts(found) == ["w0.0", "w1.0"]
    assert [message["type"] for message in found] == ["SpeechStarted"] * 2 + ["Results"] * 2


def test_interim_results_are_what_is_not_final() -> None:
    talk = Talk("interim_results=true")
    talk.say(loud(0.4))
    found = talk.take()
    assert texts(found, final=False) == ["w0.0 guess", "w0.1 guess"]
    assert texts(found) == ["w0.0"]


def test_endpointing_off() -> None:
    talk = Talk("endpointing=false")
    talk.say(loud(0.3))
    talk.say(quiet(0.6))
    assert not any(message["speech_final"] for message in talk.take())


def test_vad_events_and_the_end_of_an_utterance() -> None:
    talk = Talk("interim_results=true&vad_events=true&utterance_end_ms=1000")
    talk.say(quiet(0.2))
    talk.say(loud(0.3))
    talk.say(quiet(0.6))
    first, *_ = talk.take()
    assert first == {"type": "SpeechStarted", "channel": [0, 1], "timestamp": pytest.approx(0.2)}
    talk.say(quiet(0.5))
    (end,) = talk.take()
    assert end == {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": pytest.approx(0.38)}
    talk.say(quiet(2.0))
    assert talk.take() == []


def test_finalize() -> None:
    talk = Talk()
    talk.say(loud(0.3))
    talk.take()
    talk.tell("Finalize")
    (result,) = talk.take()
    assert (result["from_finalize"], texts([result])) == (True, ["w0.0"])
    talk.tell("Finalize")
    (result,) = talk.take()
    assert (result["from_finalize"], texts([result])) == (True, [""])


def test_channels_apart() -> None:
    talk = Talk("channels=2&multichannel=true")
    both = loud(0.3, n_channels=2)
    both[:, 1] = 0
    talk.say(both)
    talk.say(quiet(0.6, n_channels=2))
    found = talk.take()
    assert [message["channel_index"] for message in found] == [[0, 2]]
    assert len(talk.sessions) == 2


def test_channels_together() -> None:
    talk = Talk("channels=2")
    talk.say(loud(0.3, n_channels=2))
    (session,) = talk.sessions
    assert (session.channels, session.received) == (2, 7200)


def test_the_end() -> None:
    talk = Talk()
    talk.say(loud(0.3))
    seen: list[Any] = []
    for command in ("KeepAlive", "CloseStream"):
        talk.tell(command)
        seen.append(talk.it.closing)
    assert seen == [None, (1000, "")]
    talk.it.finish()
    assert texts(talk.take()) == ["w0.0"]
    talk.it.farewell(restarts=False)
    (metadata,) = talk.take()
    assert metadata["type"] == "Metadata"
    assert metadata["duration"] == pytest.approx(0.3)
    assert len(metadata["sha256"]) == 64


def test_an_utterance_that_fails() -> None:
    talk = Talk()
    talk.sessions[0].fails = True
    talk.say(loud(0.3))
    talk.say(quiet(0.6))
    error, result = talk.take()
    assert error["type"] == "Error"
    assert "secret" not in json.dumps(error)
    assert texts([result]) == ["w0.0"]


@pytest.mark.parametrize("message", ["", "[]", "{}", "3", '{"type": "Unknown"}', "[" * 100_000])
def test_no_command(message: str) -> None:
    talk = Talk()
    talk.it.receive(message)
    (error,) = talk.take()
    assert (error["type"], error["variant"]) == ("Error", "SchemaError")


def words(text: str, begin: float = 0.0) -> tuple[Word, ...]:
    return tuple(Word(begin + i, begin + i + 0.9, f" {w}", 0.9) for i, w in enumerate(text.split()))


@pytest.mark.parametrize(
    ("sent", "final", "rest"),
    [
        ("", "a b", "a b"),
        ("a b", "a b c", "c"),
        ("a b", "A, b. c", "c"),
        ("a x", "a b c", "c"),
        ("a b c", "a b", ""),
        ("x y", "a b c", "c"),
        ("a b a", "a b a b", "b"),
    ],
)
def test_the_rest_of_a_transcript(sent: str, final: str, rest: str) -> None:
    found = rest_of(words(sent), words(final))
    assert " ".join(word.word.strip() for word in found) == rest
