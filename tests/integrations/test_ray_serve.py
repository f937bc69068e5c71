"""The replica for Ray Serve on a fake model; Ray is not needed."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("starlette", reason="not tested: the extra [server] is not installed")

from starlette.datastructures import QueryParams

from tests.support.engines_on_fakes import WAIT, options_of
from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import ENDLESS, WatchedBackend, engine, noise
from whisper_opt import OptionError, QueueFull, Whisper
from whisper_opt.integrations.ray_serve import Transcription, deployment


class FakeRequest:
    """What the replica needs of Starlette's request."""

    def __init__(self, query: str, body: bytes) -> None:
        self.query_params = QueryParams(query)
        self._body = body

    async def body(self) -> bytes:
        return self._body


@pytest.fixture
def watched() -> WatchedBackend:
    return WatchedBackend()


def replica(monkeypatch: pytest.MonkeyPatch, backend: Any, **arguments: Any) -> Transcription:
    model = Whisper(engine(), backend)
    monkeypatch.setattr(Whisper, "load", lambda source, **options: model)
    return Transcription("any", options=options_of(), **arguments)


def test_transcripts_and_segments(monkeypatch: pytest.MonkeyPatch, watched: WatchedBackend) -> None:
    made = replica(monkeypatch, watched)
    audio = noise(95.0)
    expected = Whisper(engine(), watched).transcribe(audio, **options_of(word_timestamps=True))

    async def run() -> tuple[Any, list[Any]]:
        whole = await made.transcribe(audio, word_timestamps=True)
        return whole, [each async for each in made.segments(audio, word_timestamps=True)]

    whole, segments = asyncio.run(run())
    assert whole == {**expected.to_dict(), "duration": 95.0}
    assert segments == whole["segments"]
    assert len(segments) > 1


def test_a_task_that_is_cancelled_frees_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SteppedBackend()
    made = replica(monkeypatch, backend)

    async def run() -> None:
        task = asyncio.create_task(made.transcribe(noise(20.0), **ENDLESS))
        await asyncio.to_thread(backend.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
    finally:
        backend.release()
    assert made._engine.drain(WAIT)
    assert made._engine.stats().cancelled == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("lang=en", "there is no option 'lang'"),
        ("language=xx", "unknown language 'xx'"),
        ("beam_size=0", "beam_size"),
        ("", "audio data of 4 bytes"),
        ("initial_prompt=1984&hotwords=true&draft=12", "audio data of 4 bytes"),
        ('diarize=true&known_speakers={"Ann":"/etc/hostname"}', "names files of the server"),
    ],
)
def test_wrong_requests_are_400(
    monkeypatch: pytest.MonkeyPatch, watched: WatchedBackend, query: str, message: str
) -> None:
    made = replica(monkeypatch, watched)
    answer = asyncio.run(made(FakeRequest(query, b"RIFF")))
    assert answer.status_code == 400
    assert message in json.loads(answer.body)["error"]


def test_a_full_queue_is_429_and_a_closed_engine_500(
    monkeypatch: pytest.MonkeyPatch, watched: WatchedBackend
) -> None:
    made = replica(monkeypatch, watched)
    made.check_health()

    def full(*arguments: Any, **options: Any) -> None:
        raise QueueFull("256 recordings wait")

    with monkeypatch.context() as patch:
        patch.setattr(made._engine, "submit", full)
        assert asyncio.run(made(FakeRequest("", b"RIFF"))).status_code == 429
    made._engine.close()
    assert asyncio.run(made(FakeRequest("", b"RIFF"))).status_code == 500
    with pytest.raises(RuntimeError, match="the engine was closed"):
        made.check_health()


def test_a_deployment_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Mock()
    monkeypatch.setitem(sys.modules, "ray", Mock(serve=serve))
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    deployment("base", max_batch=2, max_queued=3, num_replicas=4)
    serve.deployment.assert_called_once_with(max_ongoing_requests=8, num_replicas=4)
    bind = serve.deployment.return_value.return_value.bind
    bind.assert_called_once_with("base", load=None, options=None, max_batch=2, max_queued=3)


def test_options_of_handles_are_checked(
    monkeypatch: pytest.MonkeyPatch, watched: WatchedBackend
) -> None:
    made = replica(monkeypatch, watched)
    with pytest.raises(OptionError, match="there is no option 'lang'"):
        asyncio.run(made.transcribe(noise(1.0), lang="en"))
