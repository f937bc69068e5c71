"""Calls of whisper.cpp's library, by ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from peers.calls import FIRST, FRAMES, Calls, Span, timed

__all__ = ["System"]


class System(Calls):
    """A ggml file."""

    def __init__(self, model: str, threads: int, n_mels: int, build: str) -> None:
        """``build``: build directory of whisper.cpp, with shared libraries."""
        super().__init__(n_mels)
        found = sorted(Path(build).rglob("libwhisper.so"))
        if not found:
            raise ValueError(f"no libwhisper.so in {build}: build with -DBUILD_SHARED_LIBS=ON")
        self._library = ctypes.CDLL(str(found[0]))
        self._library.whisper_init_from_file.restype = ctypes.c_void_p
        context = self._library.whisper_init_from_file(model.encode())
        if not context:
            raise ValueError(f"whisper.cpp cannot load {model}")
        self._context = ctypes.c_void_p(context)
        self.loaded(file=found[0].resolve().name)
        self._threads = threads
        mel = self.mel.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._check(self._library.whisper_set_mel(self._context, mel, FRAMES, n_mels))

    def _check(self, status: int) -> None:
        if status:
            raise ValueError(f"whisper.cpp failed with status {status}")

    def _decode(self, tokens: Any, past: int) -> None:
        row = (ctypes.c_int32 * len(tokens))(*tokens)
        found = self._library.whisper_decode(self._context, row, len(tokens), past, self._threads)
        self._check(found)

    def _window(self) -> None:
        self._check(self._library.whisper_encode(self._context, 0, self._threads))
        self._decode(self.prompt, 0)

    def window(self) -> Span:
        return timed(self._window)

    def steps(self, rows: int, n: int) -> Span:
        """Without the choice of tokens.

        Rows are tokens of one sequence, of which the last has scores, as in whisper-bench.
        """
        self._decode(self.prompt, 0)

        def run() -> None:
            for i in range(n):
                self._decode(np.full(rows, FIRST), len(self.prompt) + i)

        wall, cpu = timed(run)
        return wall / n, cpu / n
