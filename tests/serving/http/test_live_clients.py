"""Clients of other services transcribe a recording live, with a real model."""

from __future__ import annotations

import asyncio
import base64
import inspect
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from tests.conftest import ROOT, Engines
from tests.support.http_server import served
from whisper_opt.serving.http.server import Server

pytestmark = pytest.mark.slow

SAID = (
    "and so my fellow americans ask not what your country can do for you"
    " ask what you can do for your country"
)
PATIENCE = 120


def speech(rate: int) -> Any:
    """The recording with a second of silence after it, as int16."""
    samples, given = soundfile.read(ROOT / "examples" / "jfk.flac", dtype="float32")
    mono = soxr.resample(samples.mean(axis=1), given, rate)
    return (np.concatenate([mono, np.zeros(rate, np.float32)]) * 32_000).astype("<i2")


def pieces(samples: Any, n: int) -> Iterator[bytes]:
    for i in range(0, len(samples), n):
        yield samples[i : i + n].tobytes()


def close_to_the_words(text: str) -> None:
    """tiny.en hears each utterance alone, and may miss a word or two."""
    found = re.sub(r"[^a-z ]", "", text.lower()).split()
    missing = [word for word in SAID.split() if word not in found]
    assert len(missing) <= 2, text
    assert abs(len(found) - len(SAID.split())) <= 4, text


@pytest.fixture(scope="module")
def server(engines: Engines) -> Iterator[Server]:
    path = engines.engine("tiny.en", precision="int8").path
    with served(f"tiny.en={path}", wyoming_port=0) as running:
        yield running


def _over(events: list[Any]) -> bool:
    """Whether speech stopped near the end of the recording, and all of it has a transcript."""
    stops = [event.audio_end_ms for event in events if event.type.endswith("speech_stopped")]
    done = [event for event in events if event.type == "conversation.item.done"]
    return len(done) == len(stops) > 0 and stops[-1] > 10_000


def test_openai_realtime(server: Server) -> None:
    openai = pytest.importorskip("openai", reason="not tested: openai needs Python 3.10")

    async def run() -> list[Any]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        found = []
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            session = {
                "type": "transcription",
                "audio": {"input": {"turn_detection": {"type": "server_vad"}}},
                "include": ["item.input_audio_transcription.logprobs"],
            }
            await connection.session.update(session=session)
            for piece in pieces(speech(24_000), 4800):
                audio = base64.b64encode(piece).decode()
                await connection.input_audio_buffer.append(audio=audio)
            async for event in connection:
                found.append(event)
                if _over(found):
                    break
        return found

    found = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    completed = [event for event in found if event.type.endswith("completed")]
    close_to_the_words(" ".join(event.transcript for event in completed))
    assert any(event.type.endswith(".delta") for event in found)
    for event in completed:
        spelled = b"".join(bytes(token.bytes) for token in event.logprobs).decode()
        assert spelled.strip() == event.transcript


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_deepgram(server: Server) -> None:
    deepgram = pytest.importorskip("deepgram", reason="not tested: deepgram-sdk needs Python 3.10")
    from deepgram.core.events import EventType
    from deepgram.environment import DeepgramClientEnvironment

    host, port = server.address
    names = inspect.signature(DeepgramClientEnvironment).parameters
    environment = DeepgramClientEnvironment(**dict.fromkeys(names, f"ws://{host}:{port}"))
    client = deepgram.DeepgramClient(api_key="unused", environment=environment)
    found: list[Any] = []
    options = {"encoding": "linear16", "sample_rate": 16_000, "interim_results": True}
    with client.listen.v1.connect(model="nova-3", vad_events=True, **options) as connection:
        connection.on(EventType.MESSAGE, found.append)
        listener = threading.Thread(target=connection.start_listening)
        listener.start()
        for piece in pieces(speech(16_000), 3200):
            connection.send_media(piece)
        connection.send_close_stream()
        listener.join(PATIENCE)
        assert not listener.is_alive()
    kinds = [type(message).__name__ for message in found]
    assert kinds[-1] == "ListenV1Metadata"
    assert set(kinds) == {"ListenV1SpeechStarted", "ListenV1Results", "ListenV1Metadata"}
    final = [message for message in found if getattr(message, "is_final", False)]
    close_to_the_words(" ".join(each.channel.alternatives[0].transcript for each in final))
    assert any(each.speech_final for each in final)


def test_wyoming(server: Server, engines: Engines) -> None:
    """Text comes while the recording is received; the transcript is that of all of it."""
    with warnings.catch_warnings():  # it imports the standard library's audioop
        warnings.simplefilter("ignore", DeprecationWarning)
        from wyoming.asr import Transcribe
        from wyoming.audio import AudioChunk, AudioStart, AudioStop
        from wyoming.client import AsyncTcpClient

    kind = {"rate": 16_000, "width": 2, "channels": 1}
    silence = np.zeros(3200, "<i2")
    sent: list[Any] = []

    async def run() -> list[Any]:
        assert server.wyoming is not None
        async with AsyncTcpClient(*server.wyoming.address) as client:
            await client.write_event(Transcribe(language="en").event())
            await client.write_event(AudioStart(**kind).event())
            first = asyncio.ensure_future(client.read_event())
            waiting = [np.frombuffer(piece, "<i2") for piece in pieces(speech(16_000), 3200)]
            while waiting or not first.done():  # text comes before the end
                sent.append(waiting.pop(0) if waiting else silence)
                await client.write_event(AudioChunk(**kind, audio=sent[-1].tobytes()).event())
                await asyncio.sleep(0.02)
            await client.write_event(AudioStop().event())
            found: list[Any] = [await first]
            while found[-1].type != "transcript-stop":
                found.append(await client.read_event())
        return found

    found = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert found[0].type == "transcript-start"
    assert any(event.type == "transcript-chunk" for event in found)
    alone = engines.model("tiny.en", precision="int8").transcribe(np.concatenate(sent))
    assert found[-2].data["text"] == alone.text.strip()
