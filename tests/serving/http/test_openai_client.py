"""OpenAI's own client, sync and async, against a running server."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import soundfile

from tests.support.gated_model import GatedBackend, gated_model
from tests.support.http_server import get, post, served, wait_until, wav
from tests.support.in_threads import Started
from tests.support.speaker_networks import ToneNetworks, tones
from whisper_opt import Whisper, render
from whisper_opt.core.arrays import F32
from whisper_opt.serving.http.server import Server

if sys.version_info < (3, 10):
    pytest.skip("not tested: the openai package needs Python 3.10", allow_module_level=True)

import openai
from openai.types import audio as types

CLIP = wav(35.0)
SHORT = wav(0.3)
PLAIN = {"temperature": "[0]", "vad": "off"}
"""Options of the library, which the client sends as they are."""


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected(whisper: Whisper) -> Any:
    return whisper.transcribe(CLIP, temperature=0.0, vad="off")


@pytest.fixture(scope="module")
def with_words(whisper: Whisper) -> Any:
    return whisper.transcribe(CLIP, temperature=0.0, vad="off", word_timestamps=True)


def kind(value: object) -> type:
    """The class of a result, which mypy does not take for granted."""
    return type(value)


def create(client: openai.OpenAI, file: Any = CLIP, extra: Any = None, **arguments: Any) -> Any:
    given = {"model": "whisper-1", **arguments}
    return client.audio.transcriptions.create(
        file=file, extra_body={**PLAIN, **(extra or {})}, **given
    )


# formats


def test_json(client: openai.OpenAI, expected: Any) -> None:
    found = create(client)
    assert kind(found) is types.Transcription
    assert found.text == expected.text.strip()
    assert found.usage.type == "duration"
    assert found.usage.seconds == 35
    assert found._request_id.startswith("req_")


def test_logprobs(client: openai.OpenAI) -> None:
    found = create(client, include=["logprobs"])
    text = b"".join(bytes(map(int, each.bytes)) for each in found.logprobs).decode(
        "utf-8", "replace"
    )
    assert text.strip() == found.text
    assert all(each.logprob <= 0 for each in found.logprobs)
    *deltas, done = create(client, include=["logprobs"], stream=True)
    assert done.logprobs is not None
    assert [each.logprob for each in done.logprobs] == [each.logprob for each in found.logprobs]
    assert [each for event in deltas for each in event.logprobs] != []


def test_verbose_json(client: openai.OpenAI, with_words: Any) -> None:
    found = create(
        client,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert kind(found) is types.TranscriptionVerbose
    assert found.duration == with_words.duration
    assert [(s.id, s.start, s.end, s.text, tuple(s.tokens), s.seek) for s in found.segments] == [
        (s.id, s.start, s.end, s.text, s.tokens, s.seek) for s in with_words
    ]
    assert [(s.avg_logprob, s.compression_ratio, s.no_speech_prob) for s in found.segments] == [
        (s.avg_logprob, s.compression_ratio, s.no_speech_prob) for s in with_words
    ]
    words = [word for segment in with_words for word in segment.words]
    assert [(w.word, w.start, w.end) for w in found.words] == [
        (w.word.strip(), w.start, w.end) for w in words
    ]


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_plain_formats(client: openai.OpenAI, expected: Any, form: Any) -> None:
    found = create(client, response_format=form)
    assert kind(found) is str
    if form == "text":
        assert found == expected.text.strip() + "\n"
    else:
        shown = found.replace("\n00:", "\n").replace("> 00:", "> ") if form == "vtt" else found
        assert shown == render(expected, form)


# speakers

SPOKEN = [(0.5, 8.0, 0), (8.5, 15.0, 1), (15.5, 24.0, 0)]


def encoded(samples: F32) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV")
    return file.getvalue()


TONES = encoded(tones(SPOKEN, 25.0))


@pytest.fixture(scope="module")
def with_speakers(tiny: Path) -> Iterator[tuple[Whisper, openai.OpenAI]]:
    """A model that tells tones apart, and a client of a server with it."""

    def load(source: str) -> Whisper:
        model = Whisper.load(source, device="cpu", threads=1)
        model._speakers = ToneNetworks.networks()
        return model

    with served(str(tiny), load=load) as running, load(str(tiny)) as model:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
        yield model, client
        client.close()


def test_diarized_json(with_speakers: tuple[Whisper, openai.OpenAI]) -> None:
    model, client = with_speakers
    clip = base64.b64encode(encoded(tones([(0.0, 3.0, 1)], 3.0))).decode()
    found = create(
        client,
        TONES,
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        extra={
            "known_speaker_names": ["agent"],
            "known_speaker_references": [f"data:audio/wav;base64,{clip}"],
        },
    )
    assert kind(found) is types.TranscriptionDiarized
    known = {"agent": encoded(tones([(0.0, 3.0, 1)], 3.0))}
    expected = model.transcribe(
        TONES, temperature=0.0, vad="off", diarize=True, known_speakers=known
    )
    assert [(s.id, s.start, s.end, s.text, s.speaker) for s in found.segments] == [
        (f"seg_{s.id:03d}", s.start, s.end, s.text.strip(), s.speaker) for s in expected
    ]
    assert {turn.speaker for turn in expected.turns} == {"A", "agent"}
    assert found.duration == 25.0
    assert found.text == expected.text.strip()


def test_a_stream_of_diarized_json(with_speakers: tuple[Whisper, openai.OpenAI]) -> None:
    model, client = with_speakers
    events = list(create(client, TONES, response_format="diarized_json", stream=True))
    expected = model.transcribe(TONES, temperature=0.0, vad="off", diarize=True)
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert all(kind(event) is types.TranscriptionTextSegmentEvent for event in segments)
    assert [(s.text, s.speaker) for s in segments] == [
        (s.text.strip(), s.speaker) for s in expected
    ]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert "".join(deltas) == events[-1].text == expected.text.strip()


def test_a_clip_without_speech_is_refused(
    with_speakers: tuple[Whisper, openai.OpenAI],
) -> None:
    clip = base64.b64encode(encoded(tones([], 3.0))).decode()
    extra = {
        "known_speaker_names": ["agent"],
        "known_speaker_references": [f"data:audio/wav;base64,{clip}"],
    }
    with pytest.raises(openai.BadRequestError, match="no speech was found") as caught:
        create(with_speakers[1], TONES, response_format="diarized_json", extra=extra)
    assert caught.value.param == "known_speaker_references"


def test_diarized_json_needs_the_networks(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="export-speakers") as caught:
        create(client, response_format="diarized_json")
    assert caught.value.param == "response_format"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI ends its own endpoint
def test_translations(client: openai.OpenAI) -> None:
    found = client.audio.translations.create(file=SHORT, model="whisper-1", extra_body=PLAIN)
    assert kind(found) is types.Translation
    verbose = client.audio.translations.create(
        file=SHORT, model="whisper-1", response_format="verbose_json", extra_body=PLAIN
    )
    assert kind(verbose) is types.TranslationVerbose
    assert (verbose.language, verbose.text) == ("english", found.text)


# fields


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ({"language": "de", "prompt": "Ada", "temperature": 0.5}, {"temperature": "0.5"}),
        ({"keywords": ["Ada", "Bob"]}, {}),
        ({"languages": ["de", "fr"]}, {}),
        ({"chunking_strategy": "auto"}, {"vad": "cut"}),
        ({"chunking_strategy": {"type": "server_vad", "threshold": 0.3}}, {"vad": "cut"}),
        ({"chunking_strategy": None}, {}),
        ({"stream": False}, {}),
    ],
)
def test_fields(client: openai.OpenAI, arguments: Any, extra: Any) -> None:
    assert kind(create(client, SHORT, extra, **arguments)) is types.Transcription


def test_candidate_languages(client: openai.OpenAI, whisper: Whisper) -> None:
    found = create(client, languages=["de", "fr", "it"])
    likely = whisper.detect_language(CLIP)
    language = max(("de", "fr", "it"), key=likely.__getitem__)
    assert found.languages[0].code == language
    alone = whisper.transcribe(CLIP, temperature=0.0, vad="off", language=language)
    assert found.text == alone.text.strip()


@pytest.mark.parametrize(
    "file",
    [SHORT, io.BytesIO(SHORT), ("talk.wav", SHORT), ("talk.mp3", SHORT, "audio/mpeg")],
    ids=["bytes", "file object", "name", "wrong name"],
)
def test_files(client: openai.OpenAI, file: Any) -> None:
    if isinstance(file, io.BytesIO):
        file.seek(0)
    assert kind(create(client, file)) is types.Transcription


def test_a_path(client: openai.OpenAI, tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(SHORT)
    assert kind(create(client, tmp_path / "talk.wav")) is types.Transcription


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["tiny", "whisper-1"]
    assert client.models.retrieve("whisper-1").owned_by == "whisper-opt"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/model")
    assert caught.value.code == "model_not_found"


def test_azure(server: Server, expected: Any) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=server.url, api_key="any", api_version="2024-06-01", max_retries=0
    ) as client:
        assert create(client).text == expected.text.strip()
        with pytest.raises(openai.NotFoundError):
            create(client, model="nope")


# streams


def test_a_stream(client: openai.OpenAI, expected: Any) -> None:
    *deltas, done = create(client, stream=True)
    assert len(deltas) > 1
    assert all(kind(event) is types.TranscriptionTextDeltaEvent for event in deltas)
    assert kind(done) is types.TranscriptionTextDoneEvent
    assert done.text == "".join(event.delta for event in deltas) == expected.text.strip()


@pytest.fixture
def backend() -> Iterator[GatedBackend]:
    made = GatedBackend()
    yield made
    made.gate.set()


FAKE = {"no_speech_threshold": "none"}


def client_of(server: Server, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", **options)


def test_an_error_in_mid_stream(backend: GatedBackend) -> None:
    backend.fail_at = backend.held_from = 2
    with served("gated", load=lambda _: gated_model(backend)) as server, client_of(server) as one:
        stream = iter(create(one, wav(65.0), FAKE, stream=True))
        assert next(stream).type == "transcript.text.delta"
        backend.gate.set()
        with pytest.raises(openai.APIError, match="failed to process the request") as caught:
            list(stream)
        assert cast(Any, caught.value.body)["type"] == "server_error"


def test_comments_are_harmless(backend: GatedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisper_opt.serving.http.events.HEARTBEAT", 0.01)
    with served("gated", load=lambda _: gated_model(backend)) as server, client_of(server) as one:
        stream = create(one, SHORT, FAKE, stream=True)  # the first comment is there
        backend.gate.set()
        assert [event.type for event in stream][-1] == "transcript.text.done"


def test_a_stream_that_is_closed_early(backend: GatedBackend) -> None:
    backend.gate.set()
    with served("gated", load=lambda _: gated_model(backend)) as server, client_of(server) as one:
        stream = create(one, wav(65.0), FAKE, stream=True)
        next(iter(stream))
        stream.close()
        wait_until(lambda: server.service._admission.n_now == 0, "its place is free")


# errors


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "param"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model_not_found", "model"),
        ({"file": b""}, openai.BadRequestError, "invalid_audio", "file"),
        ({"file": b"text"}, openai.BadRequestError, "invalid_audio", "file"),
        ({"file": wav(0.05)}, openai.BadRequestError, "audio_too_short", "file"),
        ({"language": "xx"}, openai.BadRequestError, "invalid_value", "language"),
        ({"include": ["nothing"]}, openai.BadRequestError, "invalid_value", "include"),
        ({"extra": {"x": "1"}}, openai.BadRequestError, "unknown_parameter", "x"),
    ],
)
def test_errors(client: openai.OpenAI, arguments: Any, kind: Any, code: str, param: str) -> None:
    with pytest.raises(kind) as caught:
        create(client, **{"file": SHORT, **arguments})
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.request_id.startswith("req_")


def test_a_wrong_key(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("right-key\n")
    with served(str(tiny), api_key_file=str(tmp_path / "keys")) as server:
        with client_of(server) as one, pytest.raises(openai.AuthenticationError) as caught:
            create(one, wav(100.0))
        assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="right-key") as other:
            assert create(other, SHORT).text


def test_a_file_over_the_limit(tiny: Path) -> None:
    with served(str(tiny), max_upload_bytes=100_000) as server, client_of(server) as one:
        with pytest.raises(openai.APIStatusError) as caught:
            create(one, wav(100.0))
        assert caught.value.status_code == 413
        assert caught.value.type == "invalid_request_error"


def test_a_fault_of_the_server_is_not_retried(backend: GatedBackend) -> None:
    backend.fail_at = 0
    backend.gate.set()
    with served("gated", load=lambda _: gated_model(backend)) as server, client_of(server) as one:
        with pytest.raises(openai.InternalServerError):
            create(one, SHORT, FAKE)
        assert get(server, "/metrics").text.count('status="500"} 1.0') == 1


def test_a_full_queue_is_retried_and_then_succeeds(
    backend: GatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_queued": 1, "max_batch": 1}
    fields = tuple({**PLAIN, **FAKE}.items())
    with served("gated", load=lambda _: gated_model(backend), **options) as server:
        waiting = [Started(lambda: post(server, SHORT, *fields))]
        wait_until(backend.waiting.is_set, "the first is decoded")
        waiting.append(Started(lambda: post(server, SHORT, *fields)))
        wait_until(lambda: server.service._admission.n_now == 2, "two requests are in progress")
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            backend.gate.set()
            assert [one.result().status for one in waiting] == [200, 200]

        with client_of(server, max_retries=2) as one:
            monkeypatch.setattr("time.sleep", sleep)
            assert create(one, SHORT, FAKE).text
        assert len(slept) == 1
        assert slept[0] >= 1


def test_a_server_that_is_loading(tiny: Path, backend: GatedBackend) -> None:
    def load(_: str) -> Whisper:
        assert backend.gate.wait(60)
        return gated_model(backend)

    with served("gated", load=load, ready=False) as server:
        with client_of(server, max_retries=0) as one:
            with pytest.raises(openai.InternalServerError) as caught:
                create(one, SHORT)
            assert caught.value.status_code == 503
            assert caught.value.type == "service_unavailable_error"
        backend.gate.set()


# async


def test_the_async_client(server: Server, expected: Any) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            several = [
                client.audio.transcriptions.create(file=CLIP, model="whisper-1", extra_body=PLAIN)
                for _ in range(3)
            ]
            for found in await asyncio.gather(*several):
                assert found.text == expected.text.strip()
            stream = await client.audio.transcriptions.create(
                file=CLIP, model="whisper-1", extra_body=PLAIN, stream=True
            )
            events = [event async for event in stream]
            assert events[-1].type == "transcript.text.done"
            assert events[-1].text == expected.text.strip()
            with pytest.raises(openai.NotFoundError):
                await client.audio.transcriptions.create(file=SHORT, model="nope")

    asyncio.run(run())


def test_an_async_request_that_is_cancelled(backend: GatedBackend) -> None:
    with served("gated", load=lambda _: gated_model(backend)) as server:

        async def run() -> None:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
                request = asyncio.ensure_future(
                    client.audio.transcriptions.create(
                        file=SHORT, model="whisper-1", extra_body={**PLAIN, **FAKE}
                    )
                )
                await asyncio.get_running_loop().run_in_executor(None, backend.waiting.wait)
                request.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await request

        asyncio.run(run())
        disconnected = server.service.metrics.disconnected._value
        wait_until(lambda: disconnected.get() == 1, "the server notices")
        backend.gate.set()
