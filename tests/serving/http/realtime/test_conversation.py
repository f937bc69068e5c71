"""The realtime protocol without a socket or a model."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any, Union

import pytest

from tests.support import fake_live
from tests.support.fake_live import FakeLive, loud, quiet
from tests.support.models import random_dims, tokenizer_json
from whisper_opt.serving.http.realtime.conversation import Conversation
from whisper_opt.serving.http.realtime.settings import (
    LOGPROBS,
    PARTIALS,
    WORDS,
    Settings,
    TurnDetection,
)
from whisper_opt.text.vocabulary import Vocab

DIMS = random_dims()
VOCAB = Vocab(tokenizer_json(DIMS), DIMS)
MODELS = ("tiny.en", "whisper-1")
PREFIX = "conversation.item.input_audio_transcription."


class Talk(fake_live.Talk):
    """A conversation, its sessions, and the events that came so far."""

    def __init__(self, *, flat: bool = False, **settings: Any) -> None:
        super().__init__()
        numbers = itertools.count()
        self.it = Conversation(
            Settings("whisper-1", **settings),
            MODELS,
            self._open,
            self.sent.append,
            lambda prefix: f"{prefix}_{next(numbers)}",
            vocab=lambda name: VOCAB,
            flat=flat,
        )

    def _open(self, settings: Settings) -> tuple[int, FakeLive]:
        return self.open(settings.options, settings.live, settings.rate)

    def say(self, samples: Any) -> None:
        audio = samples if isinstance(samples, bytes) else samples.tobytes()
        self.tell("input_audio_buffer.append", audio=base64.b64encode(audio).decode())

    def types(self) -> list[str]:
        return [event["type"].replace(PREFIX, "...") for event in self.take()]


def update(talk: Talk, **session: Any) -> Union[dict[str, Any], None]:
    """The error of an update, if any."""
    talk.tell("session.update", event_id="mine", session={"type": "transcription", **session})
    *_, last = talk.take()
    if last["type"] == "error":
        assert last["error"]["event_id"] == "mine"
        error: dict[str, Any] = last["error"]
        return error
    assert last["type"] == "session.updated"
    return None


def turn(**given: Any) -> dict[str, Any]:
    return {"audio": {"input": {"turn_detection": {"type": "server_vad", **given}}}}


MANUAL = {"audio": {"input": {"turn_detection": None}}}


def test_the_order_of_a_turn() -> None:
    talk = Talk()
    assert talk.types() == ["session.created"]
    talk.say(loud(0.5))
    talk.say(quiet(0.6))
    found = talk.take()
    assert [event["type"].replace(PREFIX, "...") for event in found] == [
        "input_audio_buffer.speech_started",
        "...delta",
        "...delta",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "...completed",
        "conversation.item.done",
    ]
    assert len({event["event_id"] for event in found}) == len(found)
    (item,) = {event["item_id"] for event in found if "item_id" in event}
    assert [event["delta"] for event in found if "delta" in event] == ["w0.0", " w0.1"]
    assert found[0]["audio_start_ms"] == 0
    assert found[3]["audio_end_ms"] == 1000
    assert (found[4]["previous_item_id"], found[5]["item"]["id"]) == (None, item)
    assert found[6]["transcript"] == "w0.0 w0.1."
    assert found[6]["usage"] == {"type": "duration", "seconds": 1.0}
    assert found[7]["item"]["content"][0]["transcript"] == "w0.0 w0.1."
    talk.say(loud(0.3))
    talk.say(quiet(0.6))
    again = talk.take()
    assert [e["previous_item_id"] for e in again if e["type"].endswith("committed")] == [item]


def test_manual_turns() -> None:
    talk = Talk()
    assert update(talk, **MANUAL) is None
    for _ in range(2):
        talk.say(loud(0.3))
        talk.tell("input_audio_buffer.commit")
    types = talk.types()
    assert types[:2] == ["input_audio_buffer.committed", "conversation.item.added"]
    assert types[2:4] == types[:2]
    assert types[4:] == ["...delta", "...completed", "conversation.item.done"] * 2


def test_deltas_before_the_commit_belong_to_its_item() -> None:
    talk = Talk(turns=None)
    talk.say(loud(0.3))
    deltas = [event for event in talk.take() if "delta" in event]
    talk.tell("input_audio_buffer.commit")
    committed, added, completed, _ = talk.take()
    assert deltas[0]["item_id"] == committed["item_id"] == completed["item_id"]
    assert added["item"]["id"] == committed["item_id"]


@pytest.mark.parametrize("manual", [False, True])
def test_a_commit_of_nothing(manual: bool) -> None:
    talk = Talk(turns=None if manual else TurnDetection())
    talk.say(loud(0.05))
    talk.take()
    talk.tell("input_audio_buffer.commit", event_id="x")
    (event,) = talk.take()
    assert (event["type"], event["error"]["code"], event["error"]["event_id"]) == (
        "error", "input_audio_buffer_commit_empty", "x",
    )  # fmt: skip


def test_clear() -> None:
    talk = Talk(turns=None)
    talk.say(loud(0.15))
    talk.tell("input_audio_buffer.clear")
    talk.tell("input_audio_buffer.commit")
    assert talk.types() == ["session.created", "input_audio_buffer.cleared", "error"]


def test_an_utterance_that_fails() -> None:
    talk = Talk()
    talk.sessions[0].fails = True
    talk.say(loud(0.3))
    talk.say(quiet(0.6))
    *_, failed = talk.take()
    assert failed["type"] == f"{PREFIX}failed"
    assert failed["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(failed)


def test_partials_and_words_are_for_those_who_ask() -> None:
    talk = Talk()
    assert update(talk, include=[PARTIALS, WORDS]) is None
    talk.say(loud(0.2))
    talk.say(quiet(0.6))
    found = talk.take()
    assert [e["text"] for e in found if e["type"] == "whisper_opt.partial"] == [" guess"]
    (delta,) = [e for e in found if "delta" in e]
    assert delta["words"][0]["word"] == " w0.0"
    (completed,) = [e for e in found if "transcript" in e]
    assert completed["segments"][0]["words"] == delta["words"]
    assert len(talk.sessions) == 1


def test_log_probabilities_are_for_those_who_ask() -> None:
    talk = Talk()
    assert update(talk, include=[LOGPROBS]) is None
    assert talk.sessions[-1].options.token_logprobs
    talk.say(loud(0.2))
    talk.say(quiet(0.6))
    (completed,) = [event for event in talk.take() if "transcript" in event]
    token = VOCAB.spelling([220])
    expected = {"token": token.decode(), "logprob": -0.5, "bytes": list(token)}
    assert completed["logprobs"] == [expected]


# settings


def test_an_update_keeps_what_it_does_not_name() -> None:
    talk = Talk()
    assert update(talk, audio={"input": {"transcription": {"language": "de"}}}) is None
    assert update(talk, **turn(silence_duration_ms=700)) is None
    assert update(talk, **turn(threshold=0.3)) is None
    assert update(talk, audio={"input": {"transcription": {"keywords": ["Ada", "Alan"]}}}) is None
    settings = talk.it.settings
    assert (settings.language, settings.keywords) == ("de", ("Ada", "Alan"))
    session = talk.sessions[-1]
    assert (session.live.silence_ms, session.live.threshold) == (700, 0.3)
    assert (session.options.language, session.options.hotwords) == ("de", "Ada, Alan")
    assert all(each.cancelled for each in talk.sessions[:-1])
    assert update(talk, **MANUAL) is None
    assert talk.it.settings.turns is None


@pytest.mark.parametrize(
    ("eagerness", "silence"), [("low", 2000), ("medium", 1000), ("auto", 1000), ("high", 500)]
)
def test_semantic_vad_is_a_pause(eagerness: str, silence: int) -> None:
    talk = Talk()
    given = {"type": "semantic_vad", "eagerness": eagerness}
    assert update(talk, audio={"input": {"turn_detection": given}}) is None
    assert talk.sessions[-1].live.silence_ms == silence
    turns = talk.it.settings.turns
    assert turns is not None
    assert turns.shown == given


INPUT = "session.audio.input."
REFUSED, INVALID = "unsupported_value", "invalid_value"
BOTH = {"languages": ["en", "de"]}


def given(**fields: Any) -> dict[str, Any]:
    return {"audio": {"input": fields}}


@pytest.mark.parametrize(
    ("session", "param", "code"),
    [
        ({"type": "realtime"}, "session.type", REFUSED),
        ({"voice": "x"}, "session.voice", "unknown_parameter"),
        ({"audio": 3}, "session.audio", INVALID),
        ({"audio": {"output": {}}}, "session.audio.output", "unknown_parameter"),
        ({"include": ["x"]}, "session.include", INVALID),
        (turn(threshold=2), f"{INPUT}turn_detection.threshold", INVALID),
        (turn(threshold=True), f"{INPUT}turn_detection.threshold", INVALID),
        (turn(idle_timeout_ms=5000), f"{INPUT}turn_detection.idle_timeout_ms", REFUSED),
        (given(noise_reduction={"type": "near_field"}), f"{INPUT}noise_reduction", REFUSED),
        (given(format={"type": "audio/pcm", "rate": 16000}), f"{INPUT}format.rate", INVALID),
        (given(format={"type": "audio/opus"}), f"{INPUT}format.type", INVALID),
        (given(transcription={"model": "no"}), f"{INPUT}transcription.model", "model_not_found"),
        (given(transcription={"language": "xx"}), f"{INPUT}transcription.language", INVALID),
        (given(transcription=BOTH), f"{INPUT}transcription.languages", REFUSED),
        (given(transcription=None), f"{INPUT}transcription", REFUSED),
    ],
)
def test_what_cannot_be_is_refused(session: dict[str, Any], param: str, code: str) -> None:
    talk = Talk()
    before = talk.it.settings
    error = update(talk, **session)
    assert error is not None
    assert (error["param"], error["code"]) == (param, code)
    assert talk.it.settings == before


def test_an_update_does_not_cut_a_turn() -> None:
    talk = Talk()
    talk.say(loud(0.3))
    talk.listen()
    assert update(talk, audio={"input": {"transcription": {"language": "de"}}}) is None
    assert len(talk.sessions) == 1
    talk.say(loud(0.1))
    talk.say(quiet(0.6))
    assert talk.types()[-2:] == ["...completed", "conversation.item.done"]
    assert [session.options.language for session in talk.sessions] == [None, "de"]
    assert talk.sessions[0].finished
    talk.it.ended(0)
    talk.say(loud(0.3))
    (started,) = [e for e in talk.take() if e["type"].endswith("speech_started")]
    assert started["audio_start_ms"] == 1000
    assert talk.it.closing is None


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_audio(kind: str) -> None:
    talk = Talk()
    assert update(talk, audio={"input": {"format": {"type": kind}}}) is None
    assert talk.sessions[-1].sample_rate == 8000
    talk.say(b"\x10" * 4000)
    assert talk.sessions[-1].received == 4000


def test_half_a_sample_is_kept() -> None:
    talk = Talk()
    data = loud(0.1).tobytes()
    talk.say(data[:1001])
    talk.say(data[1001:])
    assert talk.sessions[0].received == 2400


# the old dialect


def test_the_old_dialect() -> None:
    talk = Talk(flat=True)
    (created,) = talk.take()
    assert created["type"] == "transcription_session.created"
    talk.tell(
        "transcription_session.update",
        session={
            "input_audio_format": "g711_ulaw",
            "input_audio_transcription": {"model": "tiny.en", "prompt": "Ada", "language": "en"},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
            "input_audio_noise_reduction": None,
            "include": None,
        },
    )
    (updated,) = talk.take()
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_format"] == "g711_ulaw"
    assert talk.sessions[-1].options.initial_prompt == "Ada"
    talk.say(b"\x10" * 8000)
    talk.say(b"\xff" * 8000)
    types = talk.types()
    assert "conversation.item.created" in types
    assert "conversation.item.added" not in types
    assert types[-1] == "...completed"


# messages


@pytest.mark.parametrize(
    "message",
    ["", "nonsense", "[]", "3", b"{}", "[" * 100_000, '{"type": 3}', '{"type": "response.create"}'],
)
def test_no_event(message: Union[str, bytes]) -> None:
    talk = Talk()
    talk.take()
    talk.it.receive(message)
    (event,) = talk.take()
    assert (event["type"], event["error"]["type"]) == ("error", "invalid_request_error")
    assert talk.it.closing is None


@pytest.mark.parametrize("audio", [None, 3, "!", "YQ"])
def test_no_audio(audio: Any) -> None:
    talk = Talk()
    talk.take()
    talk.tell("input_audio_buffer.append", audio=audio, event_id="x" * 512)
    (event,) = talk.take()
    assert (event["error"]["param"], event["error"]["event_id"]) == ("audio", "x" * 512)
