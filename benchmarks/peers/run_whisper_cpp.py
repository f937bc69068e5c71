"""whisper.cpp through its Python wheel (pywhispercpp)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, BinaryIO

from pywhispercpp.model import Model

from peers.peer import Peer, PeerResult, internal_seconds

__all__ = ["System"]


@contextlib.contextmanager
def _stderr() -> Iterator[BinaryIO]:
    """Redirect standard error, also of C code, to a file."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class System(Peer):
    """A ggml file, whose name contains its precision."""

    def __init__(self, model: str, threads: int, precision: str) -> None:
        self.about = {
            "versions": {"pywhispercpp": version("pywhispercpp"), "whisper.cpp": _library()}
        }
        self._path, self._threads = model, threads
        self._models: dict[int, Any] = {}
        self._model(1)

    def _model(self, beam_size: int) -> Any:
        if beam_size not in self._models:
            search: dict[str, Any] = {"greedy": {"best_of": 1}}
            if beam_size > 1:
                search = {"beam_search": {"beam_size": beam_size, "patience": -1.0}}
            self._models.clear()  # one at a time in memory
            self._models[beam_size] = Model(
                self._path,
                params_sampling_strategy=int(beam_size > 1),
                n_threads=self._threads,
                print_progress=False,
                print_realtime=False,
                temperature=0.0,
                temperature_inc=0.0,
                **search,
            )
        return self._models[beam_size]

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        if batch_size > 1:
            raise ValueError("whisper.cpp decodes one window at a time")
        import _pywhispercpp

        model = self._model(beam_size)
        with _stderr() as said:
            _pywhispercpp.whisper_reset_timings(model._ctx)
            found = model.transcribe(pcm, language=language)
            model.print_timings()
            said.seek(0)
            report = said.read().decode("utf-8", "replace")
        segments = [(s.t0 / 100, s.t1 / 100, s.text) for s in found]
        text = " ".join(s.text.strip() for s in found)
        return PeerResult(text, segments, internal_seconds(report))


def _library() -> str:
    """Version of the library in the wheel, by its file name."""
    import _pywhispercpp

    folder = os.path.dirname(_pywhispercpp.__file__)
    names = [name for name in os.listdir(folder) if name.startswith("libwhisper.so.")]
    return max(names, key=len).split(".so.")[1] if names else "unknown"
