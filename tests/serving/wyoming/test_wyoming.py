"""Home Assistant's protocol, with the client of the wyoming package."""

from __future__ import annotations

import asyncio
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.gated_model import GatedBackend, gated_model
from tests.support.http_server import served, wait_until
from tests.support.sockets import fake_sessions
from whisper_opt import Whisper
from whisper_opt.serving.http.server import Server

with warnings.catch_warnings():  # it imports the standard library's audioop
    warnings.simplefilter("ignore", DeprecationWarning)
    from wyoming.asr import Transcribe, Transcript
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncTcpClient
    from wyoming.event import Event
    from wyoming.info import Describe, Info

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Server]:
    options: Any = {"wyoming_live": False, "max_audio_seconds": 40.0, "max_channels": 2}
    with served(str(tiny), wyoming_port=0, **options) as running:
        yield running


@pytest.fixture(scope="module")
def whisper(tiny: Path) -> Iterator[Whisper]:
    with Whisper.load(tiny, device="cpu", threads=1) as model:
        yield model


@pytest.fixture
def backend() -> Iterator[GatedBackend]:
    made = GatedBackend()
    yield made
    made.gate.set()


def speech(seconds: float) -> Any:
    """Samples as int16."""
    samples, _ = soundfile.read(ROOT / "examples" / "jfk.flac", dtype="int16")
    return np.resize(samples, round(seconds * 16_000))


def told(server: Server, *events: Any, until: str = "transcript-stop") -> list[Event]:
    """What the server answers to events, to the last of a type or the end of the connection."""

    async def run() -> list[Event]:
        assert server.wyoming is not None
        found = []
        async with AsyncTcpClient(*server.wyoming.address) as client:
            for event in events:
                await client.write_event(event.event())
            while (event := await asyncio.wait_for(client.read_event(), 60)) is not None:
                found.append(event)
                if event.type == until:
                    break
        return found

    return asyncio.run(run())


def audio(samples: Any, rate: int = 16_000, width: int = 2, channels: int = 1) -> list[Any]:
    """The events of a recording, in pieces."""
    data, kind = samples.tobytes(), {"rate": rate, "width": width, "channels": channels}
    pieces = [data[i : i + 4000] for i in range(0, len(data), 4000)]
    chunks = [AudioChunk(**kind, audio=piece) for piece in pieces]
    return [AudioStart(**kind), *chunks, AudioStop()]


def text_of(events: list[Event]) -> str:
    """The transcript; it equals the joined pieces."""
    (found,) = (Transcript.from_event(e) for e in events if e.type == "transcript")
    assert found.text == "".join(e.data["text"] for e in events if e.type == "transcript-chunk")
    return found.text


def test_info(server: Server, whisper: Whisper) -> None:
    (event,) = told(server, Describe(), until="info")
    (program,) = Info.from_event(event).asr
    assert program.name == "whisper-opt"
    assert program.supports_transcript_streaming
    (model,) = program.models
    assert (model.name, tuple(model.languages)) == ("tiny", whisper.languages)


def test_a_transcript(server: Server, whisper: Whisper) -> None:
    samples = speech(35.0)
    events = told(server, Transcribe(language="de"), *audio(samples))
    assert events[0].type == "transcript-start"
    assert [event.type for event in events[-2:]] == ["transcript", "transcript-stop"]
    alone = whisper.transcribe(samples, language="de")
    assert alone.text.strip()
    assert text_of(events) == alone.text.strip()
    assert events[-2].data["language"] == "de"


def test_text_comes_before_the_recording_is_complete(tiny: Path, whisper: Whisper) -> None:
    """The transcript is that of the whole recording nevertheless."""
    samples = speech(2.0)
    expected = whisper.transcribe(samples, language="en").text.strip()
    with fake_sessions() as sessions, served(str(tiny), wyoming_port=0) as server:

        async def run() -> list[Event]:
            assert server.wyoming is not None
            found: list[Event] = []
            async with AsyncTcpClient(*server.wyoming.address) as client:
                *first, stop = [Transcribe(language="en"), *audio(samples)]
                for event in first:
                    await client.write_event(event.event())
                found += [await asyncio.wait_for(client.read_event(), 60) for _ in range(2)]
                await client.write_event(stop.event())
                while found[-1].type != "transcript-stop":
                    found.append(await asyncio.wait_for(client.read_event(), 60))
            return found

        events = asyncio.run(run())
    types = [event.type for event in events]
    assert types[:2] == ["transcript-start", "transcript-chunk"]
    assert events[1].data["text"] == "w0.0"
    assert types[-2:] == ["transcript", "transcript-stop"]
    assert types.count("transcript-start") == 1
    assert events[-2].data["text"] == expected
    assert [session.cancelled for session in sessions] == [True]
    assert sessions[0].options.language == "en"


