"""Single calls of a model, for ``large_models.py``: a window, and decoding steps.

A *window* is what comes before the first token: log-mel to scores after a prompt of four tokens,
with the keys and values of cross-attention. A *step* is one more token for every row.
"""

from __future__ import annotations

import time
from typing import Any, Callable

import numpy as np

__all__ = ["FIRST", "FRAMES", "KINDS", "Calls", "Span", "timed"]

KINDS = {"window": 0, "step": 1, "5 rows": 5}
"""The calls that are timed, and the rows of each."""
FRAMES = 3000
FIRST = 1000
"""A token of text."""

Span = tuple[float, float]
"""Wall time and CPU time of the whole process, seconds."""


def timed(call: Callable[[], object]) -> Span:
    """Time of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


class Calls:
    """A system run by whisper_opt/cli/bench/serve.py: subclasses load a model and run it.

    Attributes:
        about: fields of the response to ``load``.
        mel: float32 [n_mels, 3000], a log-mel window of noise.
        prompt: four tokens of a multilingual model.
    """

    def __init__(self, n_mels: int) -> None:
        """``n_mels``: height of log-mel windows."""
        self.about: dict[str, Any] = {}
        self._begin = time.process_time()
        drawn = np.random.default_rng(0).standard_normal((n_mels, FRAMES), np.float32)
        # start of transcript, English, transcribe, no timestamps; large-v3 has one more language
        more = int(n_mels == 128)
        self.prompt = [50258, 50259, 50359 + more, 50363 + more]
        self.mel = np.clip(drawn * np.float32(0.4), -1, 1.5).astype(np.float32)

    def loaded(self, **about: Any) -> None:
        """Call when the model is loaded; ``about``: versions."""
        cpu = time.process_time() - self._begin
        self.about = {"load_cpu_s": round(cpu, 3), **about}

    def window(self) -> Span:
        """Time of a window."""
        raise NotImplementedError

    def steps(self, rows: int, n: int) -> Span:
        """Time of one step: mean of ``n`` steps after a prompt, each for ``rows`` rows.

        Of the window that was encoded last; there is one.
        """
        raise NotImplementedError

    def transcribe(self, rows: int = 0, n: int = 0) -> dict[str, Any]:
        """The job: a window, or steps if there are rows. Returns ``wall`` and ``cpu``."""
        wall, cpu = self.steps(rows, n) if rows else self.window()
        return {"wall": wall, "cpu": cpu}
