"""Whole transcriptions over the sessions of a device are those of ONNX Runtime's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from tests.conftest import ROOT, Engines
from tests.support.backend_subjects import trt_executor
from tests.support.cpu_executor import CpuExecutor
from tests.support.engines import require
from tests.support.fake_cuda import FakeCuda
from tests.transcription.test_model import noise
from tests.transcription.test_transcribe_many import talkative_checkpoint
from whisper_opt import Transcript, Whisper
from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import Backend, GreedyRows, MultiStepResult
from whisper_opt.export import export
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.device.session import DeviceSession
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

JFK = ROOT / "examples" / "jfk.flac"


def same(found: Transcript, expected: Transcript) -> None:
    """Tokens, times and words; likelihoods but for rounding."""
    assert len(found.segments) == len(expected.segments)
    for one, other in zip(found, expected):
        assert one.tokens == other.tokens
        assert (one.start, one.end, one.text, one.temperature) == (
            other.start,
            other.end,
            other.text,
            other.temperature,
        )
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-3)
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-3)
        words, others = one.words or (), other.words or ()
        assert [(word.word, word.start, word.end) for word in words] == [
            (word.word, word.start, word.end) for word in others
        ]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    require("standard")
    folder = tmp_path_factory.mktemp("device") / "engine"
    return export(talkative_checkpoint(), folder, dialect="standard")


@pytest.fixture(scope="module", params=["cpu", "fake gpu"])
def device(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Backend]:
    dims = engine.manifest.dims
    if request.param == "cpu":
        yield DeviceBackend(CpuExecutor(engine, threads=1), dims)
        return
    cuda = FakeCuda()
    backend = DeviceBackend(trt_executor(engine, cuda, PlanSpec(max_batch=3, max_beam=12)), dims)
    yield backend
    backend.close()
    assert cuda.leaks == {}


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "beam": {"temperature": 0.0, "beam_size": 5},
    "wide beam": {"temperature": 0.0, "beam_size": 12},
    "ladder": {"temperature": (0.0, 0.5), "best_of": 3, "logprob_threshold": -1.9},
    "penalty": {"temperature": 0.0, "repetition_penalty": 1.3},
    "plain": {"temperature": 0.0, "without_timestamps": True, "word_timestamps": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_random_model(engine: Engine, device: Backend, name: str) -> None:
    """Several recordings at once, which come and go."""
    options = {
        "language": "en",
        "max_new_tokens": 12,
        "no_speech_threshold": None,
        "vad": "off",
        **OPTIONS[name],
    }
    recordings = [noise(seconds, seed) for seed, seconds in enumerate((31.0, 0.7))]
    found, expected = (
        dict(Whisper(engine, backend).transcribe_many(recordings, batch_size=2, **options))
        for backend in (device, OrtBackend(engine, threads=1))
    )
    assert len(found) == len(recordings)
    for number, transcript in found.items():
        other = expected[number]
        assert isinstance(transcript, Transcript)
        assert isinstance(other, Transcript)
        same(transcript, other)


GREEDY: dict[str, dict[str, Any]] = {
    "plain": {"without_timestamps": True, "hotwords": "one two"},
    "lists": {"suppress_tokens": (7, 30, 200), "max_initial_timestamp": 4.0},
    "ladder": {"temperature": (0.0, 0.6), "best_of": 2, "logprob_threshold": -1.9},
    "batch": {"batch_size": 3},
}


@pytest.mark.parametrize("name", GREEDY)
def test_steps_at_once_change_nothing(
    engine: Engine, device: Backend, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a bit of the transcripts; in a batch, rows leave a little later, which rounds anew."""
    options = {
        "language": "en",
        "max_new_tokens": 14,
        "no_speech_threshold": None,
        "vad": "off",
        "temperature": 0.0,
        "batch_size": 1,
        **GREEDY[name],
    }
    recordings = [noise(seconds, seed) for seed, seconds in enumerate((0.7, 4.0, 2.0))]
    steps: list[int] = []
    real = DeviceSession.decode_steps

    def decode_steps(
        session: DeviceSession, tokens: Int, rows: GreedyRows, most: int
    ) -> MultiStepResult:
        found = real(session, tokens, rows, most)
        steps.append(len(found.tokens))
        return found

    monkeypatch.setattr(DeviceSession, "decode_steps", decode_steps)
    found = dict(Whisper(engine, device).transcribe_many(recordings, **options))
    assert sum(steps) > len(steps)
    n_runs = len(steps)
    monkeypatch.setattr(DeviceSession, "supports_multistep", False)
    expected = dict(Whisper(engine, device).transcribe_many(recordings, **options))
    assert len(steps) == n_runs
    assert len(found) == len(recordings)
    for number, transcript in found.items():
        other = expected[number]
        assert isinstance(transcript, Transcript)
        assert isinstance(other, Transcript)
        same(transcript, other)
        assert transcript == other or name == "batch"