def test_names_and_terms_are_hotwords(server: Server, whisper: Whisper) -> None:
    samples = speech(2.0)
    asked = Transcribe(
        name="tiny", language="en", transcript_names=["Ada"], transcript_terms=["Turing"]
    )
    expected = whisper.transcribe(samples, language="en", hotwords="Ada, Turing").text.strip()
    assert text_of(told(server, asked, *audio(samples))) == expected


@pytest.mark.parametrize(("width", "dtype"), [(1, "u1"), (4, "<i4")])
def test_other_layouts(server: Server, whisper: Whisper, width: int, dtype: str) -> None:
    wide = speech(1.0).astype(np.int64) << 16
    samples = ((wide >> 24) + 128 if width == 1 else wide).astype(dtype)
    stereo = np.stack([samples, samples], axis=1)
    asked = Transcribe(language="en")
    found = text_of(told(server, asked, *audio(stereo, 22_050, width, 2)))
    expected = whisper.transcribe(stereo, sample_rate=22_050, language="en")
    assert found == expected.text.strip()


def test_a_recording_that_is_too_short(server: Server) -> None:
    assert text_of(told(server, *audio(speech(0.05)))) == ""


def test_unknown_events_are_ignored(server: Server) -> None:
    class Unknown:
        def event(self) -> Event:
            return Event("select-program", {"name": "x"}, b"payload")

    (event,) = told(server, Unknown(), Describe(), until="info")
    assert event.type == "info"


def refusal(server: Server, *events: Any) -> str:
    *_, last = told(server, *events, until="error")
    assert last.type == "error"
    assert last.data["text"]
    return str(last.data["code"])


def test_refusals(server: Server) -> None:
    clip = audio(speech(1.0))
    assert refusal(server, Transcribe(name="nope"), *clip) == "model_not_found"
    assert refusal(server, Transcribe(language="xx"), *clip) == "invalid_value"
    assert refusal(server, *audio(speech(1.0), channels=3)) == "unsupported-audio"
    assert refusal(server, *audio(speech(1.0), width=3)) == "unsupported-audio"
    assert refusal(server, *audio(speech(1.0), rate=0)) == "unsupported-audio"
    assert refusal(server, AudioStop()) == "unsupported-audio"
    assert refusal(server, *audio(speech(41.0))) == "audio-too-long"


def test_after_an_error_comes_another_recording(server: Server) -> None:
    long, short = audio(speech(41.0)), audio(speech(1.0))
    events = told(server, Transcribe(name="tiny"), *long, Transcribe(language="en"), *short)
    assert events[0].type == "error"
    assert [event.type for event in events[-2:]] == ["transcript", "transcript-stop"]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"type": "describe", "data_length": -1}\n',
        b'{"type": "describe", "data_length": "x"}\n',
        b'{"type": "describe", "payload_length": 99999999999}\n',
        b'{"type": "describe", "data_length": 2}\n[]',
        b"\xff\n",
        b"x" * 100_000 + b"\n",
    ],
)
def test_malformed_events(server: Server, line: bytes) -> None:
    assert server.wyoming is not None
    with socket.create_connection(server.wyoming.address, timeout=60) as link:
        link.sendall(line)
        with link.makefile("rb") as answer:
            assert b'"type": "error"' in answer.readline()


def test_a_disconnect_cancels(backend: GatedBackend) -> None:
    with served("gated", load=lambda _: gated_model(backend), wyoming_port=0) as server:

        async def run() -> None:
            assert server.wyoming is not None
            async with AsyncTcpClient(*server.wyoming.address) as client:
                for event in audio(speech(2.0)):
                    await client.write_event(event.event())
                await asyncio.get_running_loop().run_in_executor(None, backend.waiting.wait)

        asyncio.run(run())
        wait_until(lambda: server.service._admission.n_now == 0, "the server notices")
        backend.gate.set()
        (model,) = server.models
        wait_until(lambda: model.engine.stats().running == 0, "it is cancelled")
        assert model.engine.stats().cancelled == 1


def test_a_fault_of_the_server(backend: GatedBackend) -> None:
    backend.fail_at = 0
    backend.gate.set()
    with served("gated", load=lambda _: gated_model(backend), wyoming_port=0) as server:
        *_, last = told(server, *audio(speech(2.0)), until="error")
        assert last.type == "error"
        assert "secret" not in last.data["text"]
