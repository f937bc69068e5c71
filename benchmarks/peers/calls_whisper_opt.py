"""Calls of this library."""

from __future__ import annotations

import numpy as np

from peers.calls import FIRST, Calls, Span, timed
from whisper_opt.core.backend import Session, TokenMask
from whisper_opt.runtime.engine import read_engine
from whisper_opt.runtime.native import variant
from whisper_opt.runtime.onnxruntime.backend import OrtBackend

__all__ = ["System"]


class System(Calls):
    """An engine on the CPU."""

    def __init__(self, model: str, threads: int, n_mels: int) -> None:
        """``model``: the engine's directory."""
        super().__init__(n_mels)
        self._backend = OrtBackend(read_engine(model), threads=threads)
        self.loaded(kernels=variant())

    def _prompt(self) -> Session:
        session = self._backend.open(self._encoded)
        self._top(session, np.array([self.prompt]), 1)
        return session

    def _window(self) -> None:
        self._encoded = self._backend.encode(self.mel[None])
        self._prompt().close()

    def _top(self, session: Session, tokens: np.ndarray, k: int) -> None:
        n_rows, n_vocab = len(tokens), self._backend.dims.n_vocab
        nothing = np.zeros((n_rows, n_vocab), np.bool_)
        session.extend(tokens).top(k, TokenMask(nothing, np.full(n_rows, n_vocab)))

    def window(self) -> Span:
        return timed(self._window)

    def steps(self, rows: int, n: int) -> Span:
        """With the choice of tokens; rows swap places, as beams do."""
        session = self._prompt()
        session.gather(np.zeros(rows, np.int64))
        tokens, order = np.full((rows, 1), FIRST), np.roll(np.arange(rows), 1)

        def run() -> None:
            for _ in range(n):
                self._top(session, tokens, rows + 1 if rows > 1 else 1)
                session.gather(order)

        wall, cpu = timed(run)
        session.close()
        return wall / n, cpu / n
