"""How fast this CPU really multiplies in each arithmetic: having it says little.

An Intel CPU whose AMX is masked (Emerald Rapids in a virtual machine) has AVX512-BF16 and does half
as many multiplications a second with it as in float32. So products are timed.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from whisper_opt.runtime.openvino.encoder import capabilities, compiled, import_openvino

__all__ = ["matmul_times"]

SHAPE = (512, 512, 1024)
"""Rows, inputs and outputs of the product: 5 ms in float32 on one slow core."""
ROUNDS = 7


def matmul_times(threads: int | None = None) -> dict[str, float]:
    """Seconds that one product takes in ``fp32`` and whatever else OpenVINO does on this CPU.

    The least of a few rounds in turn, so that a busy machine slows all of them alike.

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
    for turn in range(ROUNDS):
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer({0: value}, share_inputs=True, share_outputs=True)
            if turn:  # the first one prepares
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _matmul_model(weights: Any) -> Any:
    import openvino
    from openvino import opset13 as op

    value = op.parameter([-1, len(weights)], np.float32)
    return openvino.Model([op.matmul(value, op.constant(weights), False, False)], [value])
