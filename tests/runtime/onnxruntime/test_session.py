"""Errors of the ONNX Runtime backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.support.engines import random_engine, runs, sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt import Whisper
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.core.interruption import Interrupted, Interruption
from whisper_opt.export import build, export
from whisper_opt.export.verification.verify import Parity
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend

DIMS = random_dims(n_vocab=2000)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("ort") / "engine", DIMS)


@pytest.fixture(scope="module")
def backend(engine: Engine) -> OrtBackend:
    return OrtBackend(engine, threads=1)


@pytest.mark.parametrize("shape", [(80, 100), (1, 128, 100), (1, 1, 80, 100)])
def test_a_wrong_mel_is_refused(backend: OrtBackend, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"mel has shape .* expects \[n_audio, 80, n_frames\]"):
        backend.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("n_frames", [0, 3001])
def test_a_window_of_impossible_length_is_refused(backend: OrtBackend, n_frames: int) -> None:
    with pytest.raises(EngineError, match=f"mel has {n_frames} frames; .* 1 to 3000"):
        backend.encode(np.zeros((1, 80, n_frames), np.float32))


@pytest.mark.parametrize("n_frames", [1, 2, 999, 3000])
def test_a_shorter_window_gives_fewer_positions(backend: OrtBackend, n_frames: int) -> None:
    found = backend.encode(np.zeros((2, 80, n_frames), np.float32))
    n_ctx = -(-n_frames // 2)
    shapes = [(2, DIMS.n_text_head, 64, n_ctx), (2, DIMS.n_text_head, n_ctx, 64)]
    assert [values.shape for values in found.cross] == shapes * DIMS.n_text_layer


def test_a_failed_run_is_an_engine_error(engine: Engine) -> None:
    """Usually out of memory; errors of ONNX Runtime share no base class."""

    class Broken:
        def run(self, names: Sequence[str], feeds: Mapping[str, NDArray]) -> Sequence[NDArray]:
            raise RuntimeError("bad allocation\nmore")

        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError("bad allocation\nmore")

        def __getattr__(self, name: str) -> Any:
            return getattr(graph, name)

    mel = np.zeros((1, 80, 3000), np.float32)
    with pytest.raises(EngineError, match=r"^ONNX Runtime failed: bad allocation$"):
        OrtBackend(engine, threads=1, encoder=Broken()).encode(mel)
    backend = OrtBackend(engine, threads=1)
    graph = backend.decoder.session
    backend.decoder = dataclasses.replace(backend.decoder, session=Broken())
    session = backend.open(backend.encode(mel))
    with pytest.raises(EngineError, match=r"^ONNX Runtime failed: bad allocation$"):
        session.extend(np.zeros((1, 1), np.int64))


def test_a_run_that_is_interrupted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, interruption = OrtBackend(engine, threads=1), Interruption()
    mel = np.random.default_rng(0).normal(size=(1, 80, 3000)).astype(np.float32)
    session, graph = backend.encoder, Interruption()

    class Interrupting:
        """The request comes while the graph runs; ONNX Runtime sees it after an operator."""

        def run(self, names: Any, feeds: Any, options: Any) -> Any:
            interruption.request()
            return session.run(names, feeds, options)  # type: ignore[call-arg] # a session's

    backend.encoder = Interrupting()  # type: ignore[assignment] # has a third argument
    with pytest.raises(Interrupted):
        backend.encode(mel, interruption)
    backend.encoder = session
    for found, expected in zip(backend.encode(mel, graph).cross, backend.encode(mel).cross):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_an_impossible_number_of_threads_is_refused(engine: Engine, threads: Any) -> None:
    with pytest.raises(OptionError, match=f"threads is {threads!r}; expected a positive integer"):
        OrtBackend(engine, threads=threads)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_a_damaged_graph_is_an_engine_error(tmp_path: Path, name: str) -> None:
    path = random_engine(tmp_path / "engine", DIMS).file(name)
    path.write_bytes(bytes(path.stat().st_size))
    version = onnxruntime.__version__
    with pytest.raises(EngineError, match=f"ONNX Runtime {version} cannot load .*{name}"):
        Whisper.load(tmp_path / "engine")
    with pytest.raises(EngineError, match="sha256"):
        Whisper.load(tmp_path / "engine", verify=True)


def _standard_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine in the standard dialect, unverified: this ONNX Runtime may not run it."""
    monkeypatch.setattr(
        build, "verify", lambda *_, **__: Parity("", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None, None)
    )
    monkeypatch.setattr(build, "require_onnxruntime", lambda *_: onnxruntime)
    return export(sharp_checkpoint(DIMS), folder, dialect="standard")


def test_an_old_onnxruntime_names_the_required_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runs("standard"):
        pytest.skip("not tested: this ONNX Runtime runs the standard dialect")
    engine = _standard_engine(tmp_path / "engine", monkeypatch)
    with pytest.raises(BackendUnavailable, match=r"needs 1\.24 or later.*--dialect contrib"):
        Whisper.load(engine.path)


@pytest.mark.parametrize(
    "said",
    [
        "Load model from encoder.onnx failed: Unsupported model IR version: 11, max supported 10",
        "ONNX Runtime only *guarantees* support for models stamped with official released onnx"
        " opset versions. Opset 24 is under development",
    ],
)
def test_errors_of_old_onnxruntime_are_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    engine = _standard_engine(tmp_path / "engine", monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(BackendUnavailable, match=r"needs 1\.24 or later.*--dialect contrib"):
        OrtBackend(read_engine(engine.path))
