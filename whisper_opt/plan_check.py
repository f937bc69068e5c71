"""Whether plans give the tokens of the ONNX engine that they were built from.

A compiler may build without complaint and compute something else; so what it built is run once
before it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from whisper_opt.backends.ort import OrtBackend
from whisper_opt.dims import N_FRAMES
from whisper_opt.engine import Engine
from whisper_opt.errors import BackendUnavailable
from whisper_opt.plans import Plans
from whisper_opt.protocol import Backend
from whisper_opt.trt_library import load_library

__all__ = ["compare_tokens", "token_check"]

N_TOKENS = 24
EXPLAINED = 0.05
"""Another best token is rounding where the scores of both lie closer than this, in standard
deviations of the scores."""


def compare_tokens(ours: Backend, reference: Backend, n_tokens: int = N_TOKENS) -> dict[str, Any]:
    """Let the reference choose tokens, and ask both what comes after each of them.

    One window of seeded noise, decoded greedily by the reference from an arbitrary token: the past
    is the same for both, so that one difference does not become many.

    Args:
        ours: what is asked whether it is right.
        reference: what is.
        n_tokens: how many tokens are compared.

    Returns:
        ``status``, ``equal`` or ``differ``, and ``detail``, what was compared.
    """
    dims = reference.dims
    noise = np.random.default_rng(0).standard_normal((1, dims.n_mels, N_FRAMES), np.float32)
    sessions = [backend.open(backend.encode(noise * 0.5)) for backend in (reference, ours)]
    token = np.array([[dims.n_vocab // 2]])
    equal, worst = 0, 0.0
    for _ in range(n_tokens):
        expected, found = (session.extend(token).numpy()[0, -1].copy() for session in sessions)
        best, other = int(expected.argmax()), int(found.argmax())
        if not np.isfinite(found).all():
            worst = np.inf
            break
        equal += best == other
        worst = max(worst, float(expected[best] - expected[other]) / float(expected.std()))
        token = np.array([[best]])
    for session in sessions:
        session.close()
    detail = f"{equal} of {n_tokens} best tokens equal, gap of the others at most {worst:.3g}"
    return {"status": "equal" if worst <= EXPLAINED else "differ", "detail": detail}


def token_check(device_index: int = 0) -> Callable[[Engine, Plans], Mapping[str, Any]]:
    """The check that a build is given: plans against their engine in ONNX Runtime on the CPU.

    Args:
        device_index: the GPU that runs the plans.

    Returns:
        A function of an engine and its plans; it raises EngineError where these cannot be run.
    """
    return functools.partial(_check_tokens, device_index=device_index)


def _check_tokens(engine: Engine, plans: Plans, *, device_index: int) -> Mapping[str, Any]:
    from whisper_opt.backends.device_backend import DeviceBackend
    from whisper_opt.backends.trt import TrtExecutor

    try:
        reference = OrtBackend(engine)
        library = load_library(plans.record.target.library)
        executor = TrtExecutor(library, plans.read, device_index=device_index)
    except BackendUnavailable as error:
        return {"status": "not checked", "detail": str(error)}
    ours = DeviceBackend(executor, engine.manifest.dims)
    try:
        return compare_tokens(ours, reference)
    finally:
        ours.close()
