"""Silero VAD's network in ONNX Runtime: samples to probabilities of speech."""

from __future__ import annotations

import functools
import hashlib
import threading
from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.core.remedies import install_hint, repair_hint

__all__ = ["FRAME", "Frames", "State", "empty_state", "require_model"]

State = dict[str, F32]
"""The network's recurrent state."""

FRAME = 512
"""Samples a probability is about."""
_CONTEXT = 64
"""Samples before a frame that the network sees too."""
_BATCH = 16
"""Frames in a call of the network. Always as many, so that how sound arrives changes no bit of what
comes out; a stream lags by up to half a second for it."""
_MODEL = "silero_vad.onnx"
_SHA256 = "db6383984c3013471772259a0a71f6ed02df205f9b9e3c98a2534d54a850aee2"
_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _load() -> Any:
    """The model in ONNX Runtime, for the whole process: calls may overlap, they share no state."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            "ONNX Runtime is not installed, and it is what runs the speech detector;"
            f" {install_hint('cpu')}"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(_model_bytes(), options, providers=["CPUExecutionProvider"])


def require_model() -> None:
    """Find out now whether the model is there, not in the middle of a recording.

    Raises:
        BackendUnavailable: its file is missing, as in a frozen application without data files.
    """
    path = _model_path()
    if not path.is_file():
        raise BackendUnavailable(
            f"the speech detection model {path} is missing; {repair_hint()}; or use vad='off'"
        )


def _model_path() -> Any:
    import importlib.resources

    return importlib.resources.files("whisper_opt.audio.vad") / _MODEL


def _model_bytes() -> bytes:
    path = _model_path()
    try:
        data: bytes = path.read_bytes()
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
    """The state before any sound."""
    return {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}


class Frames:
    """Samples in pieces of any size -> probabilities, with the network's state between calls."""

    def __init__(self) -> None:
        with _loading:
            self._session = _load()
        self._held = np.zeros(_CONTEXT + _BATCH * FRAME, np.float32)
        self._n_held = _CONTEXT
        self._state = empty_state()

    def feed(self, samples: F32) -> F32:
        """Probabilities [n] of the frames that are complete."""
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
        """Probabilities [n] of the frames that are left."""
        n_frames = -(-(self._n_held - _CONTEXT) // FRAME)
        if not n_frames:
            return np.empty(0, np.float32)
        self._held[self._n_held :] = 0
        found = self._run()
        return found[: len(found) - _BATCH + n_frames]

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
        """Root mean square of the batch that is held."""
        return float(np.sqrt(np.mean(np.square(self._held[_CONTEXT:]))))
