"""The encoder in OpenVINO: accuracy, errors, and sessions that use its output."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import programs
from tests.support.backend_subjects import DIMS, TOLERANCE, mels
from tests.support.engines import random_engine
from tests.support.models import random_dims
from tests.support.program_runs import ExpectedScores, mismatch, run
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.openvino import encoder as openvino_encoder
from whisper_opt.runtime.openvino import int8 as openvino_int8
from whisper_opt.runtime.openvino.encoder import OpenVinoEncoder
from whisper_opt.runtime.openvino.int8 import pack
from whisper_opt.runtime.openvino.probe import matmul_times

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not INSTALLED, reason="not tested: OpenVINO is not installed")
MAX_ERRORS = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.1}
"""Largest root mean square error, relative to that of the values."""


def has_bf16() -> bool:
    if not INSTALLED:
        return False
    return "BF16" in openvino_encoder.capabilities(openvino_encoder.import_openvino().Core())


def precisions() -> list[Any]:
    no_bf16 = pytest.mark.skipif(not has_bf16(), reason="not tested: this CPU has no bfloat16")
    return [pytest.param(p, marks=no_bf16 if p == "bf16" else ()) for p in MAX_ERRORS]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("openvino") / "engine", DIMS)


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The same model in the other dialect; its head is exact, so that choices can be compared."""
    return random_engine(tmp_path_factory.mktemp("openvino") / "engine", DIMS, "standard")


def encoder_of(engine: Engine, precision: str) -> OrtBackend:
    encoder = OpenVinoEncoder(engine, precision, threads=1)
    return OrtBackend(engine, threads=1, encoder=encoder)


def error_of(found: F32, exact: F32) -> float:
    return float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))


# results


@needs_openvino
@pytest.mark.parametrize("dialect", ["engine", "standard"])
@pytest.mark.parametrize("precision", precisions())
def test_the_output_is_close_to_that_of_onnx_runtime(
    request: pytest.FixtureRequest, dialect: str, precision: str
) -> None:
    chosen: Engine = request.getfixturevalue(dialect)
    reference, backend = OrtBackend(chosen, threads=1), encoder_of(chosen, precision)
    errors = []
    for n_audio, n_frames in ((1, 1200), (3, 301), (2, 1)):
        mel = mels(n_audio, n_frames)
        found, expected = backend.encode(mel), reference.encode(mel)
        assert [a.shape for a in found.cross] == [a.shape for a in expected.cross]
        assert {a.dtype for a in found.cross} == {np.dtype(np.float32)}
        errors += [error_of(*pair) for pair in zip(found.cross, expected.cross)]
    assert max(errors) < MAX_ERRORS[precision]
    if precision != "fp32":
        assert min(errors) > 1e-4  # the precision is really lower


@needs_openvino
@pytest.mark.parametrize("precision", precisions())
def test_windows_do_not_disturb_each_other(engine: Engine, precision: str) -> None:
    backend = encoder_of(engine, precision)
    mel = mels(3)
    together = backend.encode(mel)
    for i in range(3):
        for one, all_of_them in zip(backend.encode(mel[i : i + 1]).cross, together.cross):
            np.testing.assert_allclose(one[0], all_of_them[i], rtol=0, atol=TOLERANCE)


@needs_openvino
def test_encoding_does_not_change_earlier_output(engine: Engine) -> None:
    backend = encoder_of(engine, "int8")
    first = backend.encode(mels(1))
    held = [array.copy() for array in first.cross]
    backend.encode(mels(2))
    backend.encode(mels(1) * 2)
    for array, before in zip(first.cross, held):
        np.testing.assert_array_equal(array, before)


@needs_openvino
def test_two_threads_may_encode(engine: Engine) -> None:
    backend = encoder_of(engine, "int8")
    windows = [mels(1, n_frames) for n_frames in (80, 160, 240, 320)]
    expected = [backend.encode(mel).cross[0] for mel in windows]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(backend.encode, windows * 4))
    for i, encoded in enumerate(found):
        np.testing.assert_array_equal(encoded.cross[0], expected[i % 4])


@needs_openvino
@pytest.mark.parametrize("precision", precisions())
@pytest.mark.parametrize("seed", range(3))
def test_programs_on_its_output(standard: Engine, precision: str, seed: int) -> None:
    backend = encoder_of(standard, precision)
    encoded = backend.encode(mels(programs.N_AUDIO))
    results = run(backend, encoded, programs.program(seed))
    reference = ExpectedScores(backend).of(results)
    for result in results:
        assert mismatch(result, reference[result.audio, result.tokens]) < TOLERANCE


