"""Every event is one of the openai package: its own class, with valid fields."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.http.realtime.test_conversation import Talk
from tests.support.fake_live import loud, quiet
from whisper_opt.serving.http.realtime.settings import PARTIALS, WORDS

CLASSES = {
    "session.created": "SessionCreatedEvent",
    "session.updated": "SessionUpdatedEvent",
    "input_audio_buffer.speech_started": "InputAudioBufferSpeechStartedEvent",
    "input_audio_buffer.speech_stopped": "InputAudioBufferSpeechStoppedEvent",
    "input_audio_buffer.committed": "InputAudioBufferCommittedEvent",
    "input_audio_buffer.cleared": "InputAudioBufferClearedEvent",
    "conversation.item.added": "ConversationItemAdded",
    "conversation.item.created": "ConversationItemCreatedEvent",
    "conversation.item.done": "ConversationItemDone",
    **{
        f"conversation.item.input_audio_transcription.{name.lower()}": (
            f"ConversationItemInputAudioTranscription{name}Event"
        )
        for name in ("Delta", "Completed", "Failed")
    },
    "error": "RealtimeErrorEvent",
}


def events(*, flat: bool) -> list[dict[str, Any]]:
    """A conversation in which everything happens."""
    talk = Talk(flat=flat)
    talk.tell("session.update", session={"type": "transcription"})
    found = talk.take()
    talk.tell("session.update", session={"include": [PARTIALS, WORDS]})  # not of the package
    talk.take()
    for fails in (False, True):
        talk.sessions[0].fails = fails
        talk.say(loud(0.5))
        talk.say(quiet(0.6))
        found += talk.take()
    talk.tell("input_audio_buffer.clear")
    talk.tell("input_audio_buffer.commit", event_id="mine")
    found += talk.take()
    talk.it.silent()
    talk.it.farewell(restarts=True)
    return found + talk.take()


@pytest.mark.parametrize("flat", [False, True])
def test_each_event_has_its_class(flat: bool) -> None:
    pytest.importorskip("openai", reason="not tested: openai needs Python 3.10")
    from openai._models import construct_type_unchecked
    from openai.types.realtime import RealtimeServerEvent

    seen = set()
    server_event: Any = RealtimeServerEvent
    for event in events(flat=flat):
        if event["type"].startswith(("whisper_opt.", "transcription_session.")):
            continue  # this server's own; of the old dialect, which the package has dropped
        parsed: Any = construct_type_unchecked(value=event, type_=server_event)
        assert type(parsed).__name__ == CLASSES[event["type"]]
        type(parsed).model_validate(event)
        seen.add(event["type"])
    other = {"conversation.item.created"} if not flat else {
        "session.created", "conversation.item.added", "conversation.item.done",
    }  # fmt: skip
    assert seen == set(CLASSES) - other


def test_client_secrets_parse() -> None:
    pytest.importorskip("openai", reason="not tested: openai needs Python 3.10")
    from openai.types.realtime import ClientSecretCreateResponse

    settings = Talk().it.settings
    body = {"value": "ek_1", "expires_at": 1, "session": settings.shown("sess_1")}
    found = ClientSecretCreateResponse.model_validate(body)
    assert found.session.type == "transcription"
