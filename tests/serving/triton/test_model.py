"""The class that Triton runs, on a fake model and a fake Triton."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Union

import pytest

from tests.support.engines_on_fakes import WAIT, options_of, steps
from tests.support.fake_triton import FakeRequest, FakeTriton
from tests.support.http_server import wait_until
from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import ENDLESS, engine, noise
from whisper_opt import BackendUnavailable, EngineError, Whisper, render
from whisper_opt.serving.triton import model as module
from whisper_opt.serving.triton.model import TritonPythonModel
from whisper_opt.serving.triton.settings import PARAMETER, Settings

ARGS = {
    "model_config": json.dumps({"parameters": {PARAMETER: {"string_value": Settings().to_json()}}}),
    "model_instance_kind": "CPU",
    "model_instance_device_id": "0",
    "model_repository": "/models/base",
    "model_version": "1",
}


class Loaded:
    """An instance on a fake model, and Triton."""

    def __init__(self, instance: TritonPythonModel, triton: FakeTriton, whisper: Whisper) -> None:
        self.instance = instance
        self.triton = triton
        self.whisper = whisper

    def send(self, audio: Any, **parameters: Any) -> FakeRequest:
        given = {"options": json.dumps(options_of(**parameters.pop("options", {})))}
        request = FakeRequest({"samples": audio}, {**given, **parameters})
        self.instance.execute([request])
        return request


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Loaded]]:
    """Makes an instance whose model has the given backend; it is finalized at the end."""
    made: list[Loaded] = []

    def make(backend: Any, *, broken: bool = False) -> Loaded:
        triton = FakeTriton(broken=broken)
        whisper = Whisper(engine(), backend)
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
        monkeypatch.setattr(Whisper, "load", lambda source, options: whisper)
        instance = TritonPythonModel()
        instance.initialize(ARGS)
        made.append(Loaded(instance, triton, whisper))
        return made[-1]

    yield make
    for each in made:
        each.instance.finalize()


def test_segments_come_before_the_transcript(load: Callable[..., Loaded], watched: Any) -> None:
    loaded = load(watched)
    audio = noise(95.0)
    sent = loaded.send(audio, word_timestamps=True).sender.wait()
    expected = loaded.whisper.transcribe(audio, **options_of(word_timestamps=True))
    assert len(expected) > 1
    assert [each.values for each in sent] == [
        *({"text": each.text, "segment": json.dumps(each.to_dict())} for each in expected),
        {"transcript": render(expected, "json")},
    ]


def test_one_response_if_asked(load: Callable[..., Loaded], watched: Any) -> None:
    loaded = load(watched)
    audio = noise(95.0)
    (sent,) = loaded.send(audio, stream=False).sender.wait()
    expected = loaded.whisper.transcribe(audio, **options_of())
    assert sent.values == {"text": expected.text, "transcript": render(expected, "json")}


def test_requests_share_a_batch(load: Callable[..., Loaded]) -> None:
    backend = SteppedBackend()
    loaded = load(backend)
    try:
        requests = [loaded.send(noise(20.0), options=ENDLESS)]
        backend.wait()
        requests += [loaded.send(noise(20.0, i), options=ENDLESS) for i in range(1, 4)]
        steps(loaded.instance._engine, backend, 4)
    finally:
        backend.release()
    for each in requests:
        each.sender.wait()
    assert backend.most > 1


def test_a_cancelled_request_frees_its_rows(load: Callable[..., Loaded]) -> None:
    backend = SteppedBackend()
    loaded = load(backend)
    try:
        request = loaded.send(noise(20.0), options=ENDLESS)
        backend.wait()
        request.sender.cancelled = True
        (sent,) = request.sender.wait()
    finally:
        backend.release()
    assert sent.error is not None
    assert sent.error.code == "CANCELLED"
    wait_until(lambda: loaded.triton.Logger.lines, "logged")
    assert "a client cancelled its request after 0 segments" in loaded.triton.Logger.lines[0]
    assert loaded.instance._engine.stats().cancelled == 1


@pytest.mark.parametrize(
    ("inputs", "parameters", "code", "text"),
    [
        ({}, None, "INVALID_ARG", "the request has no recording"),
        ({}, {"audio_base64": "AAAA"}, "INVALID_ARG", "audio data of 3 bytes"),
        ({"samples": noise(1.0)}, {"language": "xx"}, "INVALID_ARG", "unknown language 'xx'"),
    ],
)
def test_errors_have_codes_and_messages(
    load: Callable[..., Loaded],
    watched: Any,
    inputs: dict[str, Any],
    parameters: Union[dict[str, Any], None],
    code: str,
    text: str,
) -> None:
    request = FakeRequest(inputs, parameters)
    load(watched).instance.execute([request])
    (sent,) = request.sender.wait()
    assert sent.error is not None
    assert sent.error.code == code
    assert text in sent.error.text


def test_an_unexpected_error_says_its_kind(load: Callable[..., Loaded], watched: Any) -> None:
    watched.fail, watched.error = 0, RuntimeError("no luck")
    (sent,) = load(watched).send(noise(5.0)).sender.wait()
    assert sent.error is not None
    assert sent.error.code == "INTERNAL"
    assert sent.error.text.endswith("an unexpected RuntimeError: no luck")


def test_after_the_end_requests_are_refused(load: Callable[..., Loaded], watched: Any) -> None:
    loaded = load(watched)
    loaded.instance._engine.close()
    (sent,) = loaded.send(noise(5.0)).sender.wait()
    assert sent.error is not None
    assert sent.error.code == "UNAVAILABLE"


def test_the_end_waits_for_what_was_accepted(load: Callable[..., Loaded], watched: Any) -> None:
    loaded = load(watched)
    request = loaded.send(noise(95.0))
    assert loaded.instance._engine.drain(WAIT)
    assert request.sender.ended.wait(WAIT)
    assert request.sender.sent[-1].error is None


def test_a_backend_for_another_numpy_is_refused(load: Callable[..., Loaded], watched: Any) -> None:
    with pytest.raises(BackendUnavailable, match=r"numpy 1, and numpy is .*; use Triton 24\.11"):
        load(watched, broken=True)


def test_a_model_without_settings_is_refused() -> None:
    with pytest.raises(EngineError, match=r"config\.pbtxt has no usable parameter 'whisper_opt'"):
        Settings.read({"parameters": {}})


def test_the_poll_is_short() -> None:
    assert 0 < module._POLL < 1