@needs_openvino
def test_a_whole_model_with_it(engine: Engine) -> None:
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * np.float32(0.1)
    with Whisper.load(engine.path, threads=1, encoder_precision="int8") as model:
        assert model.device == "cpu"
        assert model.encoder_precision == "int8"
        model.transcribe(noise, max_new_tokens=4, no_speech_threshold=None, vad="off")


# 8-bit weights


@pytest.mark.parametrize("group", [64, 128])
def test_packed_weights_are_within_half_a_scale(group: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((6, 256), np.float32)
    weights[1, :group] = 0
    weights[2] = np.abs(weights[2])
    weights[3] *= 1e-20
    weights[4, 7] = 50
    packed, scale, zero = pack(weights, group)
    assert {values.dtype.name for values in (packed, zero)} == {"uint8"}
    assert packed.shape == (6, 256 // group, group)
    back = ((packed.astype(np.float32) - zero) * scale).reshape(weights.shape)
    steps = np.repeat(scale[..., 0], group, axis=1)
    assert (np.abs(back - weights) <= 0.5001 * steps).all()
    assert not back[1, :group].any()


@needs_openvino
@pytest.mark.parametrize(("n_state", "group"), [(128, 128), (192, 64)])
def test_groups_divide_every_matrix(tmp_path: Path, n_state: int, group: int) -> None:
    dims = random_dims(n_vocab=2000, n_audio_state=n_state, n_text_state=n_state)
    engine = random_engine(tmp_path / "engine", dims)
    model = openvino_encoder.import_openvino().Core().read_model(engine.file("encoder.onnx"))
    products = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
    constant = len([node for node in products if openvino_int8._is_matmul(node)])
    assert constant == 4 * dims.n_audio_layer + 2 * dims.n_text_layer
    assert openvino_int8.pack_matmuls(model) == group
    packed = [
        node
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and str(node.get_element_type().to_dtype()) == "uint8"
    ]
    assert len(packed) == 2 * constant  # weights and zero points
    assert not any(openvino_int8._is_matmul(node) for node in model.get_ops())


# errors


def test_without_openvino_the_extra_is_named(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for precision in ("bf16", "int8"):
        with pytest.raises(BackendUnavailable, match=r"whisper-opt\[openvino\]"):
            Whisper.load(engine.path, encoder_precision=precision)
    with pytest.raises(BackendUnavailable, match=r"whisper-opt\[openvino\]"):
        matmul_times()
    with Whisper.load(engine.path, threads=1, encoder_precision="auto") as model:
        assert model.encoder_precision == "engine"


@needs_openvino
def test_an_engine_of_another_precision_is_refused(engine: Engine) -> None:
    manifest = dataclasses.replace(engine.manifest, precision="fp16")
    with pytest.raises(EngineError, match=r"this engine is fp16; .* --precision fp32"):
        OpenVinoEncoder(Engine(engine.path, manifest), "int8")


@needs_openvino
def test_a_cpu_without_bfloat16_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_encoder, "capabilities", lambda _: ("FP32", "INT8"))
    with pytest.raises(BackendUnavailable, match=r"no bfloat16 .* finds FP32, INT8"):
        OpenVinoEncoder(engine, "bf16")


@needs_openvino
def test_a_damaged_graph_is_an_engine_error(tmp_path: Path) -> None:
    engine = random_engine(tmp_path / "engine", DIMS)
    path = engine.file("encoder.onnx")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(EngineError, match=r"OpenVINO \S+ cannot load .*encoder\.onnx"):
        OpenVinoEncoder(engine, "int8")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (
            "Exception from src/core.cpp:84:\nCheck 'false' failed at report.cpp:151:\n"
            "-- No conversion rule found for operations: com.microsoft.MultiHeadAttention\n",
            BackendUnavailable,
            r"too old for e \(.*MultiHeadAttention\); pip install --upgrade",
        ),
        (
            "Exception from src/core.cpp:84:\nFrontEnd API failed with GeneralFailure:\n"
            "OpenVINO does not support the following ONNX operations: Attention\n",
            BackendUnavailable,
            r"too old for e \(.*operations: Attention\)",
        ),
        ("Exception from src/core.cpp:84:\nno such file\n", EngineError, "cannot load e: no such"),
        ("", EngineError, "cannot load e: RuntimeError"),
    ],
)
def test_errors_of_openvino_are_classified(text: str, kind: type[Exception], words: str) -> None:
    error = openvino_encoder._load_error("2026.2", Path("e"), RuntimeError(text))
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


# speed


@needs_openvino
def test_the_times_of_matrix_multiplications() -> None:
    found = matmul_times(threads=1)
    assert {"fp32", "int8"} <= found.keys() <= {"fp32", "bf16", "int8"}
    assert all(0 < seconds < 60 for seconds in found.values())
