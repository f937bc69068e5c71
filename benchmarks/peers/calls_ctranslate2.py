"""Calls of CTranslate2, which faster-whisper runs."""

from __future__ import annotations

from importlib.metadata import version

import ctranslate2

from peers.calls import Calls, Span, timed

__all__ = ["System"]

END = 50257


class System(Calls):
    """A CTranslate2 directory, in 8 bits."""

    def __init__(self, model: str, threads: int, n_mels: int) -> None:
        """``model``: the directory."""
        super().__init__(n_mels)
        self._model = ctranslate2.models.Whisper(
            model, device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1
        )
        self.loaded(ctranslate2=version("ctranslate2"))
        self._mel = ctranslate2.StorageView.from_array(self.mel[None])

    def _generate(self, encoded: object, rows: int, n: int) -> None:
        found = self._model.generate(
            encoded,
            [self.prompt],
            beam_size=rows,
            patience=1,
            max_length=max(2 * n, n + len(self.prompt) - 1),  # half may be new
            suppress_blank=False,
            suppress_tokens=[END],
        )
        if len(found[0].sequences_ids[0]) != n:
            raise ValueError(f"{len(found[0].sequences_ids[0])} tokens; expected {n}")

    def window(self) -> Span:
        """Keys and values of cross-attention are computed with the first token."""
        return timed(self._window)

    def _window(self) -> None:
        self._encoded = self._model.encode(self._mel)
        self._generate(self._encoded, 1, 1)

    def steps(self, rows: int, n: int) -> Span:
        """Time of ``n + 4`` tokens less that of four."""
        few = timed(lambda: self._generate(self._encoded, rows, 4))
        many = timed(lambda: self._generate(self._encoded, rows, 4 + n))
        return (many[0] - few[0]) / n, (many[1] - few[1]) / n