def test_a_transcription_given_up_in_the_middle(engine: Engine, device: Backend) -> None:
    """Whoever stops listening leaves the device as it was, for the next one."""
    model = Whisper(engine, device)
    options: dict[str, Any] = {"language": "en", "max_new_tokens": 6, "vad": "off"}
    expected = model.transcribe(noise(31.0, 3), **options)
    with contextlib.closing(model.stream(noise(31.0, 3), **options)) as segments:
        next(iter(segments))
    assert model.transcribe(noise(31.0, 3), **options) == expected


@pytest.mark.slow
@pytest.mark.parametrize("beam_size", [None, 5])
def test_real_speech(engines: Engines, beam_size: int | None) -> None:
    require("standard")
    engine = engines.engine("tiny.en", "standard")
    backend = DeviceBackend(CpuExecutor(engine, threads=2), engine.manifest.dims)
    found, expected = (
        model.transcribe(JFK, beam_size=beam_size, temperature=0.0, word_timestamps=True)
        for model in (Whisper(engine, backend), engines.model("tiny.en"))
    )
    assert "ask not what your country can do for you" in found.text
    assert sum(len(segment.words or ()) for segment in found) > 20
    same(found, expected)


def test_closing_a_model_gives_the_device_back(engine: Engine) -> None:
    cuda = FakeCuda()
    backend = DeviceBackend(trt_executor(engine, cuda), engine.manifest.dims)
    with Whisper(engine, backend) as model:
        model.transcribe(noise(1.0, 0), language="en", max_new_tokens=3, vad="off")
    assert cuda.leaks == {}


def test_half_precision(tmp_path: Path) -> None:
    """Caches of 16 bits give what ONNX Runtime gives with the same graphs, token for token."""
    require("standard")
    half = export(talkative_checkpoint(), tmp_path / "half", dialect="standard", precision="fp16")
    cuda = FakeCuda()
    dims = half.manifest.dims
    backends = (
        OrtBackend(half, threads=1),
        DeviceBackend(CpuExecutor(half, threads=1), dims),
        DeviceBackend(trt_executor(half, cuda), dims),
    )
    expected, *others = (
        Whisper(half, backend).transcribe(
            noise(4.0, 1), language="en", beam_size=3, max_new_tokens=8, temperature=0.0, vad="off"
        )
        for backend in backends
    )
    assert expected.segments
    for found in others:
        same(found, expected)


def test_calls_of_several_threads_take_turns(engine: Engine) -> None:
    """While one uses the device the others wait, and none waits between calls of its own."""
    backend = DeviceBackend(CpuExecutor(engine, threads=1), engine.manifest.dims)
    audio = backend.encode(np.zeros((1, engine.manifest.dims.n_mels, 3000), np.float32))
    tokens = np.zeros((1, 1), np.int64)
    session, others = backend.open(audio), [backend.open(audio) for _ in range(2)]
    logits = session.extend(tokens)
    others[0].extend(tokens)
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: backend.encode(np.zeros((1, backend.dims.n_mels, 3000), np.float32)),
        "open": lambda: backend.open(audio).close(),
        "scores": logits.numpy,
        "append": lambda: session.append(others[0]),
        "extend": lambda: session.extend(np.zeros((2, 1), np.int64)),
        "gather": lambda: session.gather(np.array([1, 0])),
        "close": others[1].close,
    }
    for name, call in calls.items():
        thread = threading.Thread(target=call)
        with backend.lock:
            thread.start()
            thread.join(0.05)
            assert thread.is_alive(), name
        thread.join(60)
        assert not thread.is_alive()
    session.close()
    backend.close()
