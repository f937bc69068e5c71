"""Silero VAD on ONNX Runtime: from samples to speech probabilities."""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.core.remedies import install_hint, repair_hint

__all__ = ["FRAME", "Frames", "State", "empty_state", "require_model"]

State = dict[str, F32]
"""Recurrent state of the network."""

FRAME = 512
"""Samples per frame, each of which has one probability."""
_CONTEXT = 64
"""Samples before a frame that are part of the network's input."""
_BATCH = 16
"""Frames per call of the network. It is constant, so that the output does not depend on the block
size to the last bit; a stream therefore lags by up to half a second."""
_MODEL = "silero_vad.onnx"
_SHA256 = "db6383984c3013471772259a0a71f6ed02df205f9b9e3c98a2534d54a850aee2"
_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _load() -> Any:
    """The ONNX Runtime session of the model, one per process; concurrent calls share no state."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            "ONNX Runtime is not installed, and the speech detector needs it;"
            f" {install_hint('cpu')}"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(_model_bytes(), options, providers=["CPUExecutionProvider"])


def require_model() -> None:
    """Check that the model file exists, before any work is done.

    Raises:
        BackendUnavailable: its file is missing, as in a frozen application without data files.
    """
    path = _model_path()
    if not path.is_file():
        raise BackendUnavailable(
            f"the speech detection model {path} is missing; {repair_hint()}; or use vad='off'"
        )


def _model_path() -> Path:
    return Path(__file__).with_name(_MODEL)  # importlib.resources is slow to import


def _model_bytes() -> bytes:
    path = _model_path()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackendUnavailable(
            f"the speech detection model {path} cannot be read ({error.strerror}); {repair_hint()}"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != _SHA256:
        raise BackendUnavailable(
            f"the speech detection model {path} is damaged: {len(data)} bytes, sha256 {found},"
            f" expected {_SHA256}; {repair_hint()}"
        )
    return data


def empty_state() -> State:
    """The state at the beginning of a recording."""
    return {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}


class Frames:
    """Speech probabilities of a stream of samples; keeps the network's state between calls."""

    def __init__(self, batch: int = _BATCH) -> None:
        """``batch``: frames per call of the network, by which the probabilities may be late."""
        with _loading:
            self._session = _load()
        self._batch = batch
        self._held = np.zeros(_CONTEXT + batch * FRAME, np.float32)
        self._n_held = _CONTEXT
        self._state = empty_state()

    def feed(self, samples: F32) -> F32:
        """Add samples; returns the probabilities [n] of completed frames."""
        found = [np.empty(0, np.float32)]
        while len(samples):
            n_taken = min(len(samples), len(self._held) - self._n_held)
            self._held[self._n_held : self._n_held + n_taken] = samples[:n_taken]
            self._n_held += n_taken
            samples = samples[n_taken:]
            if self._n_held == len(self._held):
                found.append(self._run())
                self._held[:_CONTEXT] = self._held[-_CONTEXT:]
                self._n_held = _CONTEXT
        return np.concatenate(found)

    def finish(self) -> F32:
        """Probabilities [n] of the remaining frames."""
        n_frames = -(-(self._n_held - _CONTEXT) // FRAME)
        if not n_frames:
            return np.empty(0, np.float32)
        self._held[self._n_held :] = 0
        found = self._run()
        return found[: len(found) - self._batch + n_frames]

    def continue_from(self, other: Frames) -> None:
        """Take over the state of another stream of the same samples."""
        self._state = other._state

    def _run(self) -> F32:
        """Probabilities that the batch held completes."""
        found, self._state = self._infer(self._held, self._state)
        return found

    def _infer(self, batch: F32, state: State) -> tuple[F32, State]:
        """Probabilities of a batch with its context, and the state after it."""
        frames = np.lib.stride_tricks.sliding_window_view(batch, _CONTEXT + FRAME)[::FRAME]
        feeds = {"input": np.ascontiguousarray(frames), **state}
        probabilities: F32
        probabilities, *after = self._session.run(["speech_probs", "hn", "cn"], feeds)
        return probabilities, dict(zip(("h", "c"), after))

    def _loudness(self) -> float:
        """Root mean square of the current batch."""
        return float(np.sqrt(np.mean(np.square(self._held[_CONTEXT:]))))
