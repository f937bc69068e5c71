"""The class that Triton's Python backend runs: one engine for each instance of a model.

``execute`` only submits. Segments are sent by the thread of the engine that calls callbacks, in
Triton's decoupled mode, so requests that arrive at any time share one batch.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.core.errors import (
    AudioError,
    BackendUnavailable,
    EngineClosed,
    OptionError,
    QueueFull,
    TranscriptionCancelled,
    WhisperOptError,
)
from whisper_opt.serving.engine import Engine
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.triton.requests import INPUTS, read_request
from whisper_opt.serving.triton.settings import ENGINE, Settings
from whisper_opt.text.results import Segment
from whisper_opt.text.writers import render
from whisper_opt.transcription.model import Whisper

__all__ = ["TritonPythonModel"]

_POLL = 0.1
"""Seconds between two looks whether requests were cancelled; Triton has no callback for it."""
_DRAIN = 30.0
"""Seconds that the end of an instance waits for what was accepted."""
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (OptionError, "INVALID_ARG"),
    (AudioError, "INVALID_ARG"),
    (QueueFull, "UNAVAILABLE"),
    (EngineClosed, "UNAVAILABLE"),
    (TranscriptionCancelled, "CANCELLED"),
)
"""Triton's codes of errors; others are ``INTERNAL``."""


class TritonPythonModel:
    """An instance of a model; Triton calls its methods, one at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine that is beside ``model.py``.

        Args:
            args: Triton's description of the instance.

        Raises:
            BackendUnavailable: this Triton cannot exchange arrays with numpy, or the device is not
                there.
            WhisperOptError: the engine cannot be loaded.
        """
        import triton_python_backend_utils  # only where Triton runs it

        self._triton: Any = triton_python_backend_utils
        _check_arrays(self._triton)
        settings = Settings.read(json.loads(args["model_config"]))
        folder = Path(args["model_repository"]) / args["model_version"] / ENGINE
        on = settings.on(args["model_instance_kind"], args["model_instance_device_id"])
        self._model = Whisper.load(folder, options=on)
        self._engine = Engine(self._model, max_batch=settings.max_batch)
        self._cancelling = _Cancelling()

    def execute(self, requests: list[Any]) -> None:
        """Submit recordings; the responses follow."""
        for request in requests:
            call = _Call(self._triton, request.get_response_sender())
            try:
                self._submit(request, call)
            except Exception as error:
                call.fail(error)

    def _submit(self, request: Any, call: _Call) -> None:
        found = {name: self._triton.get_input_tensor_by_name(request, name) for name in INPUTS}
        inputs = {name: each.as_numpy() for name, each in found.items() if each is not None}
        asked = read_request(inputs, json.loads(request.parameters() or "{}"))
        call.handle = self._engine.submit(
            asked.audio,
            asked.options,
            sample_rate=asked.sample_rate,
            on_segment=call.segment if asked.stream else None,
        )
        self._cancelling.watch(call)
        call.handle.add_done_callback(lambda handle: call.end(handle, with_text=not asked.stream))

    def finalize(self) -> None:
        """Complete what was accepted, then release the model."""
        self._engine.drain(_DRAIN)
        self._engine.close()
        self._cancelling.close()
        self._model.close()


def _check_arrays(triton: Any) -> None:
    """Refuse a backend that was built for numpy 1 beside numpy 2: it repeats the first element.

    Raises:
        BackendUnavailable: it is one.
    """
    sent = triton.Tensor("probe", np.arange(2, dtype=np.uint8))
    received = triton.Tensor.from_dlpack("probe", sent.to_dlpack()).as_numpy()
    if received.tolist() != [0, 1]:
        raise BackendUnavailable(
            "the Python backend of this Triton was built for numpy 1, and numpy is"
            f" {np.__version__}; use Triton 24.11 or later, or numpy 1.26 in its Python"
        )


class _Call:
    """A request and its responses; methods may be called from any thread."""

    def __init__(self, triton: Any, sender: Any) -> None:
        self._triton = triton
        self._sender = sender
        self._lock = threading.Lock()
        self.ended = False
        self.n_segments = 0
        self.handle: Handle | None = None

    def segment(self, segment: Segment) -> None:
        """Send a segment."""
        values = {"text": segment.text, "segment": json.dumps(segment.to_dict())}
        with self._lock:
            if not self.ended:
                self._sender.send(self._response(values))
                self.n_segments += 1

    def end(self, handle: Handle, *, with_text: bool) -> None:
        """Send the last response: the transcript, or the error."""
        try:
            found = handle.result(0)
        except BaseException as error:
            self.fail(error)
            return
        values = {"transcript": render(found, "json")}
        self._finish(self._response({"text": found.text, **values} if with_text else values))

    def fail(self, error: BaseException) -> None:
        """Send an error as the last response."""
        name = next((code for kind, code in _CODES if isinstance(error, kind)), "INTERNAL")
        code = getattr(self._triton.TritonError, name)
        known = isinstance(error, WhisperOptError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        reason = self._triton.TritonError(text, code)
        self._finish(self._triton.InferenceResponse(output_tensors=[], error=reason))

    def cancel_if_asked(self) -> None:
        """Cancel the transcription if the client does not want it any more."""
        with self._lock:
            asked = not self.ended and self._sender.is_cancelled()
        if asked and self.handle is not None and self.handle.cancel():
            self._triton.Logger.log_info(
                f"whisper_opt: a client cancelled its request after {self.n_segments} segments"
            )

    def _finish(self, response: Any) -> None:
        with self._lock:
            self.ended = True
            final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self._sender.send(response, flags=final)

    def _response(self, values: Mapping[str, str]) -> Any:
        tensors = [
            self._triton.Tensor(name, np.array([text.encode()], np.object_))
            for name, text in values.items()
        ]
        return self._triton.InferenceResponse(output_tensors=tensors)


class _Cancelling:
    """A thread that asks Triton again and again whether requests were cancelled."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="whisper_opt cancel", daemon=True)
        self._thread.start()

    def watch(self, call: _Call) -> None:
        """Look after a request until it has ended."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._calls)
                self._changed.wait_for(lambda: self._closed, _POLL)
                if self._closed:
                    return
                self._calls = [call for call in self._calls if not call.ended]
                calls = tuple(self._calls)
            for call in calls:
                call.cancel_if_asked()
