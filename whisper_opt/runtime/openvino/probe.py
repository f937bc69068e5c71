"""Measures the speed of this CPU in each arithmetic, since instruction sets do not predict it.

An Intel CPU with masked AMX (Emerald Rapids in a virtual machine) has AVX512-BF16, but does half as
many multiplications per second with it as in float32.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from whisper_opt.runtime.openvino.encoder import capabilities, compiled, import_openvino

__all__ = ["matmul_times"]

SHAPE = (512, 512, 1024)
"""Rows, inputs and outputs of the matrix multiplication: 5 ms in float32 on one slow core."""
ROUNDS = 7


def matmul_times(threads: int | None = None) -> dict[str, float]:
    """Seconds per matrix multiplication in ``fp32``, and in others that this CPU supports.

    The minimum of a few interleaved rounds, so that load on the machine slows all of them equally.

    Raises:
        BackendUnavailable: OpenVINO is missing.
    """
    runtime = import_openvino()
    core = runtime.Core()
    found = capabilities(core)
    names = [
        "fp32",
        *(name for name, kind in (("bf16", "BF16"), ("int8", "INT8")) if kind in found),
    ]
    rng = np.random.default_rng(0)
    n_rows, n_in, n_out = SHAPE
    value = rng.standard_normal((n_rows, n_in), np.float32)
    weights = rng.standard_normal((n_in, n_out), np.float32)
    requests = {name: compiled(core, _matmul_model(weights), name, threads) for name in names}
    best = dict.fromkeys(names, float("inf"))
    for i in range(ROUNDS):
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer({0: value}, share_inputs=True, share_outputs=True)
            if i:  # the first round is a warm-up
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _matmul_model(weights: Any) -> Any:
    import openvino
    from openvino import opset13 as op

    value = op.parameter([-1, len(weights)], np.float32)
    return openvino.Model([op.matmul(value, op.constant(weights), False, False)], [value])
