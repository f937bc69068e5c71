"""Sessions on a device whose graphs take few windows, rows or tokens."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.device.test_device_session import (
    PROMPT,
    Traced,
    prompted,
    step,
    step_alone,
)
from tests.support.backend_subjects import DIMS, TOLERANCE, mels
from tests.support.cpu_executor import CpuExecutor
from tests.support.program_runs import ExpectedScores, mismatch, run
from tests.support.programs import N_AUDIO, program
from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.device import backend as device_backend
from whisper_opt.runtime.device import workspace
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

TIGHT = (
    "prefill.n_new=1:2:3,prefill.n_at=1:1:1,align.n_new=1:2:4,align.n_at=1:2:4,"
    "align.n_aligned=1:2:4"
)


def test_programs_on_plans_of_few_tokens(
    engine: Engine, reference: ExpectedScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are fed in parts, graphs dropped, workspaces closed; the scores are the same."""
    monkeypatch.setattr(workspace, "MAX_GRAPHS", 2)
    monkeypatch.setattr(device_backend, "N_IDLE", 0)
    gpu = Traced(engine, PlanSpec(max_batch=12, max_beam=8, profile=TIGHT))
    encoded = gpu.backend.encode(mels(N_AUDIO))
    for seed in range(2, 500, 40):
        results = run(gpu.backend, encoded, program(seed))
        expected = reference.of(results)
        for result in results:
            error = mismatch(result, expected[result.audio, result.tokens])
            assert error < TOLERANCE, f"program {seed}"
    assert len(gpu.cuda.streams) == 1
    del encoded
    gpu.backend.close()
    assert gpu.cuda.leaks == {}


def test_attention_is_the_same_in_parts(engine: Engine) -> None:
    tokens, lengths = np.arange(4, 4 + 22).reshape(2, 11), np.array([11, 8])
    whole, parts = Traced(engine), Traced(engine, PlanSpec(profile=TIGHT))
    found = [
        backend.attention(backend.encode(mels(2)), tokens, lengths)
        for backend in (OrtBackend(engine, threads=1), whole.backend, parts.backend)
    ]
    for other in found[1:]:
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(
                other.scores[row, :, :n], found[0].scores[row, :, :n], rtol=0, atol=TOLERANCE
            )
            np.testing.assert_allclose(
                other.logits[row, :n], found[0].logits[row, :n], rtol=0, atol=TOLERANCE
            )


def test_more_windows_than_the_encoder_takes(engine: Engine, reference: ExpectedScores) -> None:
    gpu = Traced(engine, PlanSpec(max_batch=2, max_beam=2))
    encoded = gpu.backend.encode(mels(N_AUDIO))
    for audio in range(N_AUDIO):
        results = run(gpu.backend, encoded, [])
        session = gpu.backend.open(encoded.take([audio]))
        found = session.extend(PROMPT).numpy()[0, -1]
        session.close()
        assert results == []
        alone = reference._backend.open(reference._encoded[audio]).extend(PROMPT).numpy()[0, -1]
        assert np.abs(found - alone).max() < TOLERANCE


def test_more_rows_than_the_plans_were_built_for(engine: Engine) -> None:
    gpu = Traced(engine, PlanSpec(max_batch=3, max_beam=2))
    session = gpu.backend.open(gpu.backend.encode(mels(3)))
    session.extend(np.repeat(PROMPT, 3, axis=0))
    session.gather(np.repeat([0, 1, 2], 3))  # too many rows for the graph: copied on the device
    with pytest.raises(EngineError, match=r"3 window\(s\) of 3 hypotheses: at most 2 of them"):
        session.extend(np.ones((9, 1), np.int64))
    session.gather(np.array([0, 3, 6]))
    found, expected = step(session, np.array([7, 8, 9])), step_alone(engine, [7, 8, 9])
    assert np.abs(found[1] - expected[1]).max() < TOLERANCE


def test_frames_the_encoder_was_not_built_for(
    engine: Engine, backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.executor, "fits", lambda graph, shapes: False)
    with pytest.raises(
        EngineError, match="not built for 160 frames; it takes whole windows of 3000"
    ):
        backend.encode(mels(1))


def test_windows_of_another_length_cannot_join(backend: DeviceBackend) -> None:
    session = prompted(backend, 1)
    other = backend.open(backend.encode(mels(1, 200)))
    with pytest.raises(EngineError, match="windows of the same length"):
        session.append(other)
    step(session, np.array([3]))
    other.close()


def test_audio_of_another_device_is_refused(engine: Engine, backend: DeviceBackend) -> None:
    other = DeviceBackend(CpuExecutor(engine, threads=1), DIMS)
    with pytest.raises(EngineError, match="encoded by another backend"):
        backend.open(other.encode(mels(1)))
